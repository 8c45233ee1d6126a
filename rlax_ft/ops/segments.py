"""Sums by segment, for rows into which several examples are packed.

Leaves out packing itself (data/packing.py).
"""

import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_float


def segment_sums(x: jax.Array, segment_ids: jax.Array, count: int) -> jax.Array:
    """The sum of a per-token array over each segment of each row, out[b, s] = sum of x[b, t] where segment is s + 1.

    Args:
      x: float[B, T], 0 where it does not count.
      segment_ids: int[B, T], 1 to `count`; 0 is padding and belongs to none.
      count: S, segments that a row may have.

    Returns:
      float32[B, S]; 0 for a segment that does not exist.
    """
    # A sum, not a product with a 0/1 matrix: accelerators multiply in lower precision.
    return jnp.sum(jnp.where(_members(segment_ids, count), as_float(x=x)[..., None], 0.0), axis=1)


def segment_last(x: jax.Array, mask: jax.Array, segment_ids: jax.Array, count: int) -> jax.Array:
    """The entry at the last masked token of each segment: where a reward model's score is read.

    Args:
      x: float[B, T].
      mask: [B, T], above 0 where a token counts.
      segment_ids: as in `segment_sums`.
      count: S.

    Returns:
      float32[B, S]; 0 for a segment without a masked token.
    """
    x = as_float(x=x)
    counted = _members(segment_ids, count) & (jnp.asarray(mask) > 0)[..., None]
    places = jnp.where(counted, jnp.arange(x.shape[1])[None, :, None], -1).max(axis=1)
    picked = jnp.take_along_axis(x, jnp.maximum(places, 0), axis=1)
    return jnp.where(places >= 0, picked, 0.0)


def _members(segment_ids: jax.Array, count: int):
    return jnp.asarray(segment_ids)[..., None] == jnp.arange(1, count + 1)
