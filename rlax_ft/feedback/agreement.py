"""How far annotators agree: raw agreement, Cohen's and Fleiss' kappa, Krippendorff's alpha, bootstrap intervals.

Functions of arrays: units by annotators, NaN where somebody did not judge. Leaves out where the arrays come from
(statistics.py).
"""

from collections.abc import Callable

import numpy as np

LEVELS = ('nominal', 'ordinal', 'interval')


def counts_of(values: np.ndarray) -> np.ndarray:
    """How often each value was given to each unit, int[N, C], from float[N, A]; units with fewer than two left out."""
    values = np.asarray(values, float)
    values = values[(~np.isnan(values)).sum(axis=1) > 1] if values.size else values.reshape(0, 1)
    categories = np.unique(values[~np.isnan(values)])
    return (values[:, :, None] == categories).sum(axis=1)


def raw_agreement(counts: np.ndarray) -> float:
    """Share of pairs of annotators of one unit who say the same, the mean over units; NaN without units.

    P = mean_i sum_c n_ic (n_ic - 1) / (n_i (n_i - 1)).

    Args:
      counts: int[N, C], how often unit i was given category c.
    """
    counts = np.asarray(counts, float)
    if not counts.size:
        return float('nan')
    n = counts.sum(axis=1)
    return float(((counts * (counts - 1)).sum(axis=1) / (n * (n - 1))).mean())


def fleiss_kappa(counts: np.ndarray) -> float:
    """(P - P_e) / (1 - P_e), P_e = sum_c p_c^2 with the shares p of all annotators together (Fleiss, 1971).

    Units may have different numbers of annotators. NaN where everybody always says the same.

    Args:
      counts: int[N, C], at least two annotators a unit.
    """
    counts = np.asarray(counts, float)
    if not counts.size:
        return float('nan')
    shares = counts.sum(axis=0) / counts.sum()
    expected = float((shares**2).sum())
    return (raw_agreement(counts) - expected) / (1 - expected) if expected < 1 else float('nan')


def cohen_kappa(a: np.ndarray, b: np.ndarray) -> float:
    """(P - P_e) / (1 - P_e) of two annotators, P_e from the shares of each (Cohen, 1960).

    Args:
      a: float[N], values by one; NaN where he did not judge.
      b: float[N], by the other.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    both = ~np.isnan(a) & ~np.isnan(b)
    a, b = a[both], b[both]
    if not len(a):
        return float('nan')
    expected = sum((a == c).mean() * (b == c).mean() for c in np.unique(np.concatenate([a, b])))
    return float(((a == b).mean() - expected) / (1 - expected)) if expected < 1 else float('nan')


def mean_cohen_kappa(values: np.ndarray) -> float:
    """Cohen's kappa of every two annotators, weighted by the units that both judged; NaN where no two share any."""
    total = weight = 0.0
    for i in range(values.shape[1]):
        for j in range(i):
            both = int((~np.isnan(values[:, i]) & ~np.isnan(values[:, j])).sum())
            kappa = cohen_kappa(values[:, i], values[:, j]) if both else float('nan')
            if not np.isnan(kappa):
                total, weight = total + both * kappa, weight + both
    return total / weight if weight else float('nan')


def krippendorff_alpha(values: np.ndarray, level: str = 'nominal') -> float:
    """1 - D_o / D_e, observed over expected disagreement of the values that can be paired (Krippendorff, 2011).

    Args:
      values: float[N, A], NaN where somebody did not judge.
      level: `nominal` (the same or not), `ordinal` (squared distance in ranks) or `interval` (squared difference).

    Returns:
      alpha; NaN where no unit has two values, or all values are the same.

    Raises:
      ValueError: another level.
    """
    if level not in LEVELS:
        raise ValueError(f'level={level!r}; one of {", ".join(LEVELS)}')
    counts = counts_of(values).astype(float)
    if not counts.size:
        return float('nan')
    seen = np.asarray(values, float)
    seen = seen[(~np.isnan(seen)).sum(axis=1) > 1]
    categories = np.unique(seen[~np.isnan(seen)])
    n_units = counts.sum(axis=1)
    # Coincidences o_ck = sum_u n_uc (n_uk - [c = k]) / (n_u - 1).
    coincidences = (counts / (n_units - 1)[:, None]).T @ counts
    coincidences -= np.diag((counts / (n_units - 1)[:, None]).sum(axis=0))
    n_c = coincidences.sum(axis=1)
    distance = _distance(categories, n_c, level)
    expected = (np.outer(n_c, n_c) * distance).sum() / (n_c.sum() - 1)
    return float(1 - (coincidences * distance).sum() / expected) if expected > 0 else float('nan')


def _distance(categories, n_c, level):
    if level == 'nominal':
        return 1.0 - np.eye(len(categories))
    if level == 'interval':
        return (categories[:, None] - categories) ** 2
    # (sum of n_g from c to k, minus half of both ends)^2.
    middle = np.cumsum(n_c) - n_c / 2
    return (middle[:, None] - middle) ** 2


def interval(
    statistic: Callable[[np.ndarray], float], values: np.ndarray, *, groups=None, seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
    """A 95 % bootstrap interval of a statistic of units; NaNs where it cannot be said.

    Args:
      statistic: `f(values[N, ...]) -> float`.
      values: float[N, ...], one row a unit.
      groups: int[N] or None; units of one group (the pairs of one ranking) are drawn together.
      seed: of the resampling.
      resamples: how many.
    """
    if not len(values):
        return float('nan'), float('nan')
    rng = np.random.default_rng(seed)
    groups = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    order, sizes = np.argsort(groups, kind='stable'), np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    drawn = []
    for _ in range(resamples):
        picked = rng.integers(len(sizes), size=len(sizes))
        # Every unit of the groups that were drawn: where each begins, and its place within.
        within = np.arange(sizes[picked].sum()) - np.repeat(np.cumsum(sizes[picked]) - sizes[picked], sizes[picked])
        drawn.append(statistic(values[order[np.repeat(starts[picked], sizes[picked]) + within]]))
    found = np.asarray(drawn)
    found = found[~np.isnan(found)]
    if len(found) < 2:
        return float('nan'), float('nan')
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)
