"""Which tokens a policy-gradient loss clips, by its own bounds: for the metric `policy/clipfrac_avg`.

Leaves out the losses themselves (policy_gradient.py).
"""

import inspect
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from rlax_ft.losses._tokens import row_mean
from rlax_ft.losses.policy_gradient import gmpo_loss, gspo_loss, gspo_token_loss
from rlax_ft.ops.arrays import keep, safe_exp

# Bounds are on exp(log-ratio) - 1, but here on the log-ratio itself, or on the geometric mean of a row's ratios.
_ON_LOG_RATIOS = (gmpo_loss,)
_ON_ROWS = (gspo_loss, gspo_token_loss)


def clip_bounds(loss: Callable) -> tuple[float, float] | None:
    """(clip_low, clip_high) that a loss has by default or bound by `functools.partial`; None where it takes none."""
    takes = inspect.signature(loss).parameters
    bounds = tuple(takes[name].default for name in ('clip_low', 'clip_high') if name in takes)
    return bounds if len(bounds) == 2 and inspect.Parameter.empty not in bounds else None


def outside_bounds(loss: Callable, log_ratio: jax.Array, mask: jax.Array) -> jax.Array | None:
    """1 on tokens whose ratio is outside the loss's [1 - clip_low, 1 + clip_high], float32[B, T]; None without bounds.

    What is compared is what the loss compares: GMPO's bounds are on log-ratios, GSPO's on the row's geometric mean.

    Args:
      loss: `f(logps, old_logps, advantages, mask)`, its hyperparameters bound.
      log_ratio: float[B, T], logps - old_logps.
      mask: [B, T].
    """
    bounds = clip_bounds(loss)
    if bounds is None:
        return None
    while isinstance(loss, partial):
        loss = loss.func
    mask = mask.astype(bool)
    moved = row_mean(log_ratio, mask) if loss in _ON_ROWS else log_ratio
    moved = moved if loss in _ON_LOG_RATIOS else safe_exp(moved) - 1.0
    outside = (moved < -bounds[0]) | (moved > bounds[1])
    return keep(mask, jnp.broadcast_to(outside, log_ratio.shape).astype(jnp.float32))
