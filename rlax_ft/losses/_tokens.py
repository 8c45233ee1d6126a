"""What every policy-gradient loss does with its arrays before its formula: check, promote, empty masked positions.

And how a loss says which aggregation its paper takes. Leaves out the formulas, which are in `policy_gradient`,
`covariance` and `divergence`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_float, as_logps, as_mask, keep


def prepare(
    logps: jax.Array, old_logps: jax.Array, advantages: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(logps, old_logps, advantages, mask) as float32[B, T] x 3 that are 0 where masked, and bool[B, T]."""
    logps, old_logps = as_logps(2, logps=logps, old_logps=old_logps)
    _, advantages = as_float(2, logps=logps, advantages=advantages)
    mask = as_mask(logps.shape, mask=mask)
    return *keep(mask, logps, old_logps, advantages), mask


def row_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over each row's unmasked tokens; [B, T] -> [B, 1], 0 for a row without any."""
    count = jnp.sum(mask, axis=1, keepdims=True)
    return jnp.sum(keep(mask, x), axis=1, keepdims=True) / jnp.maximum(count, 1)


def aggregated(mode: str) -> Callable[[Callable], Callable]:
    """Says how a loss's paper makes one number of its tokens: the loss gets an attribute `aggregate`.

    Args:
      mode: one of `ops.reduce.MODES`; a loss that says nothing is taken by `token_mean`.
    """

    def mark(loss: Callable) -> Callable:
        vars(loss)['aggregate'] = mode
        return loss

    return mark
