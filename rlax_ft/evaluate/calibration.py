"""Whether a preference model's probabilities are right: P(a before b) = sigma(margin) against how often it holds.

Margins are r(chosen) - r(rejected); the confidence of a judgement is sigma(|margin|), and it is right where the margin
is above 0 (half right at 0). Leaves out where margins come from.
"""

import dataclasses

import numpy as np
from scipy.special import expit


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Judgements by confidence, [bins] each; those of empty bins are left out.

    Attributes:
      confidence: the mean in the bin.
      accuracy: the share of right judgements.
      count: how many.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    def error(self) -> float:
        """Expected calibration error, sum_b n_b / N |accuracy_b - confidence_b| (arXiv 1706.04599, eq. 3)."""
        return float((self.count * np.abs(self.accuracy - self.confidence)).sum() / self.count.sum())


def reliability(margins: np.ndarray, *, bins: int = 10) -> Reliability:
    """Judgements by confidence in bins of equal width from 0.5 to 1.

    Args:
      margins: float[N], r(chosen) - r(rejected).
      bins: how many.
    """
    margins = np.asarray(margins, np.float64)
    confidence = expit(np.abs(margins))
    right = (1.0 + np.sign(margins)) / 2.0
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    full = count > 0
    sums = [np.bincount(place, weights=values, minlength=bins)[full] for values in (confidence, right)]
    return Reliability(sums[0] / count[full], sums[1] / count[full], count[full])


def preference_nll(margins: np.ndarray) -> float:
    """Mean of -log sigma(margin), in nats; 0.693 knows nothing."""
    return float(np.logaddexp(0.0, -np.asarray(margins, np.float64)).mean())


def fit_temperature(margins: np.ndarray) -> float:
    """The T > 0 that minimises the mean of -log sigma(margin / T) (arXiv 1706.04599, section 4.2).

    Above 1 the model was too sure. The loss is convex in 1 / T; where its minimum is at an end (every judgement right,
    or more wrong than right) T is the nearest of 0.02 and 50.

    Args:
      margins: float[N]; fit on others than those that you then measure on.
    """
    margins = np.asarray(margins, np.float64)
    if not margins.any():
        return 1.0  # It says nothing, at any temperature.
    low, high = 0.02, 50.0  # Of the inverse temperature: the slope of the loss rises along it.
    for _ in range(200):
        middle = np.sqrt(low * high)
        slope = -(margins * expit(-margins * middle)).mean()
        low, high = (middle, high) if slope <= 0 else (low, middle)
    return float(1.0 / np.sqrt(low * high))
