"""Strengths of policies from comparisons with ties: Davidson's extension of Bradley-Terry, with intervals.

P(i before j) = exp(s_i) / Z, P(tie) = nu exp((s_i + s_j) / 2) / Z, Z the sum of the three (Davidson, 1970); without
ties it is Bradley-Terry. Leaves out who judged (dawid_skene.py).
"""

import dataclasses
import math

import numpy as np

_Z = 1.959964
# Prior precision of the strengths: a policy that has always won still gets a finite one.
_RIDGE = 1e-3


@dataclasses.dataclass(frozen=True)
class Strengths:
    """What was fitted.

    Attributes:
      names: P policies, the strongest first.
      values: float[P], their mean is 0; differences are log-odds of winning.
      low, high: float[P], 95 % interval of each.
      covariance: float[P, P] of the values.
      tie: nu, 0 without ties.
      comparisons: how many there are.
    """

    names: tuple[str, ...]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    covariance: np.ndarray
    tie: float
    comparisons: int

    def difference(self, i: int, j: int) -> tuple[float, float]:
        """(s_i - s_j, its standard error)."""
        c = self.covariance
        return float(self.values[i] - self.values[j]), math.sqrt(max(c[i, i] + c[j, j] - 2 * c[i, j], 0.0))

    def more_needed(self) -> int | None:
        """How many more comparisons, of the same mix, would part the first two at 95 %; None where they are as one.

        The standard error falls with the root of the number of comparisons: n (z^2 se^2 / d^2 - 1).
        """
        if len(self.names) < 2:
            return None
        gap, error = self.difference(0, 1)
        if gap < 1e-6:
            return None
        more = self.comparisons * ((_Z * error / gap) ** 2 - 1)
        return max(0, math.ceil(more)) if more < 1e9 else None


def fit_strengths(first: list[str], second: list[str], outcome: np.ndarray, clusters=None) -> Strengths:
    """Maximum likelihood by Newton's method; intervals from the information, or robust to clusters.

    Args:
      first: N policies.
      second: N others, each compared with the first.
      outcome: float[N], 1 where the first won, 0 where the second did, 0.5 for a tie.
      clusters: N labels or None; comparisons of one item depend on each other, and intervals then are the sandwich's.

    Raises:
      ValueError: no comparison.
    """
    outcome = np.asarray(outcome, float)
    if not len(outcome):
        raise ValueError('no comparison between two policies')
    names = sorted({*first, *second})
    index = {name: i for i, name in enumerate(names)}
    i, j = (np.asarray([index[name] for name in side]) for side in (first, second))
    ties = bool((outcome == 0.5).any())
    count = len(names)
    theta = np.zeros(count + ties)
    for _ in range(100):
        gradients, hessian = _derivatives(theta, i, j, outcome, count, ties)
        gradient = gradients.sum(axis=0) - _ridge(count, ties) * theta
        step = np.linalg.solve(hessian, gradient)
        theta = theta + step / max(1.0, np.abs(step).max())
        if np.abs(step).max() < 1e-9:
            break
    gradients, hessian = _derivatives(theta, i, j, outcome, count, ties)
    inverse = np.linalg.inv(hessian)
    covariance = inverse
    if clusters is not None:
        _, member = np.unique(np.asarray(clusters), return_inverse=True)
        sums = np.zeros((member.max() + 1, len(theta)))
        np.add.at(sums, member, gradients)
        covariance = inverse @ (sums.T @ sums) @ inverse * (len(sums) / max(len(sums) - 1, 1))
    centre = np.eye(count) - 1.0 / count
    values = centre @ theta[:count]
    covariance = centre @ covariance[:count, :count] @ centre
    order = np.argsort(-values, kind='stable')
    values, covariance = values[order], covariance[np.ix_(order, order)]
    half = _Z * np.sqrt(np.diag(covariance))
    tie = float(np.exp(theta[count])) if ties else 0.0
    return Strengths(
        tuple(names[k] for k in order), values, values - half, values + half, covariance, tie, len(outcome)
    )


def _ridge(count, ties):
    return np.r_[np.full(count, _RIDGE), np.zeros(int(ties))]


def _derivatives(theta, i, j, outcome, count, ties):
    """(gradient of each log-likelihood [N, P(+1)], minus the Hessian of their sum, with the ridge)."""
    rows = np.arange(len(i))
    # Exponents of the three outcomes are linear in theta: features [N, 3, P(+1)].
    features = np.zeros((len(i), 3, len(theta)))
    features[rows, 0, i] = features[rows, 1, j] = 1.0
    if ties:
        features[rows, 2, i] += 0.5
        features[rows, 2, j] += 0.5
        features[:, 2, count] = 1.0
    exponents = features @ theta
    if not ties:
        exponents[:, 2] = -np.inf
    weights = np.exp(exponents - exponents.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    seen = np.where(outcome == 1.0, 0, np.where(outcome == 0.0, 1, 2))
    mean = np.einsum('nk,nkp->np', weights, features)
    gradients = features[rows, seen] - mean
    second = np.einsum('nk,nkp,nkq->pq', weights, features, features) - mean.T @ mean
    return gradients, second + np.diag(_ridge(count, ties)) + 1e-12 * np.eye(len(theta))
