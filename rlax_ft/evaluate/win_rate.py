"""Win rates and accuracies with their intervals.

Leaves out who judges: these are functions of numbers.
"""

import math

import numpy as np


def win_rate(
    ours: np.ndarray, theirs: np.ndarray, *, seed: int = 0, resamples: int = 2000
) -> tuple[float, float, float]:
    """How often ours beats theirs on the same prompt, a tie being half a win, with a 95 % bootstrap interval.

    Args:
      ours: float[N], a judge's score of our completion of each prompt.
      theirs: float[N], of theirs.
      seed: of the bootstrap.
      resamples: number of bootstrap samples over prompts.

    Returns:
      (rate, lower, upper), each in [0, 1].
    """
    wins = (1.0 + np.sign(np.asarray(ours) - np.asarray(theirs))) / 2.0
    rng = np.random.default_rng(seed)
    rates = wins[rng.integers(len(wins), size=(resamples, len(wins)))].mean(axis=1)
    lower, upper = np.percentile(rates, [2.5, 97.5])
    return float(wins.mean()), float(lower), float(upper)


def accuracy_interval(right: float, total: int) -> tuple[float, float, float]:
    """A share with its 95 % Wilson interval: (p, lower, upper).

    Args:
      right: number of successes; halves are allowed for ties.
      total: number of trials, at least 1.
    """
    z = 1.959964
    p = float(right) / total
    center = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return p, center - half, center + half


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, *, seed: int = 0, resamples: int = 2000
) -> tuple[float, float, float]:
    """Mean of ours less mean of theirs on the same examples, with a 95 % bootstrap interval over examples.

    Args:
      ours: float[N] or bool[N].
      theirs: the same of the other.
      seed: of the bootstrap.
      resamples: number of bootstrap samples.
    """
    gaps = np.asarray(ours, float) - np.asarray(theirs, float)
    means = gaps[np.random.default_rng(seed).integers(len(gaps), size=(resamples, len(gaps)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(gaps.mean()), float(low), float(high)


def separation(scores: np.ndarray, good: np.ndarray) -> tuple[float, float, float]:
    """How often a good answer scores above a bad one, ties half, with its 95 % interval.

    The interval has all shares that lie within 1.96 of their own standard errors (Hanley and McNeil, 1982; Newcombe,
    2006), so that it stays open where all pairs are in order: none of a few answers out of order proves little.

    Args:
      scores: float[N].
      good: bool[N], with at least one of each kind.

    Returns:
      (share, lower, upper), each in [0, 1]: the area under the ROC curve.
    """
    scores, good = np.asarray(scores), np.asarray(good, bool)
    ups, downs = scores[good], np.sort(scores[~good])
    below, upto = np.searchsorted(downs, ups, 'left'), np.searchsorted(downs, ups, 'right')
    a = float((below + upto).mean()) / (2 * len(downs))
    m, n = len(ups), len(downs)

    def within(share):
        spread = (m - 1) * (share / (2 - share) - share**2) + (n - 1) * (2 * share**2 / (1 + share) - share**2)
        return abs(a - share) <= 1.959964 * math.sqrt(max(share * (1 - share) + spread, 0.0) / (m * n))

    return a, _edge(within, a, 0.0), _edge(within, a, 1.0)


def _edge(within, inside, outside):
    """Where an interval ends, between a number in it and one that is not, by bisection."""
    for _ in range(50):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if within(middle) else (inside, middle)
    return inside


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of two float[N]; 0 where one of them does not vary."""
    if np.std(a) == 0 or np.std(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def length_baseline(train_chosen, train_rejected, chosen, rejected) -> float:
    """Accuracy on held-out pairs of a judge that knows only which text is longer.

    Whether longer or shorter wins is learned from the training pairs; equal lengths count half.

    Args:
      train_chosen: [N], lengths of chosen responses in training.
      train_rejected: [N], of rejected ones.
      chosen: [M], held out.
      rejected: [M].
    """
    prefers_longer = np.sign(np.asarray(train_chosen) - np.asarray(train_rejected)).mean() >= 0
    difference = np.sign(np.asarray(chosen) - np.asarray(rejected)) * (1 if prefers_longer else -1)
    return float(((1 + difference) / 2).mean())
