"""Rewards that are rules on text: `(prompt, completion) -> float`.

Leaves out what the model gave as tokens: the caller decodes.
"""

from collections.abc import Callable, Sequence

import numpy as np

Rule = Callable[[str, str], float]


def rule_scores(rule: Rule, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    """The rule's reward of each completion, float32[B]; a rule that counts in whole numbers loses nothing.

    Raises:
      ValueError: the rule gave something that is no finite number; prompt and completion are named.
    """
    scores = np.asarray([float(rule(p, c)) for p, c in zip(prompts, completions)], np.float32)
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f'the reward of {completions[bad]!r} after {prompts[bad]!r} is {scores[bad]}')
    return scores
