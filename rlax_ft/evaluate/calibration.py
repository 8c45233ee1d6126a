"""Calibration of preferences: does an answer win as often as a reward model says, before and after a temperature.

Leaves out the figure (plots.py), and where margins come from.
"""

import dataclasses

import numpy as np

# Temperatures that a fit may come to.
_LEAST, _MOST = 0.01, 100.0


@dataclasses.dataclass(frozen=True)
class Reliability:
    """How often what was predicted came true, by how surely it was predicted.

    Attributes:
      confidence: float[bins], mean probability given to the predicted winner, NaN in an empty bin.
      accuracy: float[bins], how often it did win.
      count: int[bins].
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: sum_b n_b / N |accuracy_b - confidence_b| (arXiv 1706.04599)."""
        kept = self.count > 0
        gaps = np.abs(self.accuracy[kept] - self.confidence[kept])
        return float((gaps * self.count[kept]).sum() / self.count.sum())


def reliability(margins: np.ndarray, labels: np.ndarray | float = 1.0, *, bins: int = 10) -> Reliability:
    """Bins of pairs by the probability sigma(|margin|) of the predicted winner, from 1/2 to 1.

    Args:
      margins: float[N], score of the first answer minus that of the second.
      labels: probability that the first answer is the better one, float or float[N].
      bins: of equal width.
    """
    margins, labels = np.broadcast_arrays(np.asarray(margins, np.float64), np.asarray(labels, np.float64))
    sure = 1.0 / (1.0 + np.exp(-np.abs(margins)))
    right = np.where(margins > 0, labels, np.where(margins < 0, 1.0 - labels, 0.5))
    place = np.minimum(((sure - 0.5) * 2 * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    mean = lambda x: np.where(count, np.bincount(place, x, bins) / np.maximum(count, 1), np.nan)  # noqa: E731
    return Reliability(mean(sure), mean(right), count)


def fit_temperature(margins: np.ndarray, labels: np.ndarray | float = 1.0) -> float:
    """The T at which sigma(margin / T) is likeliest, within 0.01 and 100 (temperature scaling, arXiv 1706.04599).

    The loss is convex in 1 / T; where its slope is 0 is found by bisection.

    Args:
      margins, labels: as in `reliability`.
    """
    margins = np.asarray(margins, np.float64)
    if not margins.any():
        return 1.0  # They say nothing, at any temperature.
    low, high = np.log(1.0 / _MOST), np.log(1.0 / _LEAST)
    for _ in range(60):
        middle = 0.5 * (low + high)
        slope = np.mean((_sigmoid(np.exp(middle) * margins) - labels) * margins)
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(np.exp(-0.5 * (low + high)))


def preference_nll(margins: np.ndarray) -> float:
    """Mean of -log sigma(margin), in nats; 0.693 knows nothing."""
    return float(np.logaddexp(0.0, -np.asarray(margins, np.float64)).mean())


def calibrated(margins: np.ndarray, labels: np.ndarray | float = 1.0, *, seed: int = 0) -> np.ndarray:
    """margin / T, with T fitted on the other half of the pairs: what is measured on them is no flattery.

    Args:
      margins, labels: as in `reliability`; at least two pairs.
      seed: of the halves.
    """
    margins = np.asarray(margins, np.float64)
    labels = np.broadcast_to(np.asarray(labels, np.float64), margins.shape)
    halves = np.array_split(np.random.default_rng([seed, 7]).permutation(len(margins)), 2)
    scaled = np.empty_like(margins)
    for own, other in (halves, halves[::-1]):
        scaled[own] = margins[own] / fit_temperature(margins[other], labels[other])
    return scaled


def calibration(margins: np.ndarray, labels: np.ndarray | float = 1.0, *, seed: int = 0) -> dict[str, float]:
    """`temperature` of all pairs, and `calibration_error` with `calibration_error_after` scaling, cross-fitted."""
    return {
        'temperature': fit_temperature(margins, labels),
        'calibration_error': reliability(margins, labels).error,
        'calibration_error_after': reliability(calibrated(margins, labels, seed=seed), labels).error,
    }


def _sigmoid(x):
    return 0.5 * (1.0 + np.tanh(0.5 * x))
