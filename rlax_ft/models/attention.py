"""Who attends to whom, the key-value cache, and which kernel computes attention where.

A key is visible to a query of the same segment at the same or a later position. Leaves out projections and rotary
positions: transformer.py hands in finished queries, keys and values.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from rlax_ft.models.blockwise import blockwise_attention
from rlax_ft.models.kernels import cudnn_attention, splash_attention
from rlax_ft.parallel.constrain import active_mesh, constrain, over_devices
from rlax_ft.parallel.mesh import platform

# What --attention takes; `auto` is cudnn on NVIDIA GPUs, splash on TPUs, where they can do what is asked, or blockwise.
KERNELS = ('auto', 'blockwise', 'dense', 'cudnn', 'splash')

# Places up to which attention is computed in one piece.
_SHORT = 64

# Slots of the cache that decoding reads at a time.
_CACHE_BLOCK = 512


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
      empty: nothing has been read yet, so that the first pass need not look at it.
    """

    key: tuple[jax.Array, ...] | jax.Array
    value: tuple[jax.Array, ...] | jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    index: jax.Array
    empty: bool = struct.field(pytree_node=False, default=False)

    def reading(self, segment_ids: jax.Array, positions: jax.Array) -> 'Reading':
        """How tokens of these segments and positions, int32[B, T], are read into the next slots."""
        segments, places = (
            jax.lax.dynamic_update_slice_in_dim(slots, new, self.index, axis=1)
            for slots, new in ((self.segment_ids, segment_ids), (self.positions, positions))
        )
        return Reading(segment_ids, positions, segments, places, self.index, prefill=self.empty)

    def filled(self, key, value, reading: 'Reading') -> 'KVCache':
        """The cache after such a reading, with the keys and values that the layers wrote."""
        index = self.index + reading.segment_ids.shape[1]
        return KVCache(key, value, reading.cache_segments, reading.cache_positions, index)

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
    index: jax.Array | int = 0
    prefill: bool = struct.field(pytree_node=False, default=False)
    prompt: int | None = struct.field(pytree_node=False, default=None)
    branches: int = struct.field(pytree_node=False, default=1)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    reading: Reading,
    cache: tuple[jax.Array, jax.Array] | None = None,
    *,
    layer: jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: jax.Array | int | None = None,
    local_window: int | None = None,
    kernel: str = 'auto',
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """softmax(cap(scale q k^T) + mask) v, grouped-query (arXiv 2305.13245), after what the cache holds if there is one.

    Args:
      query: [B, T, heads, H], rotated.
      key: [B, T, kv_heads, H], rotated.
      value: [B, T, kv_heads, H].
      reading: which keys each query may see.
      cache: keys [B, kv_heads, H, S] and values [B, kv_heads, S, H] of this layer, or None.
      layer: int32[], which of a cache's layers this is, where all stand in one array.
      scale: of the scores; 1 / sqrt(H) when absent.
      soft_cap: scores become soft_cap tanh(scores / soft_cap) (arXiv 2408.00118).
      window: positions that a query sees, its own included; an int32[] that may be traced; None sees all.
      local_window: what a traced window is where it leaves something out, for kernels that must know it.
      kernel: one of `KERNELS`.

    Returns:
      ([B, T, heads, H], the cache with these keys and values, or None).
    """
    how = dict(scale=query.shape[-1] ** -0.5 if scale is None else scale, soft_cap=soft_cap, window=window)
    if cache is not None:
        cache = _write(*cache, key, value, reading.index, layer)
        if not reading.prefill:
            return _attend_cache(query, cache, reading, layer, **how), cache
    how |= dict(kernel=kernel, local_window=local_window)
    if reading.prompt is None:
        places = (reading.segment_ids, reading.positions)
        return _attend_keys(query, key, value, *places, *places, **how), cache
    return _attend_branches(query, key, value, reading, **how), cache


def _attend_branches(query, key, value, reading, **how):
    """The prompt by itself, then every response with the prompt's keys in front of its own."""
    places = (reading.segment_ids, reading.positions)
    cut, count = reading.prompt, reading.branches
    prompt = [x[:, :cut] for x in (query, key, value, *places)]
    response = [x[:, cut:].reshape(x.shape[0] * count, -1, *x.shape[2:]) for x in (query, key, value, *places)]
    both = [jnp.concatenate([jnp.repeat(p, count, axis=0), r], axis=1) for p, r in zip(prompt[1:], response[1:])]
    in_prompt = _attend_keys(*prompt, *prompt[3:], **how)
    in_response = _attend_keys(response[0], *both[:2], *response[3:], *both[2:], **how)
    return jnp.concatenate([in_prompt, in_response.reshape(query.shape[0], -1, *query.shape[2:])], axis=1)


