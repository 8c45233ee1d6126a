"""A judge of answers on comparisons {prompt, chosen, rejected, subset}: accuracy by subset, biases, calibration.

A judge is anything that gives a margin for each pair: a reward model r(chosen) - r(rejected), a policy's implicit
reward, a function, or a judge of two texts asked in both orders. Leaves out the judge.
"""

from collections.abc import Sequence

import numpy as np

from rlax_ft.evaluate.calibration import fit_temperature, preference_nll, reliability
from rlax_ft.evaluate.win_rate import accuracy_interval

# The subset of records that name none.
ALL = 'all'


def subset_accuracies(margins: np.ndarray, subsets: Sequence[str]) -> list[dict]:
    """Accuracy of each subset in its order of appearance, then of all pairs, and the mean over subsets.

    Args:
      margins: float[N]; above 0 is right, 0 half right.
      subsets: N names.

    Returns:
      Records {"subset", "pairs", "accuracy", "low", "high"}, intervals of 95 % after Wilson; the mean over subsets,
      "mean of subsets", which weighs small ones as much as large ones, has none.
    """
    right = (1.0 + np.sign(np.asarray(margins, np.float64))) / 2.0
    names = np.asarray(subsets, object)
    rows = []
    for name in list(dict.fromkeys(subsets)):
        rows.append(_accuracy(name, right[names == name]))
    if len(rows) > 1:
        mean = float(np.mean([row['accuracy'] for row in rows]))
        rows += [_accuracy(ALL, right), {'subset': 'mean of subsets', 'pairs': len(right), 'accuracy': mean}]
    return rows


def length_bias(margins: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> dict[str, float]:
    """How much a judge goes by length.

    Args:
      margins: float[N].
      chosen: [N], lengths of the chosen texts.
      rejected: [N].

    Returns:
      `prefers_longer`, how often the longer text wins, which a judge without a bias does as often as
      `chosen_is_longer`; `accuracy_longer` and `accuracy_shorter`, the accuracy where the chosen text is the longer and
      where it is the shorter one; `length_correlation` of the margin with the difference in length. Equal lengths do
      not count. What no pair says is left out.
    """
    margins, difference = np.asarray(margins, np.float64), np.asarray(chosen, np.float64) - np.asarray(rejected)
    right = (1.0 + np.sign(margins)) / 2.0
    longer, shorter = difference > 0, difference < 0
    found: dict[str, float] = {}
    if longer.any() or shorter.any():
        wins = np.where(longer, right, 1.0 - right)[longer | shorter]
        found |= {'prefers_longer': float(wins.mean()), 'chosen_is_longer': float(longer.sum() / len(wins))}
    for name, where in (('accuracy_longer', longer), ('accuracy_shorter', shorter)):
        if where.any():
            found[name] = float(right[where].mean())
    if np.std(margins) > 0 and np.std(difference) > 0:
        found['length_correlation'] = float(np.corrcoef(margins, difference)[0, 1])
    return found


def calibration(margins: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """Calibration of sigma(margin): error and log-likelihood, before and after a temperature of its own.

    The temperature is fitted on one half of the pairs and measured on the other, and the other way round, so that
    `ece_fitted` and `nll_fitted` are of pairs that it has not seen.

    Args:
      margins: float[N].
      seed: of the halves.
    """
    margins = np.asarray(margins, np.float64)
    order = np.random.default_rng(seed).permutation(len(margins))
    found = {
        'ece': reliability(margins).error,
        'nll': preference_nll(margins),
        'temperature': fit_temperature(margins),
    }
    if len(margins) > 1:
        scaled = np.empty_like(margins)
        for fit, measure in ((order[::2], order[1::2]), (order[1::2], order[::2])):
            scaled[measure] = margins[measure] / fit_temperature(margins[fit])
        found |= {'ece_fitted': reliability(scaled).error, 'nll_fitted': preference_nll(scaled)}
    return found


def _accuracy(name, right):
    accuracy, low, high = accuracy_interval(right.sum(), len(right))
    return {'subset': name, 'pairs': len(right), 'accuracy': accuracy, 'low': low, 'high': high}
