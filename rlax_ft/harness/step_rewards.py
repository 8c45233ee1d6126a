"""Rewards of single steps that --process_reward names: a process reward model's, or a function's of the user.

Leaves out advantages (ops/process.py), and where the steps of a text end (rewards/process.py).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.errors import InputError
from rlax_ft.harness.loading import find_function
from rlax_ft.harness.rewards import check_vocabulary
from rlax_ft.harness.settings import flag
from rlax_ft.harness.starting_model import model_folder
from rlax_ft.parallel.placement import fetch, spread
from rlax_ft.rewards.learned import load_reward_model
from rlax_ft.rewards.process import process_rewards
from rlax_ft.types import BranchBatch, Rollout


@dataclasses.dataclass(frozen=True)
class ProcessSettings:
    """Flags of rewards for single steps."""

    group: ClassVar[str] = 'algorithm'

    process_reward: str = flag(
        '',
        'Rewards of the steps of a completion, beside --reward: the run folder of reward_model.py --loss=step, or '
        'MODULE:FUNCTION or FILE.py:FUNCTION of (records, completions) -> for each completion a number for each line.',
    )
    process_weight: float = flag(1.0, "Of the steps' advantages in the sum.", needs='process_reward')
    process_steps: str = flag(
        r'\n+', 'What parts the steps that a function rewards, a regular expression.', needs='process_reward'
    )


def check_step_reward(settings) -> None:
    """Looks what --process_reward names up, before a model is loaded.

    Raises:
      InputError: it is no function and no folder that holds a model.
    """
    name = settings.process_reward
    if name and _function(name) is None:
        model_folder(name, 'process_reward')


def _function(name):
    """The function that MODULE:FUNCTION stands for; None for a folder."""
    return find_function(name, 'process_reward') if ':' in name and not Path(name).exists() else None


def make_step_rewards(settings, codec: Codec) -> Callable | None:
    """`steps(tokens, rollout, records) -> (rewards float32[B, N], ends bool[B, N])`; None where none are asked for.

    A model's rewards are its probabilities that a step is right.

    Args:
      settings: with `ProcessSettings` among them.
      codec: of the policy.

    Raises:
      InputError: what --process_reward names is no function and no process reward model.
    """
    name = settings.process_reward
    if not name:
        return None
    function = _function(name)
    if function is not None:
        how = dict(pattern=settings.process_steps, name=f'--process_reward={name}')
        return lambda tokens, rollout, records: process_rewards(
            _guarded(function, name), records, rollout, codec, **how
        )
    model, tokenizer = load_reward_model(model_folder(name, 'process_reward'))
    if getattr(model, 'step_ends', None) is None:
        raise InputError(
            f'--process_reward={name}: scores whole answers; give a model of reward_model.py --loss=step, or '
            'MODULE:FUNCTION'
        )
    check_vocabulary(f'--process_reward={name}', tokenizer, codec)
    judge = jax.jit(lambda model, tokens: model.steps(tokens))

    def steps(tokens: BranchBatch, rollout: Rollout, records: list[dict]):
        return tuple(map(np.asarray, fetch(judge(model, spread(tokens)))))

    return steps


def step_metrics(rewards: np.ndarray, ends: np.ndarray) -> dict[str, float]:
    """The mean reward of a step, and how many steps a completion has."""
    return {
        'process/reward': float(rewards[ends].mean()) if ends.any() else 0.0,
        'process/steps': float(ends.sum(axis=1).mean()),
    }


def _guarded(function, name):
    def call(records, completions):
        try:
            return function(records, completions)
        except InputError:
            raise
        except Exception as error:  # A user's function may raise whatever it likes.
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
            raise InputError(f'--process_reward={name}: raised {reason}') from error

    return call
