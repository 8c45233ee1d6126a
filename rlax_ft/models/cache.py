"""The key-value cache: what has been read, how more is written into it, and attention over its slots.

Leaves out passes without a cache (attention.py).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from rlax_ft.models.dense import scores, softmax_product, visible, weighted
from rlax_ft.parallel.constrain import constrain

# Slots of the cache that decoding reads at a time.
_BLOCK = 512


@struct.dataclass
class KVCache:
    """Keys and values of what has been read so far.

    Attributes:
      key: for each layer [B, kv_heads, H, S], rotated; a tuple, or one array with layers in front where the model's
        are stacked. Slots come last: a query's scores are sums of whole rows.
      value: for each layer [B, kv_heads, S, H].
      segment_ids: int32[B, S], 0 where a slot is padding or not yet filled.
      positions: int32[B, S].
      index: int32[], the slot that is filled next; a row needs no order among its slots.
      shared: what every row of a group of adjacent rows has read before its own slots: a cache of a row for each group,
        to which nothing is added; or None.
      empty: nothing has been read yet, so that the first pass need not look at it.
    """

    key: tuple[jax.Array, ...] | jax.Array
    value: tuple[jax.Array, ...] | jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    index: jax.Array
    shared: 'KVCache | None' = None
    empty: bool = struct.field(pytree_node=False, default=False)

    def reading(self, segment_ids: jax.Array, positions: jax.Array) -> 'Reading':
        """How tokens of these segments and positions, int32[B, T], are read into the next slots."""
        segments, places = (
            jax.lax.dynamic_update_slice_in_dim(slots, new, self.index, axis=1)
            for slots, new in ((self.segment_ids, segment_ids), (self.positions, positions))
        )
        before = None if self.shared is None else (self.shared.segment_ids, self.shared.positions)
        return Reading(segment_ids, positions, segments, places, before, self.index, prefill=self.empty)

    def arrays(self) -> tuple:
        """What layers read and write: keys, values, and those that are shared behind them."""
        return (self.key, self.value, *(() if self.shared is None else (self.shared.key, self.shared.value)))

    def filled(self, arrays: tuple, reading: 'Reading') -> 'KVCache':
        """The cache after such a reading, with `arrays` as the layers left them."""
        index, (key, value) = self.index + reading.segment_ids.shape[1], arrays[:2]
        return KVCache(key, value, reading.cache_segments, reading.cache_positions, index, self.shared)

    def with_rows(self, rows: jax.Array, other: 'KVCache') -> 'KVCache':
        """The first slots of `rows`, int32[R], become another cache's; a row that is out of range is dropped."""
        length = other.segment_ids.shape[1]

        def put(old, new, slots):
            at = (*[slice(None)] * (old.ndim - 4), rows, *slots)  # Layers in front, where they are stacked.
            return old.at[at].set(new, mode='drop')

        every, some = slice(None), slice(length)
        rest = ((0, 0), (0, self.segment_ids.shape[1] - length))
        ids, positions = (
            old.at[rows].set(jnp.pad(new, rest), mode='drop')
            for old, new in ((self.segment_ids, other.segment_ids), (self.positions, other.positions))
        )
        return dataclasses.replace(
            self,
            key=jax.tree.map(lambda old, new: put(old, new, (every, every, some)), self.key, other.key),
            value=jax.tree.map(lambda old, new: put(old, new, (every, some)), self.value, other.value),
            segment_ids=ids,
            positions=positions,
        )


def empty_cache(
    layers: int, batch: int, kv_heads: int, slots: int, width: int, dtype, *, stacked: bool = False
) -> KVCache:
    """A cache in which nothing has been read yet; `stacked` has all layers in one array."""
    stack, kind = ((layers,), 'stacked_cache') if stacked else ((), 'cache')
    key = constrain(jnp.zeros((*stack, batch, kv_heads, width, slots), dtype), kind)
    value = constrain(jnp.zeros((*stack, batch, kv_heads, slots, width), dtype), kind)
    blank, index = constrain(jnp.zeros((batch, slots), jnp.int32), 'rows'), jnp.zeros((), jnp.int32)
    if stacked:
        return KVCache(key, value, blank, blank, index, empty=True)
    return KVCache((key,) * layers, (value,) * layers, blank, blank, index, empty=True)


@struct.dataclass
class Reading:
    """What one pass reads, the same for every layer.

    Attributes:
      segment_ids: int32[B, T] of the queries, 0 for padding.
      positions: int32[B, T] of the queries.
      cache_segments: int32[B, S] of the cache with these tokens in it, or None without a cache.
      cache_positions: int32[B, S].
      shared: segments and positions of what groups of rows share, int32[B / G, S'] each, or None.
      index: int32[], the first of the slots that these tokens take.
      prefill: the cache was empty, so the tokens see each other only.
      prompt: None, or the number of columns that hold a prompt; the rest are `branches` responses of equal width, each
        of which sees the prompt and itself.
      branches: number of responses after a shared prompt.
    """

    segment_ids: jax.Array
    positions: jax.Array
    cache_segments: jax.Array | None = None
    cache_positions: jax.Array | None = None
    shared: tuple[jax.Array, jax.Array] | None = None
    index: jax.Array | int = 0
    prefill: bool = struct.field(pytree_node=False, default=False)
    prompt: int | None = struct.field(pytree_node=False, default=None)
    branches: int = struct.field(pytree_node=False, default=1)


