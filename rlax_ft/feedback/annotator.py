"""A simulated annotator: ranks completions by their gold reward, with the noise of the Bradley-Terry model.

Leaves out people: their labels go to the same judgements file (judgements.py).
"""

import numpy as np


def rank_completions(rng: np.random.Generator, gold: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    """A ranking drawn from Plackett-Luce: orders gold / temperature + Gumbel noise (Yellott, 1977).

    For every pair, P(a before b) = sigma((gold_a - gold_b) / temperature): each comparison that the ranking implies is
    a draw from Bradley-Terry.

    Args:
      rng: source of the noise.
      gold: float[N, K], gold rewards.
      temperature: how undecided the annotator is; 0 ranks without noise.

    Returns:
      int[N, K], 0 for the best.
    """
    noisy = gold + temperature * rng.gumbel(size=gold.shape)
    return np.argsort(np.argsort(-noisy, axis=1), axis=1)
