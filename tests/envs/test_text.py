"""Text environments: their rules by hand, their optima by other means, the two halves of the grid world alike."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from rlax_ft.envs.text import TextEnvironment, answer, as_environment, begin
from rlax_ft.envs.text_calculator import CALCULATOR, calculate
from rlax_ft.envs.text_grid import ACTIONS, CELLS, GRID_WORDS, PAIRS, distance, grid_world
from rlax_ft.envs.text_questions import COST, PROPERTIES, THINGS, TWENTY_QUESTIONS, best_value
from rlax_ft.envs.text_tools import tool_environment
from rlax_ft.errors import InputError

OURS = (CALCULATOR, TWENTY_QUESTIONS, GRID_WORDS)


def play(env, record, texts):
    """(messages that follow, rewards) of what the assistant says, until it is done."""
    state, _ = begin(env, record)
    told, rewards = [], []
    for text in texts:
        state, messages, reward, done = answer(env, state, text)
        told.append([m['content'] for m in messages])
        rewards.append(reward)
        if done:
            return told, rewards
    return told, [*rewards, None]


def test_calculator():
    record = {'prompt': [{'role': 'user', 'content': '(37+58)*9'}], 'answer': '855'}
    assert play(CALCULATOR, record, [' 37+58=', '95 * 9 =', '855']) == ([['95'], ['855'], []], [0.0, 0.0, 1.0])
    assert play(CALCULATOR, record, ['854']) == ([[]], [0.0])
    assert play(CALCULATOR, record, ['9/0=', '1+1', '855']) == ([['error'], []], [0.0, 0.0])
    assert play(CALCULATOR, record, ['1+1='] * 9)[1] == [0.0] * 4  # It is cut behind four turns.
    assert (calculate('-3-4='), calculate('9999999999*2='), calculate('2**9=')) == ('-7', 'error', 'error')
    for record in CALCULATOR.records(50, 0):
        assert str(eval(record['prompt'][0]['content'])) == record['answer']


def test_twenty_questions():
    record = {'prompt': [{'role': 'user', 'content': 'Which?'}], 'thing': 'whale'}
    told, rewards = play(TWENTY_QUESTIONS, record, ['swims', 'Legs ', 'colour', 'whale'])
    assert told == [['yes'], ['no'], ['what?'], []] and rewards == [-COST] * 3 + [1.0]
    assert play(TWENTY_QUESTIONS, record, ['ship'])[1] == [0.0]


def test_the_optimum_of_twenty_questions():
    # Every thing can be told apart, so a tree of questions exists with which nothing is guessed. Its cost is that of a
    # code, so the Huffman length of 12 equal weights, 44 / 12, is a bound.
    value = best_value(frozenset(THINGS), 20)
    assert value <= 1 - COST * 44 / 12 + 1e-9
    assert value >= 1 - COST * len(PROPERTIES)
    assert best_value(frozenset(['cat']), 20) == 1.0 and best_value(frozenset(['cat', 'oak']), 20) == 1 - COST
    assert best_value(frozenset(THINGS), 1) == pytest.approx(1 / 12)
    # Sets of three by trying every tree: one question singles out one thing, a second decides between two.
    for three in itertools.islice(itertools.combinations(THINGS, 3), 40):
        best = best_value(frozenset(three), 20)
        assert best == pytest.approx(1 - COST * 5 / 3)


def test_the_grid_world_is_one_world():
    env = grid_world()
    step = jax.jit(env.step)
    rng = np.random.default_rng(0)
    for start, goal in PAIRS[rng.integers(len(PAIRS), size=6)].tolist():
        actions = rng.integers(len(ACTIONS), size=12).tolist()
        record = {'prompt': [{'role': 'user', 'content': 'at'}], 'start': start, 'goal': goal}
        told, rewards = play(GRID_WORDS, record, [ACTIONS[a] for a in actions])
        state = (np.int32(start), np.int32(goal), np.int32(0))
        for place, reward, action in zip(told, rewards, actions):
            state, seen = step(jax.random.key(0), state, action)
            assert float(seen.reward) == pytest.approx(reward)
            cell = CELLS[int(np.argmax(seen.observation[: len(CELLS)]))]
            assert place[0].startswith(f'at {cell[0]},{cell[1]} to ')
        assert bool(seen.terminated) and len(told) == len(rewards)
    # Shortest ways by hand, around the walls at 1,1 and 2,1.
    number = CELLS.index
    assert distance(number((1, 0)), number((1, 2))) == 4 and distance(number((0, 0)), number((0, 3))) == 3
    records = [{'start': number((0, 0)), 'goal': number((0, 3))}, {'start': number((1, 0)), 'goal': number((1, 2))}]
    assert GRID_WORDS.optimum(records) == pytest.approx((0.7 + 0.6) / 2)


@pytest.mark.parametrize('env', OURS, ids=lambda env: env.name)
def test_demonstrations_are_conversations_with_the_environment(env):
    shown = env.demonstrations(40, 3)
    assert shown == env.demonstrations(40, 3) and shown != env.demonstrations(40, 4)
    total = []
    for record, one in zip(env.records(40, 3), shown):
        said = [m['content'] for m in one['completion'] if m['role'] == 'assistant']
        told, rewards = play(env, record, said)
        assert None not in rewards and len(told) == len(said)
        others = [m['content'] for m in one['completion'] if m['role'] != 'assistant']
        assert [text for texts in told[:-1] for text in texts] == others
        total.append(sum(rewards))
    assert np.mean(total) < env.optimum(env.records(40, 3)) - 0.05  # There is something to learn.


class Counts:
    """An environment that is no pure function: it counts to three."""

    max_turns = 5

    def reset(self, record):
        self.count = 0
        return [{'role': 'user', 'content': record['prompt']}]

    def step(self, text):
        self.count += 1
        return [{'role': 'user', 'content': str(self.count)}], 0.5, self.count == 3


def test_environments_of_ones_own():
    env = as_environment(Counts, 'mine:Counts')
    first, second = begin(env, {'prompt': 'a'})[0], begin(env, {'prompt': 'b'})[0]
    answer(env, first, 'x')
    assert answer(env, second, 'x').messages[0]['content'] == '1' and env.max_turns == 5
    assert as_environment(lambda: CALCULATOR, 'm:f') is CALCULATOR and as_environment(CALCULATOR, 'm:c') is CALCULATOR
    with pytest.raises(InputError, match='--env=m:f: gave int'):
        as_environment(lambda: 3, 'm:f')


@pytest.mark.parametrize(
    ('step', 'message'),
    [
        (lambda state, text: 1 / 0, 'raised ZeroDivisionError'),
        (lambda state, text: (state, [], float('nan'), True), 'gave the reward nan'),
        (lambda state, text: (state, [], 0.0, False), 'gave no messages and is not done'),
        (lambda state, text: (state, [{'role': 'assistant', 'content': 'x'}], 0.0, False), 'of others was expected'),
        (lambda state, text: (state, ['x'], 0.0, False), 'of others was expected'),
    ],
)
def test_mistakes_of_an_environment_are_one_line(step, message):
    env = TextEnvironment('mine', lambda record: (None, [{'role': 'user', 'content': 'a'}]), step, 3)
    with pytest.raises(InputError, match=message) as caught:
        answer(env, None, 'said')
    assert '\n' not in str(caught.value) and '--env=mine' in str(caught.value)


def look_up(word: str, times: int = 1) -> str:
    """What a word means."""
    return {'one': '1'}[word] * times


def test_tools_are_functions():
    score = lambda record, text: float(text == record['answer'])  # noqa: E731
    env = tool_environment('dictionary', [look_up], score, max_turns=4)
    (schema,) = env.tools
    assert schema['function'] == {
        'name': 'look_up',
        'description': 'What a word means.',
        'parameters': {
            'type': 'object',
            'properties': {'word': {'type': 'string'}, 'times': {'type': 'integer'}},
            'required': ['word'],
        },
    }
    call = lambda text: f'<tool_call>{text}</tool_call>'  # noqa: E731
    good = call('{"name": "look_up", "arguments": {"word": "one", "times": 2}}')
    told, rewards = play(env, {'prompt': 'q', 'answer': '11'}, [f'{good} and {good}', ' 11 '])
    assert told == [['11', '11'], []] and rewards == [0.0, 1.0]
    for wrong, about in (
        ('{', 'JSONDecodeError'),
        ('[1]', 'TypeError'),
        ('{"name": "x"}', "no tool 'x'; there are look_up"),
        ('{"name": "look_up", "arguments": {"words": 1}}', 'TypeError'),
        ('{"name": "look_up", "arguments": {"word": "two"}}', 'KeyError'),
    ):
        (((text,),), _) = play(env, {'prompt': 'q', 'answer': '1'}, [call(wrong)])
        assert text.startswith('error: ') and about in text
    with pytest.raises(InputError, match="tool <lambda>: give the argument 'x' a type"):
        tool_environment('bad', [lambda x: x], score)


def test_the_example_of_the_documentation():
    page = (Path(__file__).parents[2] / 'docs/text_environments.md').read_text()
    names = {}
    exec(page.split('```python\n')[1].split('```')[0], names)
    env = as_environment(names['counts'], 'my_talks:counts')
    assert play(env, {'number': 2}, ['1', '2'])[1] == [1.0, 1.0]
    assert play(env, {'number': 2}, ['2'])[1] == [0.0]
