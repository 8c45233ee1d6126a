"""What a text environment is: a conversation that begins with messages, and answers what the assistant says.

    reset(record) -> (state, messages)
    step(state, text) -> TextStep(state, messages, reward, done)

A pure environment keeps everything in its state, any Python value. One that is not (a game server, a shell, a class
with fields) is wrapped by `from_object`, whose state is the object itself, made afresh for each conversation. Messages
are {"role", "content"}; what a tool answers has the role `tool`. Leaves out tokens and policies
(harness/conversations.py).
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rlax_ft.errors import InputError


class TextStep(NamedTuple):
    """What an environment answers to what the assistant said.

    Attributes:
      state: of the conversation from here on.
      messages: what the assistant reads next; none need be given where the conversation is done.
      reward: of this turn.
      done: nothing follows.
    """

    state: Any
    messages: list[dict]
    reward: float
    done: bool


@dataclasses.dataclass(frozen=True)
class TextEnvironment:
    """A pair of functions on text.

    Attributes:
      name: as the user gave it.
      reset: record -> (state, messages); the same record begins the same conversation.
      step: (state, the assistant's text) -> TextStep.
      max_turns: of the assistant; a conversation is cut behind the last one.
      tools: JSON schemas that the chat template shows the assistant.
      records: (count, seed) -> the environment's own records, each with a `prompt`; None where --data has to give them.
      demonstrate: (record, numpy generator) -> a conversation as an assistant might have it, messages behind the
        prompt's; None where there are no demonstrations.
      optimum: records -> the best expected sum of rewards over them; None where it is not known.
    """

    name: str
    reset: Callable[[dict], tuple[Any, list[dict]]]
    step: Callable[[Any, str], TextStep]
    max_turns: int
    tools: tuple[dict, ...] = ()
    records: Callable[[int, int], list[dict]] | None = None
    demonstrate: Callable | None = None
    optimum: Callable[[list[dict]], float] | None = None

    def demonstrations(self, count: int, seed: int) -> list[dict]:
        """`count` records {"prompt", "completion"} of whole conversations, for sft.py; the same seed gives the same.

        Raises:
          InputError: the environment has none.
        """
        if self.records is None or self.demonstrate is None:
            raise InputError(f'--env={self.name}: has no demonstrations of its own')
        rng = np.random.default_rng([seed, 1])
        return [
            {'prompt': self.reset(record)[1], 'completion': self.demonstrate(record, rng)}
            for record in self.records(count, seed)
        ]


def from_object(
    name: str, make: Callable[[], Any], *, max_turns: int = 16, tools: tuple[dict, ...] = ()
) -> TextEnvironment:
    """An environment of objects with `reset(record) -> messages` and `step(text) -> (messages, reward, done)`.

    Args:
      name: for messages of mistakes.
      make: gives a fresh object for each conversation.
      max_turns: of the assistant.
      tools: JSON schemas.
    """

    def reset(record):
        one = make()
        return one, one.reset(record)

    def step(one, text):
        return TextStep(one, *one.step(text))

    return TextEnvironment(name, reset, step, max_turns, tools)


def as_environment(found: Any, name: str) -> TextEnvironment:
    """A TextEnvironment from what a user names: the environment, what returns one, or a class of objects.

    Args:
      found: what MODULE:FUNCTION names.
      name: as the user gave it.

    Raises:
      InputError: it is none of these.
    """
    if isinstance(found, TextEnvironment):
        return found
    if inspect.isclass(found) and callable(getattr(found, 'reset', None)) and callable(getattr(found, 'step', None)):
        turns = getattr(found, 'max_turns', 16)
        return from_object(name, found, max_turns=turns, tools=tuple(getattr(found, 'tools', ())))
    try:
        made = found()
    except Exception as error:  # A user's function may raise whatever it likes.
        raise InputError(f'--env={name}: raised {type(error).__name__}: {error}'.replace('\n', ' ')) from error
    if isinstance(made, TextEnvironment):
        return made
    raise InputError(
        f'--env={name}: gave {type(made).__name__}; a TextEnvironment, or a class with reset(record) -> messages and '
        'step(text) -> (messages, reward, done) was expected'
    )


def begin(env: TextEnvironment, record: dict) -> tuple[Any, list[dict]]:
    """`env.reset`, its answer checked.

    Raises:
      InputError: it raised, or its messages are none.
    """
    try:
        state, messages = env.reset(record)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f'--env={env.name}: reset raised {_named(error)}') from error
    if not messages:
        raise InputError(f'--env={env.name}: reset gave no messages; the assistant has to read something')
    return state, _checked(messages, f'--env={env.name}: reset')


def answer(env: TextEnvironment, state: Any, text: str) -> TextStep:
    """`env.step`, its answer checked.

    Raises:
      InputError: it raised, its reward is no finite number, or it has nothing to say and is not done.
    """
    where = f'--env={env.name}: step on {text[:60]!r}'
    try:
        state, messages, reward, done = env.step(state, text)
        reward = float(reward)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f'{where} raised {_named(error)}') from error
    if not math.isfinite(reward):
        raise InputError(f'{where} gave the reward {reward}; a finite number was expected')
    if not messages and not done:
        raise InputError(f'{where} gave no messages and is not done')
    return TextStep(state, _checked(messages, where), reward, bool(done))


def _checked(messages, where):
    for message in messages:
        fits = isinstance(message, dict) and all(isinstance(message.get(k), str) for k in ('role', 'content'))
        if not fits or message['role'] == 'assistant':
            raise InputError(f'{where} gave {message!r}; a message {{"role", "content"}} of others was expected')
    return list(messages)


def _named(error):
    return ' '.join(f'{type(error).__name__}: {error}'.split())
