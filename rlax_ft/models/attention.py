"""Who attends to whom, and the computation of attention: segments, the key-value cache, the softmax.

Leaves out projections and rotary positions: transformer.py hands in finished queries, keys and values.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class KVCache:
    """Keys and values of what has been read so far.

    Attributes:
      key: [L, B, S, KV, H], rotated keys of every layer.
      value: [L, B, S, KV, H].
      segment_ids: int32[B, S], 0 where a slot is padding or not yet filled.
      index: int32[], number of filled slots.
    """

    key: jax.Array
    value: jax.Array
    segment_ids: jax.Array
    index: jax.Array


@struct.dataclass
class Reading:
    """What one pass reads: which keys each query may see, the same for every layer.

    Attributes:
      segment_ids: int32[B, T] of the queries, 0 for padding.
      key_segments: int32[B, S] of the keys: the cache's and these, or these alone.
      index: int32[], place of the first query among the keys; 0 without a cache.
    """

    segment_ids: jax.Array
    key_segments: jax.Array
    index: jax.Array | int


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    reading: Reading,
    layer_cache: tuple[jax.Array, jax.Array] | None = None,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: jax.Array | int | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """softmax(cap(scale q k^T) + mask) v, grouped-query (arXiv 2305.13245), after what the cache holds if there is one.

    Args:
      query: [B, T, heads, H], rotated.
      key: [B, T, kv_heads, H], rotated.
      value: [B, T, kv_heads, H].
      reading: which keys each query may see.
      layer_cache: this layer's keys and values [B, S, kv_heads, H], or None.
      scale: of the scores; 1 / sqrt(H) when absent.
      soft_cap: scores become soft_cap tanh(scores / soft_cap) (arXiv 2408.00118).
      window: a query sees the `window` latest places up to its own; an int32[] that may be traced; None sees all.

    Returns:
      ([B, T, heads, H], the layer's cache with these keys and values, or None).
    """
    if layer_cache is not None:
        key = jax.lax.dynamic_update_slice_in_dim(layer_cache[0], key, reading.index, axis=1)
        value = jax.lax.dynamic_update_slice_in_dim(layer_cache[1], value, reading.index, axis=1)
        layer_cache = (key, value)
    mask = attention_mask(reading.segment_ids, reading.key_segments, reading.index, window)
    batch, length, heads, width = query.shape
    groups = query.reshape(batch, length, key.shape[2], -1, width)
    scores = jnp.einsum('btkgh,bskh->bkgts', groups, key, preferred_element_type=jnp.float32)
    scores = scores * (width**-0.5 if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    weights = jax.nn.softmax(jnp.where(mask[:, :, None], scores, jnp.finfo(scores.dtype).min), axis=-1)
    out = jnp.einsum('bkgts,bskh->btkgh', weights.astype(value.dtype), value)
    return out.reshape(batch, length, heads, width), layer_cache


def attention_mask(
    query_segments: jax.Array,
    key_segments: jax.Array,
    offset: jax.Array | int = 0,
    window: jax.Array | int | None = None,
) -> jax.Array:
    """Which keys each query sees: those of its own segment, no later than itself, and no further back than `window`.

    Padding (segment 0) sees padding, so that no row of the softmax is empty; nobody reads those rows.

    Args:
      query_segments: int32[B, T].
      key_segments: int32[B, S].
      offset: index of the first query among the keys.
      window: number of places that a query sees, its own included; None for all.

    Returns:
      bool[B, 1, T, S].
    """
    t, s = query_segments.shape[1], key_segments.shape[1]
    behind = jnp.arange(t)[:, None] + offset - jnp.arange(s)[None, :]
    causal = behind >= 0
    if window is not None:
        causal &= behind < window
    same_segment = query_segments[:, :, None] == key_segments[:, None, :]
    return (causal & same_segment)[:, None]