def write_slots(keys, values, key, value, index, layer):
    """Puts keys and values [B, T, kv_heads, H] at the slots index.. of a layer's, in place inside a loop."""
    key, value = key.transpose(0, 2, 3, 1).astype(keys.dtype), value.transpose(0, 2, 1, 3).astype(values.dtype)
    if layer is not None:
        keys = jax.lax.dynamic_update_slice(keys, key[None], (layer, 0, 0, 0, index))
        values = jax.lax.dynamic_update_slice(values, value[None], (layer, 0, 0, index, 0))
        return constrain(keys, 'stacked_cache'), constrain(values, 'stacked_cache')
    keys = jax.lax.dynamic_update_slice_in_dim(keys, key, index, axis=3)
    values = jax.lax.dynamic_update_slice_in_dim(values, value, index, axis=2)
    return constrain(keys, 'cache'), constrain(values, 'cache')


def _slots(array, layer, axis, start, size):
    """`size` slots from `start` on, along `axis` of a layer's keys or values."""
    if layer is None:
        return jax.lax.dynamic_slice_in_dim(array, start, size, axis=axis)
    first, sizes = [layer, 0, 0, 0, 0], [1, *array.shape[1:]]
    first[axis + 1], sizes[axis + 1] = start, size
    return jax.lax.dynamic_slice(array, first, sizes)[0]


def attend_cache(query, cache, reading, layer, *, scale, soft_cap, window):
    """Over the slots of a layer's cache, block by block as far as they are filled, and what its rows share."""
    keys, values, *shared = cache
    how = dict(layer=layer, scale=scale, soft_cap=soft_cap)
    mask = visible(reading.segment_ids, reading.positions, reading.cache_segments, reading.cache_positions, window)
    if not shared and values.shape[-2] <= _BLOCK:
        if layer is not None:
            keys, values = keys[layer], values[layer]
        return softmax_product(query, keys, values, mask, scale, soft_cap).astype(values.dtype)
    highest, total, out = _sums(query, keys, values, mask, reading.cache_segments, **how)
    if shared:
        others = _shared_sums(query, *shared, reading, window, **how)
        new = jnp.maximum(highest, others[0])
        own, other = jnp.exp(highest - new), jnp.exp(others[0] - new)
        total, out = own * total + other * others[1], own * out + other * others[2]
    out = out / jnp.maximum(total, jnp.finfo(total.dtype).tiny)
    return out.transpose(0, 3, 1, 2, 4).reshape(query.shape).astype(values.dtype)


def _shared_sums(query, keys, values, reading, window, **how):
    """`_sums` over what groups of rows share: the queries of a group are read as one row's (arXiv 2402.05099)."""
    segments, positions = reading.shared
    groups, rows = segments.shape[0], query.shape[0]
    together = lambda x: x.reshape(groups, -1, *x.shape[2:])  # noqa: E731
    of_queries = together(reading.segment_ids), together(reading.positions)
    mask = visible(*of_queries, segments, positions, window)

    def apart(x):
        """[B / G, kv_heads, heads / kv_heads, G * T, ...] -> [B, kv_heads, heads / kv_heads, T, ...]."""
        x = jnp.moveaxis(x.reshape(*x.shape[:3], rows // groups, -1, x.shape[-1]), 3, 1)
        return x.reshape(rows, *x.shape[2:])

    return tuple(apart(x) for x in _sums(together(query), keys, values, mask, segments, **how))


def _sums(query, keys, values, mask, segments, *, layer, scale, soft_cap):
    """The highest score of each query, and sums of exp(score - highest), of weights and of weighted values.

    Returns:
      [B, kv_heads, heads / kv_heads, T, 1] twice, and [B, kv_heads, heads / kv_heads, T, H].
    """
    slots = values.shape[-2]
    size = min(_BLOCK, slots)

    def block(i, carry):
        # The last block reaches back where the slots do not divide; what it sees again is masked out.
        start = jnp.minimum(i * size, slots - size)
        key, value = _slots(keys, layer, 3, start, size), _slots(values, layer, 2, start, size)
        seen = jax.lax.dynamic_slice_in_dim(mask, start, size, axis=2) & (jnp.arange(size) + start >= i * size)
        new_scores = scores(query, key, seen, scale, soft_cap)
        highest, total, out = carry
        new = jnp.maximum(highest, jnp.max(new_scores, axis=-1, keepdims=True))
        weights, shrink = jnp.exp(new_scores - new), jnp.exp(highest - new)
        out = shrink * out + weighted(weights, value)
        return new, shrink * total + jnp.sum(weights, axis=-1, keepdims=True), out

    if size == slots:
        # In one piece: a slice of all slots would be a copy.
        key, value = (keys, values) if layer is None else (keys[layer], values[layer])
        all_scores = scores(query, key, mask, scale, soft_cap)
        highest = jnp.max(all_scores, axis=-1, keepdims=True)
        weights = jnp.exp(all_scores - highest)
        return highest, jnp.sum(weights, axis=-1, keepdims=True), weighted(weights, value)
    filled = jnp.max(jnp.where(segments > 0, jnp.arange(1, slots + 1), 0))
    batch, length, heads, width = query.shape
    kv_heads = values.shape[-3]
    shape = (batch, kv_heads, heads // kv_heads, length)
    start = jnp.full((*shape, 1), -1e30), jnp.zeros((*shape, 1)), jnp.zeros((*shape, width))
    return jax.lax.fori_loop(0, (filled + size - 1) // size, block, start)