def _attend_keys(query, key, value, *places, kernel, window, local_window=None, **how):
    """Without a cache: the queries are the last of the keys. On a mesh each device has its own rows and heads."""
    kernel = choose_kernel(kernel, query, key, window=window, local_window=local_window, **how)
    key, value = (_heads_for_all(x, query) for x in (key, value))
    traced = (window,) if isinstance(window, jax.Array) else ()

    def run(query, key, value, *rest, kernel=kernel, first=None):
        places, seen = rest[:4], rest[4] if traced else window
        if kernel in ('splash', 'cudnn'):
            compute = splash_attention if kernel == 'splash' else cudnn_attention
            return _by_window(lambda w: compute(query, key, value, *places, window=w, **how), seen, local_window)
        if kernel == 'blockwise':
            return blockwise_attention(query, key, value, *places, window=seen, first=first, **how)
        mask = visible(*places, seen)
        keys, values = key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)
        return _softmax_product(query, keys, values, mask, how['scale'], how['soft_cap']).astype(value.dtype)

    arguments = (query, key, value, *places, *traced)
    kinds = ('heads',) * 3 + ('tokens',) * 2 + ('rows',) * 2 + (None,) * len(traced)
    on_device = partial(_with_whole_rows, run) if _row_parts(query) > 1 else run
    mapped = over_devices(on_device, kinds, 'heads', arguments)
    if mapped is None:
        # Rows or heads do not divide: the compiler splits what is no kernel of a vendor's.
        return run(*arguments, kernel='blockwise' if kernel in ('splash', 'cudnn') else kernel)
    return mapped(*arguments)


def _row_parts(query):
    """Into how many parts a row is split over `sequence`."""
    mesh = active_mesh(query)
    return 1 if mesh is None else mesh.shape.get('sequence', 1)


def _with_whole_rows(run, query, key, value, *rest, **how):
    """`run` on a device that has a part of each row: its queries see the keys of the whole row, gathered for this."""
    key, value = (jax.lax.all_gather(x, 'sequence', axis=1, tiled=True) for x in (key, value))
    own, parts = query.shape[1], jax.lax.axis_size('sequence')
    first = key.shape[1] - parts * own + jax.lax.axis_index('sequence') * own
    return run(query, key, value, *rest, kernel='blockwise', first=first, **how)


def _heads_for_all(x, query):
    """Key or value heads, repeated where `tensor` has more devices than there are, so that each device has its own."""
    mesh = active_mesh(x)
    ways = 1 if mesh is None else mesh.shape.get('tensor', 1)
    times = ways // math.gcd(x.shape[2], ways)
    return x if times == 1 or query.shape[2] % (x.shape[2] * times) else jnp.repeat(x, times, axis=2)


def _by_window(compute, window, local_window):
    """`compute(window)` with a window that is no array: a layer that sees all takes the other of two branches."""
    if not isinstance(window, jax.Array):
        return compute(window)
    return jax.lax.cond(window <= local_window, lambda: compute(local_window), lambda: compute(None))


def choose_kernel(kernel: str, query, key, *, scale, soft_cap, window, local_window=None) -> str:
    """The kernel that computes this attention: the one asked for, or under `auto` the platform's if it can."""
    whole_rows = key.shape[1] == query.shape[1]
    if kernel != 'auto':
        # Responses behind a shared prompt have more keys than queries: no vendor's kernel takes their mask.
        return kernel if whole_rows or kernel not in ('cudnn', 'splash') else 'blockwise'
    device, width = platform(), query.shape[-1]
    whole_rows &= not isinstance(window, jax.Array) or local_window is not None
    halves = query.dtype in (jnp.bfloat16, jnp.float16)
    if device in ('gpu', 'cuda') and halves and soft_cap is None and width % 8 == 0 and width <= 128 and whole_rows:
        return 'cudnn'
    if device == 'tpu' and whole_rows and query.shape[1] % 128 == 0 and width % 64 == 0:
        return 'splash'
    # Of rows that fit into a block, one block is all.
    return 'dense' if max(query.shape[1], key.shape[1]) <= _SHORT else 'blockwise'


