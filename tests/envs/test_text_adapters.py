"""Environments of OpenEnv and verifiers as text environments: their own classes, and what is said where they lack."""

import threading

import pytest

from rlax_ft.envs.text import answer, as_environment, begin
from rlax_ft.envs.text_adapters import as_json, openenv_client, openenv_environment
from rlax_ft.envs.text_verifiers import verifiers_environment
from rlax_ft.errors import InputError


class Thing:
    """What an environment without the package gives: an observation with a reward and an end."""

    def __init__(self, **fields):
        self.__dict__.update(fields)


class Plain:
    """Says how far a guess is off; the record's `reset` names the number."""

    def reset(self, number=3):
        self.number, self.closed = number, False
        return Thing(text='guess', reward=None, done=False)

    def step(self, action):
        off = abs(action['guess'] - self.number)
        return Thing(text=f'off by {off}', reward=1.0 if off == 0 else None, done=off == 0)

    def close(self):
        self.closed = True


def test_an_environment_of_results_is_a_conversation():
    made = []
    make = lambda: made.append(Plain()) or made[-1]  # noqa: E731
    env = openenv_environment(make, action=lambda text: {'guess': int(text)}, told=lambda seen: seen.text, max_turns=4)
    assert as_environment(env, 'mine') is env and env.max_turns == 4
    state, messages = begin(env, {'prompt': 'A number!', 'reset': {'number': 5}})
    assert [m['content'] for m in messages] == ['A number!', 'guess']
    state, messages, reward, done = answer(env, state, '3')
    assert (messages[0]['content'], reward, done) == ('off by 2', 0.0, False)
    state, _, reward, done = answer(env, state, '5')
    assert (reward, done) == (1.0, True) and made[0].closed and len(made) == 1
    # A second conversation has an environment of its own; what cannot be an action is one line.
    state, messages = begin(env, {})
    assert [m['content'] for m in messages] == ['guess'] and len(made) == 2
    with pytest.raises(InputError, match=r"step on 'three' raised ValueError"):
        answer(env, state, 'three')
    assert as_json({'text': 'a', 'done': False, 'reward': 1.0}) == 'a'
    assert as_json({'x': 1, 'y': [2], 'metadata': {}}) == '{"x": 1, "y": [2]}'
    with pytest.raises(InputError, match='gave dict, without `done`'):
        begin(openenv_environment(lambda: Thing(reset=lambda: {}), action=str), {})


def test_without_the_package_a_client_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'openenv.core', None)
    with pytest.raises(InputError, match=r"needs the package openenv .*pip install 'rlax_ft\[openenv\]'"):
        openenv_client('http://localhost:1')


def test_openenvs_own_classes_here_and_behind_its_server():
    core = pytest.importorskip('openenv.core.env_server')
    uvicorn = pytest.importorskip('uvicorn')
    from openenv.core.env_server.types import Action, Observation, State

    class Say(Action):
        message: str

    class Heard(Observation):
        echoed: str

    class Echo(core.Environment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self):
            super().__init__()
            self._count = 0

        def reset(self, seed=None, episode_id=None, **_):
            self._count = 0
            return Heard(echoed='ready', done=False, reward=0.0)

        def step(self, action, timeout_s=None, **_):
            self._count += 1
            return Heard(echoed=action.message, done=self._count == 2, reward=float(len(action.message)))

        @property
        def state(self):
            return State(step_count=self._count)

    here = openenv_environment(Echo, action=lambda text: Say(message=text))
    assert talk(here) == EXPECTED
    app = core.create_fastapi_app(Echo, Say, Heard, max_concurrent_envs=4)
    server = uvicorn.Server(uvicorn.Config(app, host='127.0.0.1', port=0, log_level='error'))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.05)
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        make = lambda: openenv_client(f'http://127.0.0.1:{port}')  # noqa: E731
        assert talk(openenv_environment(make, action=lambda text: {'message': text})) == EXPECTED
    finally:
        server.should_exit = True
        thread.join(10)


EXPECTED = [('ready', 0.0, False), ('ab', 2.0, False), ('abc', 3.0, True)]


def talk(env):
    """Two conversations at a time do not disturb each other; what the first was told, with rewards."""
    (state, messages), (other, _) = begin(env, {}), begin(env, {})
    told = [(messages[0]['content'], 0.0, False)]
    for text in ('ab', 'abc'):
        state, messages, reward, done = answer(env, state, text)
        told.append((messages[0]['content'], reward, done))
    assert answer(env, other, 'x')[2:] == (1.0, False)
    return told


def test_without_verifiers_it_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'verifiers', None)
    with pytest.raises(InputError, match=r"needs that package .*pip install 'rlax_ft\[verifiers\]'"):
        verifiers_environment('wordle')


def test_a_multi_turn_environment_of_verifiers():
    vf = pytest.importorskip('verifiers')
    datasets = pytest.importorskip('datasets')

    class Higher(vf.MultiTurnEnv):
        """Says whether the number is higher, until it is found."""

        async def env_response(self, messages, state, **_):
            said = int(messages[-1]['content'])
            if said == int(state['answer']):
                state['final_env_response'] = [{'role': 'user', 'content': 'found'}]
                return state['final_env_response']
            return [{'role': 'user', 'content': 'higher' if said < int(state['answer']) else 'lower'}]

    def few_turns(state, **_):
        return 1.0 / len(state['trajectory'])

    rows = [{'prompt': [{'role': 'user', 'content': 'A number!'}], 'answer': str(i)} for i in (4, 7)]
    theirs = Higher(max_turns=5, dataset=datasets.Dataset.from_list(rows), rubric=vf.Rubric(funcs=[few_turns]))
    env = verifiers_environment(theirs)
    assert as_environment(env, 'higher') is env and env.max_turns == 5
    records = env.records(6, 0)
    assert {r['answer'] for r in records} == {'4', '7'} and records == env.records(6, 0)
    seven = next(r for r in records if r['answer'] == '7')
    (state, messages), (other, _) = begin(env, seven), begin(env, seven)
    assert [m['content'] for m in messages] == ['A number!']
    state, messages, reward, done = answer(env, state, '5')
    assert ([m['content'] for m in messages], reward, done) == (['higher'], 0.0, False)
    assert answer(env, other, '9').messages[0]['content'] == 'lower'
    assert answer(env, state, '7')[2:] == (0.5, True)
    with pytest.raises(InputError, match='ValueError'):
        answer(env, other, 'nine')
    with pytest.raises(InputError, match='--env=no-such-environment: '):
        verifiers_environment('no-such-environment')


def test_tools_of_verifiers_are_called():
    vf = pytest.importorskip('verifiers')
    datasets = pytest.importorskip('datasets')

    async def add(a: int, b: int) -> int:
        """The sum."""
        return a + b

    def right(completion, answer, **_):
        return float(str(completion[-1]['content']).strip() == answer)

    rows = [{'prompt': [{'role': 'user', 'content': '2+3'}], 'answer': '5'}]
    rubric = vf.Rubric(funcs=[right])
    env = verifiers_environment(vf.ToolEnv(tools=[add], dataset=datasets.Dataset.from_list(rows), rubric=rubric))
    assert env.tools[0]['function']['name'] == 'add'
    state, _ = begin(env, env.records(1, 0)[0])
    call = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
    state, messages, _, done = answer(env, state, call)
    assert messages == [{'role': 'tool', 'content': '5'}] and not done
    assert answer(env, state, '5')[2:] == (1.0, True)
