"""Rewards that are functions of records and completions, and the rule of one prompt and one completion made into one.

    def reward(records, completions, **info) -> a number for each    # a batch, with every field of the data
    def rule(prompt, completion) -> a number                         # one at a time, texts alone

A function whose first argument is called `records` is given the batch. Leaves out rewards that are models (learned.py).
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlax_ft.data.records import plain_text
from rlax_ft.errors import InputError
from rlax_ft.types import RewardFn

Rule = Callable[[str, str], float]


def as_reward(function: RewardFn | Rule) -> RewardFn:
    """The function as `f(records, completions, **info) -> sequence of float`; a rule sees a message list as text.

    Raises:
      InputError: it takes neither (records, completions) nor (prompt, completion).
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise InputError(f'a reward needs a signature to look at ({error})') from error
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    if len(positional) < 2 or len(required) > 2:
        raise InputError(
            f'a reward takes (records, completions, **info) or (prompt, completion); found ({", ".join(parameters)})'
        )
    given: Callable[..., Any] = function  # Which of both it is its first argument says.
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if positional[0].name == 'records':
        known = lambda info: {k: v for k, v in info.items() if takes_any or k in parameters}  # noqa: E731
        return lambda records, completions, **info: given(records, completions, **known(info))
    return lambda records, completions, **_: [
        given(plain_text(record['prompt']), completion) for record, completion in zip(records, completions)
    ]


def reward_scores(
    reward: RewardFn, records: Sequence[dict], completions: Sequence[str], *, name: str = 'reward', **info
) -> np.ndarray:
    """The reward of each completion, float32[B]; whole numbers, and true and false, lose nothing.

    Args:
      reward: `f(records, completions, **info)`.
      records: B records, a completion each.
      completions: B texts.
      name: of the reward, for messages.
      **info: what else the reward may ask for.

    Raises:
      InputError: it raised something, or gave another count, None, or a number that is not finite; the first
        completion concerned is named.
    """
    try:
        given = reward(list(records), list(completions), **info)
    except InputError:
        raise
    except Exception as error:  # A user's function may raise whatever it likes.
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise InputError(f'{name}: raised {reason} on completions such as {completions[0]!r}') from error
    if given is None or np.ndim(given) == 0 or len(given) != len(completions):
        found = 'a single value' if given is None or np.ndim(given) == 0 else f'{len(given)} values'
        raise InputError(f'{name}: gave {found} for {len(completions)} completions; one number each was expected')
    scores = np.zeros(len(completions), np.float32)
    for i, value in enumerate(given):
        try:
            scores[i] = float(value)
        except OverflowError:  # A whole number that no float holds.
            value = scores[i] = math.inf
        except (TypeError, ValueError) as error:
            raise InputError(f'{name}: gave {value!r} for {completions[i]!r}; a number was expected') from error
        if not np.isfinite(scores[i]):
            raise InputError(f'{name}: gave {value} for {completions[i]!r}; a finite number was expected')
    return scores
