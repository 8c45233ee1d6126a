"""Reward against KL: the policies one can buy from a reference at each distance from it.

Leaves out plotting (plots.py) and sampling.
"""

import numpy as np

# The weights of the KL term at which the optimum is drawn, and the n of best of n.
BETAS = (8.0, 4.0, 3.0, 2.0, 1.5, 1.25, 1.0, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Below so many effective samples the optimum's estimate says little.
ENOUGH = 30


def best_of_n_kl(n) -> np.ndarray:
    """KL(best of n || reference) <= ln n - (n - 1) / n, with equality where no two samples tie (arXiv 2401.01879)."""
    n = np.asarray(n, np.float64)
    return np.log(n) - (n - 1) / n


def best_of_n(gold: np.ndarray, scores: np.ndarray, n: int) -> float:
    """Mean gold reward of the best of n reference samples by score.

    Args:
      gold: float[P, M], gold rewards of M samples of each of P prompts.
      scores: float[P, M], what chooses.
      n: how many to choose from; each row is cut into M // n groups.
    """
    groups = gold.shape[1] // n
    gold = gold[:, : groups * n].reshape(-1, n)
    best = scores[:, : groups * n].reshape(-1, n).argmax(axis=1)
    return float(gold[np.arange(len(gold)), best].mean())


def optimum(gold: np.ndarray, beta: float) -> tuple[float, float]:
    """The optimum pi* = pi_ref exp(r / beta) / Z by self-normalised importance weights on reference samples.

    E_pi*[r] = sum_i w_i r_i and KL(pi* || pi_ref) = E_pi*[r] / beta - log Z, with w ~ exp(r / beta) within a prompt,
    and averaged over prompts (arXiv 2305.18290, eq. 4).

    Args:
      gold: float[P, M], rewards of M reference samples of each of P prompts.
      beta: the weight of the KL term.

    Returns:
      (reward, KL in nats).
    """
    scaled = gold / beta
    top = scaled.max(axis=1, keepdims=True)
    weights = np.exp(scaled - top)
    log_z = np.log(weights.mean(axis=1)) + top[:, 0]
    reward = (weights * gold).sum(axis=1) / weights.sum(axis=1)
    return float(reward.mean()), float((reward / beta - log_z).mean())


def effective_samples(gold: np.ndarray, beta: float) -> float:
    """1 / sum w^2 of the optimum's weights, the mean over prompts: below about 30 the optimum's estimate is poor."""
    weights = np.exp((gold - gold.max(axis=1, keepdims=True)) / beta)
    weights /= weights.sum(axis=1, keepdims=True)
    return float((1.0 / (weights**2).sum(axis=1)).mean())


def reference_curves(gold: np.ndarray, scores: np.ndarray) -> dict:
    """What a reference policy's samples say of the frontier: `start`, `best_of_n` by n and `optimum`, as (KL, gold).

    Args:
      gold: float[P, M], gold rewards of M samples of each of P prompts.
      scores: float[P, M], what best of n chooses by.
    """
    start = (0.0, float(gold.mean()))
    return {
        'start': start,
        'best_of_n': {n: (float(best_of_n_kl(n)), best_of_n(gold, scores, n)) for n in SIZES if n <= gold.shape[1]},
        'optimum': [start] + [optimum(gold, b)[::-1] for b in BETAS if effective_samples(gold, b) >= ENOUGH],
    }
