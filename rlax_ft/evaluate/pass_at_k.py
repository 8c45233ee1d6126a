"""pass@k: what several attempts at a problem are worth.

Leaves out who says that an attempt is right.
"""

import numpy as np

from rlax_ft.errors import InputError


def pass_at_k(right: np.ndarray, k: int) -> np.ndarray:
    """Chance that one of k attempts is right, 1 - C(n - c, k) / C(n, k), without bias (arXiv 2107.03374, eq. 1).

    Args:
      right: [P, n], whether each of n attempts at each of P problems is right.
      k: number of attempts, at most n.

    Returns:
      float64[P]; its mean is pass@k.

    Raises:
      InputError: k is not in 1..n.
    """
    right = np.asarray(right, bool)
    n = right.shape[1]
    if not 1 <= k <= n:
        raise InputError(f'pass@{k} of {n} attempts: k must be from 1 to {n}')
    wrong = n - right.sum(axis=1)
    # C(wrong, k) / C(n, k) = prod_{i = wrong + 1}^{n} (1 - k / i); a factor is 0 where wrong < k.
    i = np.arange(1, n + 1)
    factors = np.where(i[None] > wrong[:, None], 1.0 - k / i[None], 1.0)
    return np.where(wrong < k, 1.0, 1.0 - factors.prod(axis=1))
