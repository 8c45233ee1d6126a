"""Reward against KL: the policies one can buy from a reference at each distance from it.

Leaves out plotting (plots.py) and sampling.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln, logsumexp

# The weights of the KL term at which the optimum is drawn, and the n of best of n.
BETAS = (8.0, 4.0, 3.0, 2.0, 1.5, 1.25, 1.0, 0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Below so many effective samples the optimum's estimate says little.
ENOUGH = 30
Point = tuple[float, float]  # (KL, reward)


def best_of_n_kl(n) -> np.ndarray:
    """KL(best of n || reference) <= ln n - (n - 1) / n, with equality where no two samples tie (arXiv 2401.01879)."""
    n = np.asarray(n, np.float64)
    return np.log(n) - (n - 1) / n


def best_of_n(values: np.ndarray, scores: np.ndarray, n: int) -> float:
    """Mean value of the best of n reference samples by score, over all choices of n of them (arXiv 2112.09332, app. I).

    With a prompt's samples sorted by score, the i-th is the best of C(i - 1, n - 1) of the C(M, n) choices.

    Args:
      values: float[P, M], what M samples of each of P prompts are worth.
      scores: float[P, M], what chooses.
      n: how many to choose from, at most M.
    """
    i = np.arange(1, values.shape[1] + 1)
    with np.errstate(divide='ignore'):
        weights = np.where(i >= n, np.exp(_log_choose(i - 1, n - 1) - _log_choose(i[-1], n)), 0.0)
    order = np.argsort(scores, axis=1, kind='stable')
    return float((np.take_along_axis(np.asarray(values, np.float64), order, axis=1) @ weights).mean())


def optimum(gold: np.ndarray, beta: float, log_ratio: np.ndarray | None = None) -> tuple[float, float]:
    """The optimum pi* = pi_ref exp(r / beta) / Z by importance weights on samples of some q.

    E_pi*[r] = sum_i w_i r_i / sum_i w_i and KL(pi* || pi_ref) = E_pi*[r] / beta - log Z, Z the mean of the weights
    w = pi_ref / q exp(r / beta), within a prompt, and averaged over prompts (arXiv 2305.18290, eq. 4).

    Args:
      gold: float[P, M], rewards of M samples of each of P prompts.
      beta: the weight of the KL term.
      log_ratio: float[P, M], log pi_ref - log q of each; None where q is pi_ref.

    Returns:
      (reward, KL in nats).
    """
    logs = _log_weights(gold, beta, log_ratio)
    log_z = logsumexp(logs, axis=1) - np.log(gold.shape[1])
    reward = (np.exp(logs - logsumexp(logs, axis=1, keepdims=True)) * gold).sum(axis=1)
    return float(reward.mean()), float((reward / beta - log_z).mean())


def effective_samples(gold: np.ndarray, beta: float, log_ratio: np.ndarray | None = None) -> float:
    """1 / sum w^2 of the optimum's weights, the mean over prompts: below about 30 the optimum's estimate is poor."""
    logs = _log_weights(gold, beta, log_ratio)
    return float(np.exp(2 * logsumexp(logs, axis=1) - logsumexp(2 * logs, axis=1)).mean())


def mixture_log_ratio(logps: Sequence[np.ndarray], counts: Sequence[int]) -> np.ndarray:
    """log pi_ref - log q of samples that several policies drew together, q = sum_j (counts_j / M) pi_j.

    Every sample is weighed as one of the mixture's (the balance heuristic, Veach and Guibas, 1995): where a trained
    policy writes what the reference rarely does, its samples carry the estimate of the optimum further than the
    reference's own.

    Args:
      logps: for each policy, the reference first, float[..., M]: its log-probability of all M samples of a prompt.
      counts: how many of a prompt's samples each policy drew.
    """
    shares = np.log(np.asarray(counts, np.float64) / np.sum(counts))
    stacked = np.asarray(logps, np.float64)
    mixed = logsumexp(stacked + shares.reshape(-1, *[1] * (stacked.ndim - 1)), axis=0)
    return stacked[0] - mixed


def optimum_curve(gold: np.ndarray, log_ratio: np.ndarray | None = None, start: Point | None = None) -> list[Point]:
    """(KL, reward) of the optimum for falling beta, from the reference on, as far as the samples estimate it.

    Args:
      gold: float[P, M], rewards of samples.
      log_ratio: as `optimum` takes it.
      start: (0, the reference's reward); the samples' own estimate of it when absent.
    """
    curve = [start or (0.0, optimum(gold, 1e9, log_ratio)[0])]
    for beta in BETAS:
        if effective_samples(gold, beta, log_ratio) < ENOUGH:
            break
        reward, kl = optimum(gold, beta, log_ratio)
        curve.append((kl, reward))
    return curve


def best_of_n_curve(values: np.ndarray, scores: np.ndarray) -> dict[int, Point]:
    """(KL, value) of best of n by n; arguments as `best_of_n` takes them."""
    return {n: (float(best_of_n_kl(n)), best_of_n(values, scores, n)) for n in SIZES if n <= values.shape[1]}


def reward_at(curve: Sequence[Point], kl: float) -> float | None:
    """The reward of a curve at a KL, linear between its points; None beyond its ends."""
    points = sorted(curve)
    if not points or not points[0][0] <= kl <= points[-1][0]:
        return None
    kls, rewards = zip(*points)
    return float(np.interp(kl, kls, rewards))


def gain_share(point: Point, optimum: Sequence[Point]) -> float | None:
    """What a policy gained over the reference, as a share of what the optimum gains at the same KL: 1 is the best.

    Args:
      point: (KL, reward) of the policy.
      optimum: of `optimum_curve`, whose first point is the reference.

    Returns:
      None where the optimum is not known at that KL, or gains nothing there.
    """
    best, start = reward_at(optimum, point[0]), optimum[0][1]
    return None if best is None or best - start < 1e-6 else (point[1] - start) / (best - start)


def peak(points: Sequence[Point]) -> Point:
    """The point of highest reward, the first of equals: where over-optimisation begins (arXiv 2210.10760)."""
    return max(points, key=lambda point: point[1])


def _log_weights(gold, beta, log_ratio):
    return gold / beta if log_ratio is None else gold / beta + log_ratio


def _log_choose(n, k):
    return gammaln(np.asarray(n, np.float64) + 1) - gammaln(k + 1.0) - gammaln(np.asarray(n, np.float64) - k + 1)
