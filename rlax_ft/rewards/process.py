"""Rewards for each step of a completion, put on the tokens with which the steps end.

A process reward is `f(records, completions) -> for each completion a list with a number for each of its steps`; steps
are what a pattern parts, lines by default (`steps_of`). Leaves out advantages (ops/process.py, ops/returns.py).
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.errors import InputError
from rlax_ft.types import Rollout


def steps_of(text: str, pattern: str = r'\n+') -> list[str]:
    """The steps of a completion: what stands between matches of the pattern, blank ones left out."""
    return [text[start:end] for start, end in _spans(text, pattern)]


def process_rewards(
    reward: Callable[[list[dict], list[str]], Sequence[Sequence[float]]],
    records: list[dict],
    rollout: Rollout,
    codec: Codec,
    *,
    pattern: str = r'\n+',
    name: str = 'process reward',
) -> tuple[np.ndarray, np.ndarray]:
    """Each step's reward on its last token.

    Args:
      reward: a process reward.
      records: B.
      rollout: of their completions [B, N].
      codec: that the completions were sampled with.
      pattern: what parts steps, as in `steps_of`.
      name: for messages.

    Returns:
      (rewards float32[B, N], ends bool[B, N], True where a step ends). Steps that end within one token add up there.

    Raises:
      InputError: the reward gave another number of steps, or a number that is not finite.
    """
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    completions, _ = codec.decode(rollout)
    given = reward(list(records), completions)
    try:
        given = [[float(value) for value in values] for values in given]
    except (TypeError, ValueError) as error:
        raise InputError(
            f'{name}: gave {str(given)[:60]}; for each completion a list of numbers was expected'
        ) from error
    if len(given) != len(completions):
        raise InputError(f'{name}: gave {len(given)} lists for {len(completions)} completions')
    rewards, ends = np.zeros(tokens.shape, np.float32), np.zeros(tokens.shape, bool)
    for row, (text, values) in enumerate(zip(completions, given)):
        spans = _spans(text, pattern)
        if len(values) != len(spans) or not np.isfinite(np.asarray(values, np.float64)).all():
            raise InputError(
                f'{name}: gave {values!r} for the {len(spans)} steps of {text[:60]!r}; a finite number each was '
                'expected'
            )
        places = np.flatnonzero(mask[row])
        ids = tokens[row][places].tolist()
        for (_, end), value in zip(spans, values):
            place = places[_token_at(codec, ids, text[:end])]
            rewards[row, place] += value
            ends[row, place] = True
    return rewards, ends


def _spans(text, pattern):
    parts, start = [], 0
    for match in re.finditer(pattern, text):
        parts.append((start, match.start()))
        start = match.end()
    parts.append((start, len(text)))
    return [(a, b) for a, b in parts if text[a:b].strip()]


def _token_at(codec, ids, start):
    """The token with which the decoded text has this start whole, found by halving."""
    low, high = 0, len(ids) - 1
    while low < high:
        middle = (low + high) // 2
        if codec.tokenizer.decode(ids[: middle + 1], skip_special_tokens=True).startswith(start):
            high = middle
        else:
            low = middle + 1
    return low
