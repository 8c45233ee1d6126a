"""Environments of `verifiers` (0.1, as on the Environments Hub) as text environments.

There the environment drives the conversation and asks a client for what the model says. Here it is asked turn by turn:
each conversation is a rollout of theirs in a thread of event loops, and its client waits for our policy's text. Leaves
out their samplers, trainers and sandboxes.
"""

import asyncio
import itertools
import json
import queue
import re
import threading
from typing import Any

import numpy as np

from rlax_ft.envs.text import TextEnvironment, TextStep
from rlax_ft.errors import InputError

_LOOP: list[asyncio.AbstractEventLoop] = []
_CALL = re.compile(r'<tool_call>(.*?)</tool_call>', re.DOTALL)


def verifiers_environment(env: Any, *, name: str = '', max_turns: int = 0, seconds: float = 300.0) -> TextEnvironment:
    """An environment of verifiers as a text environment, with its data set as records and its rubric as the reward.

    Args:
      env: an environment, or the id that `verifiers.load_environment` takes.
      name: for messages of mistakes.
      max_turns: of the assistant; 0: the environment's own, or 16.
      seconds: that it may take to answer a turn.

    Raises:
      InputError: verifiers (the extra `verifiers`) is not installed, or has no such environment.
    """
    library = _library()
    name = name or (env if isinstance(env, str) else type(env).__name__)
    if isinstance(env, str):
        try:
            env = library.load_environment(env)
        except Exception as error:  # Loading runs a stranger's code.
            raise InputError(f'--env={name}: {" ".join(str(error).split())}') from error
    tools = [
        {'type': 'function', 'function': {k: getattr(tool, k) for k in ('name', 'description', 'parameters')}}
        for tool in getattr(env, 'tool_defs', None) or ()
    ]

    def reset(record):
        play = _Play(env, record, name, seconds)
        kind, messages = play.wait()
        if kind == 'done':
            raise InputError(f'--env={name}: asked for nothing before it was done')
        return play, messages

    def step(play, text):
        play.say(text)
        kind, value = play.wait()
        return TextStep(play, [], value, True) if kind == 'done' else TextStep(play, value, 0.0, False)

    def records(count, seed):
        rows = env.get_dataset().to_list()
        return [rows[i] for i in np.random.default_rng([seed, 2]).integers(len(rows), size=count)]

    turns = max_turns or max(getattr(env, 'max_turns', 0), 0) or 16
    return TextEnvironment(name, reset, step, turns, tuple(tools), records=records)


class _Play:
    """One of their rollouts, which waits for what the policy says wherever it asks for it."""

    def __init__(self, env, record, name, seconds):
        self._env, self._name, self._seconds = env, name, seconds
        self._told, self._said, self._read = queue.Queue(), None, 0
        self.chat = self.completions = self  # client.chat.completions.create
        asyncio.run_coroutine_threadsafe(self._run(record), _loop())

    async def _run(self, record):
        try:
            from verifiers.clients import OpenAIChatCompletionsClient

            row = {'example_id': 0} | record
            state = await self._env.rollout(row, OpenAIChatCompletionsClient(self), 'policy', {})
            if state.get('error') is not None:
                raise state['error']
            await self._env.rubric.score_rollout(state)
            self._told.put(('done', float(state['reward'] or 0.0)))
        except Exception as error:  # A stranger's environment may raise whatever it likes.
            self._told.put(('failed', error))

    async def create(self, *, messages, **_):
        """What their client asks for: a completion of these messages."""
        self._said = asyncio.get_running_loop().create_future()
        new, self._read = messages[self._read :], len(messages) + 1  # The policy's own turn comes in between.
        self._told.put(('asked', list(itertools.chain.from_iterable(map(_plain, new)))))
        return _completion(await self._said)

    def say(self, text: str):
        """Gives the rollout the policy's turn."""
        _loop().call_soon_threadsafe(self._said.set_result, text)

    def wait(self):
        """('asked', messages that are new) or ('done', reward)."""
        try:
            kind, value = self._told.get(timeout=self._seconds)
        except queue.Empty:
            raise InputError(f'--env={self._name}: gave no answer within {self._seconds:g} seconds') from None
        if kind == 'failed':
            raise InputError(f'--env={self._name}: {type(value).__name__}: {" ".join(str(value).split())}') from value
        return kind, value


def _plain(message):
    """A message as {"role", "content"}, its text parts joined; nothing of one without text."""
    content = message.get('content') or ''
    if not isinstance(content, str):
        content = ''.join(part.get('text', '') for part in content)
    return [{'role': message['role'], 'content': content}] if content else []


def _completion(text):
    """A ChatCompletion with that text; calls in <tool_call> marks are tool calls, and what is no call stays text."""
    from openai.types.chat import ChatCompletion

    calls = []
    for number, found in enumerate(_CALL.findall(text)):
        try:
            call = json.loads(found)
            arguments = call.get('arguments') or {}
            given = arguments if isinstance(arguments, str) else json.dumps(arguments)
            function = {'name': str(call['name']), 'arguments': given}
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        calls.append({'id': f'call_{number}', 'type': 'function', 'function': function})
    # An empty answer would end their rollout as a failure of the server.
    message = {'role': 'assistant', 'content': text or ' ', 'tool_calls': calls or None}
    choice = {'index': 0, 'finish_reason': 'tool_calls' if calls else 'stop', 'message': message}
    shared = {'id': 'policy', 'created': 0, 'model': 'policy', 'object': 'chat.completion'}
    return ChatCompletion.model_validate({**shared, 'choices': [choice]})


def _library():
    try:
        import verifiers
    except ImportError as error:
        raise InputError(
            f"an environment of verifiers: needs that package ({error}); pip install 'rlax_ft[verifiers]'"
        ) from error
    if not hasattr(verifiers, 'MultiTurnEnv'):
        version = getattr(verifiers, '__version__', 'this version')
        raise InputError(f"verifiers {version}: has no MultiTurnEnv; pip install 'rlax_ft[verifiers]' gives 0.1")
    return verifiers


def _loop():
    """The event loop of all conversations, in a thread of its own."""
    if not _LOOP:
        _LOOP.append(asyncio.new_event_loop())
        threading.Thread(target=_LOOP[0].run_forever, daemon=True).start()
    return _LOOP[0]
