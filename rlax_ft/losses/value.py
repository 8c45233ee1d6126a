"""The critic's loss.

Leaves out returns, which are in `ops.returns`, and aggregation.
"""

import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_float


def clipped_value_loss(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, *, clip: float | None
) -> jax.Array:
    """1/2 max((V - R)^2, (clip(V, V_old +- clip) - R)^2), the critic's trust region of PPO's code (arXiv 2006.05990).

    Args:
      values: float[B, T] (or time-major [T, N]), the critic's estimates.
      old_values: as values, at the start of the update; not read when clip is None.
      returns: as values, the targets.
      clip: room around the old value, in reward units; None is the plain 1/2 (V - R)^2.

    Returns:
      float32[B, T].

    Raises:
      AssertionError: a shape or dtype is wrong.
    """
    values, returns = as_float(values=values, returns=returns)
    loss = jnp.square(values - returns)
    if clip is not None:
        _, old_values = as_float(values=values, old_values=old_values)
        bounded = old_values + jnp.clip(values - old_values, -clip, clip)
        loss = jnp.maximum(loss, jnp.square(bounded - returns))
    return 0.5 * loss
