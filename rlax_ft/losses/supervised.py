"""Losses of imitation: per-token, from the log-probabilities of given text.

Leaves out soft targets, which are in `distillation`, and aggregation.
"""

import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_logps, as_mask, keep


def nll_loss(logps: jax.Array, mask: jax.Array) -> jax.Array:
    """Negative log-likelihood, -log pi(y_t).

    Args:
      logps: float[B, T], in nats.
      mask: [B, T].

    Returns:
      float32[B, T], 0 where masked.

    Raises:
      AssertionError: a rank, shape or dtype is wrong.
    """
    logps = as_logps(2, logps=logps)
    mask = as_mask(logps.shape, mask=mask)
    return keep(mask, -keep(mask, logps))


def dft_loss(logps: jax.Array, mask: jax.Array) -> jax.Array:
    """Dynamic fine-tuning, -sg(pi(y_t)) log pi(y_t): SFT without its 1 / pi weight (arXiv 2508.05629).

    Args:
      logps, mask: as `nll_loss`.

    Returns:
      float32[B, T], 0 where masked.

    Raises:
      AssertionError: a rank, shape or dtype is wrong.
    """
    logps = as_logps(2, logps=logps)
    mask = as_mask(logps.shape, mask=mask)
    logps = keep(mask, logps)
    return keep(mask, -jax.lax.stop_gradient(jnp.exp(jnp.minimum(logps, 0.0))) * logps)