def visible(segments, positions, key_segments, key_positions, window=None) -> jax.Array:
    """Which keys each query sees: of its segment, at no later position, within the window.

    Padding (segment 0) sees padding, so that no row of the softmax is empty; nobody reads those rows.

    Args:
      segments, positions: int32[B, T] of the queries.
      key_segments, key_positions: int32[B, S].
      window: positions that a query sees, its own included; None for all.

    Returns:
      bool[B, T, S].
    """
    behind = positions[:, :, None] - key_positions[:, None, :]
    seen = (segments[:, :, None] == key_segments[:, None, :]) & (behind >= 0)
    return seen if window is None else seen & (behind < window)


def _write(keys, values, key, value, index, layer):
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


def _attend_cache(query, cache, reading, layer, *, scale, soft_cap, window):
    """Over the slots of a layer's cache, block by block as far as they are filled."""
    keys, values = cache
    slots = values.shape[-2]
    mask = visible(reading.segment_ids, reading.positions, reading.cache_segments, reading.cache_positions, window)
    if slots <= _CACHE_BLOCK:
        if layer is not None:
            keys, values = keys[layer], values[layer]
        return _softmax_product(query, keys, values, mask, scale, soft_cap).astype(values.dtype)

    size = _CACHE_BLOCK
    filled = jnp.max(jnp.where(reading.cache_segments > 0, jnp.arange(1, slots + 1), 0))

    def block(i, carry):
        # The last block reaches back where the slots do not divide; what it sees again is masked out.
        start = jnp.minimum(i * size, slots - size)
        key, value = _slots(keys, layer, 3, start, size), _slots(values, layer, 2, start, size)
        seen = jax.lax.dynamic_slice_in_dim(mask, start, size, axis=2) & (jnp.arange(size) + start >= i * size)
        scores = _scores(query, key, seen, scale, soft_cap)
        highest, total, out = carry
        new = jnp.maximum(highest, jnp.max(scores, axis=-1, keepdims=True))
        weights, shrink = jnp.exp(scores - new), jnp.exp(highest - new)
        out = shrink * out + _weighted(weights, value)
        return new, shrink * total + jnp.sum(weights, axis=-1, keepdims=True), out

    batch, length, heads, width = query.shape
    kv_heads = values.shape[-3]
    shape = (batch, kv_heads, heads // kv_heads, length)
    start = jnp.full((*shape, 1), -1e30), jnp.zeros((*shape, 1)), jnp.zeros((*shape, width))
    _, total, out = jax.lax.fori_loop(0, (filled + size - 1) // size, block, start)
    out = out / jnp.maximum(total, jnp.finfo(total.dtype).tiny)
    return out.transpose(0, 3, 1, 2, 4).reshape(query.shape).astype(values.dtype)


def _scores(query, key, mask, scale, soft_cap):
    """[B, T, heads, H], [B, kv_heads, H, S] -> float32[B, kv_heads, heads / kv_heads, T, S]."""
    batch, length, _, width = query.shape
    groups = query.reshape(batch, length, key.shape[1], -1, width).transpose(0, 2, 3, 1, 4)
    # All queries of a key's head in one axis: with two, XLA's CPU products would copy the keys in another order.
    rows = groups.reshape(batch, key.shape[1], -1, width)
    scores = jnp.einsum('bkqh,bkhs->bkqs', rows, key, preferred_element_type=jnp.float32) * scale
    scores = scores.reshape(*groups.shape[:4], -1)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    return jnp.where(mask[:, None, None], scores, -1e30)


def _weighted(weights, value):
    """[B, kv_heads, heads / kv_heads, T, S], [B, kv_heads, S, H] -> [B, kv_heads, heads / kv_heads, T, H]."""
    rows = weights.reshape(*weights.shape[:2], -1, weights.shape[-1]).astype(value.dtype)
    return jnp.einsum('bkqs,bksh->bkqh', rows, value).reshape(*weights.shape[:4], -1)


def _softmax_product(query, key, value, mask, scale, soft_cap):
    weights = jax.nn.softmax(_scores(query, key, mask, scale, soft_cap), axis=-1)
    return _weighted(weights, value).transpose(0, 3, 1, 2, 4).reshape(query.shape)
