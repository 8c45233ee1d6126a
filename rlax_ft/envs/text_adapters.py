"""Environments of other libraries as text environments: OpenEnv's, in this process or served elsewhere.

An OpenEnv environment (or a client of one) has `reset(**fields)` and `step(action)`, whose results are observations
with `reward` and `done`. What its actions and observations are in words is told by two functions of the user. Leaves
out starting servers: that is OpenEnv's.
"""

import json
from collections.abc import Callable
from typing import Any

from rlax_ft.envs.text import TextEnvironment, TextStep
from rlax_ft.errors import InputError

# What every observation has, and no assistant reads.
_COMMON = ('reward', 'done', 'metadata')


def openenv_environment(
    make: Callable[[], Any],
    *,
    action: Callable[[str], Any],
    told: Callable[[Any], str] | None = None,
    name: str = 'openenv',
    max_turns: int = 16,
    tools: tuple[dict, ...] = (),
) -> TextEnvironment:
    """An OpenEnv environment as a text environment.

    A record's `reset`, an object, is given to the environment's `reset` (its seed, task or index); its `prompt`, if it
    has one, is said before the first observation. A reward of None counts as 0.

    Args:
      make: gives, for each conversation, a fresh environment, or a client with blocking calls (`client.sync()`).
      action: what the assistant said -> an action of the environment.
      told: an observation -> what the assistant reads; its fields as JSON when absent.
      name: for messages of mistakes.
      max_turns: of the assistant.
      tools: JSON schemas that the chat template shows.
    """
    told = told or as_json

    def reset(record):
        one = make()
        observation, _, _ = _result(one.reset(**record.get('reset', {})), name)
        prompt = record.get('prompt', [])
        prompt = [_says(prompt)] if isinstance(prompt, str) and prompt else list(prompt)
        said = told(observation)
        return one, [*prompt, *([_says(said)] if said or not prompt else [])]

    def step(one, text):
        observation, reward, done = _result(one.step(action(text)), name)
        if done and callable(getattr(one, 'close', None)):
            one.close()
        return TextStep(one, [_says(told(observation))], reward, done)

    return TextEnvironment(name, reset, step, max_turns, tools)


def openenv_client(url: str):
    """A blocking client of an OpenEnv server at that address; its actions and observations are dicts.

    Raises:
      InputError: OpenEnv (the extra `openenv`) is not installed.
    """
    try:
        from openenv.core import GenericEnvClient
    except ImportError as error:
        raise InputError(
            f"OpenEnv at {url}: needs the package openenv ({error}); pip install 'rlax_ft[openenv]'"
        ) from error
    return GenericEnvClient(base_url=url).sync()


def as_json(observation: Any) -> str:
    """The fields of an observation that are its own, as JSON; a single text as it is."""
    fields = observation if isinstance(observation, dict) else observation.model_dump()
    fields = {key: value for key, value in fields.items() if key not in _COMMON}
    if len(fields) == 1 and isinstance(next(iter(fields.values())), str):
        return next(iter(fields.values()))
    return json.dumps(fields, default=str)


def _result(result, name):
    """(observation, reward, done) of an environment's observation or of a client's result."""
    observation = getattr(result, 'observation', result)
    reward, done = getattr(result, 'reward', None), getattr(result, 'done', None)
    if done is None:
        raise InputError(f'--env={name}: gave {type(result).__name__}, without `done`; an OpenEnv result was expected')
    return observation, float(reward or 0.0), bool(done)


def _says(text):
    return {'role': 'user', 'content': text}
