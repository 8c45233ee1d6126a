"""Intervals of means: over samples by the bootstrap, over seeds by Student's t."""

import numpy as np
from scipy.special import stdtrit


def mean_interval(values: np.ndarray, *, seed: int = 0, resamples: int = 1000) -> tuple[float, float, float]:
    """(mean, lower, upper) of float[N], with a 95 % bootstrap interval."""
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def seed_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(mean, lower, upper) over seeds, mean ± t_{0.975, n - 1} s / sqrt(n); one seed has no interval: NaN."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return float(values.mean()), float('nan'), float('nan')
    half = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def with_interval(name: str, interval: tuple[float, float, float]) -> dict[str, float]:
    """`name`, `name_low` and `name_high`, as records of results call them."""
    return dict(zip((name, f'{name}_low', f'{name}_high'), interval))
