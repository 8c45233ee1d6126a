"""Length-controlled win rates: how often one policy would win if both wrote equally long texts (arXiv 2404.04475).

Leaves out the paper's term for how hard an instruction is, which needs the results of many other models.
"""

import numpy as np
from scipy.special import expit

# Penalty on both coefficients, as if by a few judgements without a preference: finite where one side always wins.
_RIDGE = 1.0
_STEPS = 30


def length_controlled_win_rate(
    wins: np.ndarray, lengths: np.ndarray, other_lengths: np.ndarray, *, seed: int = 0, resamples: int = 500
) -> tuple[float, float, float]:
    """sigma(theta) of the fit P(win) = sigma(theta + phi tanh(d / std(d))), d the difference in length (eq. 2).

    Setting the length term to 0 asks what would be at equal lengths.

    Args:
      wins: float[N] in [0, 1], 1 where ours was preferred, 0.5 for a tie.
      lengths: [N], of ours.
      other_lengths: [N], of theirs.
      seed: of the bootstrap.
      resamples: bootstrap samples over prompts.

    Returns:
      (rate, lower, upper), with a 95 % bootstrap interval.
    """
    wins = np.asarray(wins, np.float64)
    difference = np.asarray(lengths, np.float64) - np.asarray(other_lengths, np.float64)
    spread = difference.std()
    feature = np.tanh(difference / spread) if spread > 0 else np.zeros(len(wins))
    # A resample is a weight for each prompt: how often it was drawn.
    rng, n = np.random.default_rng(seed), len(wins)
    weights = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1.0 / n), size=resamples)])
    rates = expit(_fit(wins, feature, weights)[:, 0])
    low, high = np.percentile(rates[1:], [2.5, 97.5])
    return float(rates[0]), float(low), float(high)


def _fit(wins, feature, weights):
    """Coefficients float[R, 2] of a weighted logistic regression each, by Newton's method."""
    design = np.stack([np.ones_like(feature), feature], axis=1)  # [N, 2]
    products = design[:, :, None] * design[:, None, :]  # [N, 2, 2]
    coefficients = np.zeros((len(weights), 2))
    for _ in range(_STEPS):
        p = expit(coefficients @ design.T)  # [R, N]
        gradient = (weights * (wins - p)) @ design - _RIDGE * coefficients
        hessian = np.einsum('rn,nij->rij', weights * p * (1.0 - p), products) + _RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        coefficients = coefficients + step
        if np.abs(step).max() < 1e-10:
            break
    return coefficients
