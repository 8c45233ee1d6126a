"""Who attends to whom, and which kernel computes attention where.

A key is visible to a query of the same segment at the same or a later position. Leaves out the key-value cache
(cache.py), and projections and rotary positions: transformer.py hands in finished queries, keys and values.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from rlax_ft.models.blockwise import blockwise_attention
from rlax_ft.models.cache import Reading, attend_cache, write_slots
from rlax_ft.models.dense import softmax_product, visible
from rlax_ft.models.kernels import cudnn_attention, splash_attention
from rlax_ft.parallel.constrain import active_mesh, over_devices
from rlax_ft.parallel.mesh import platform

# What --attention takes; `auto` is cudnn on NVIDIA GPUs, splash on TPUs, where they can do what is asked, or blockwise.
KERNELS = ('auto', 'blockwise', 'dense', 'cudnn', 'splash')

# Places up to which attention is computed in one piece.
_SHORT = 64


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    reading: Reading,
    cache: tuple[jax.Array, ...] | None = None,
    *,
    layer: jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: jax.Array | int | None = None,
    local_window: int | None = None,
    kernel: str = 'auto',
) -> tuple[jax.Array, tuple[jax.Array, ...] | None]:
    """softmax(cap(scale q k^T) + mask) v, grouped-query (arXiv 2305.13245), after what the cache holds if there is one.

    Args:
      query: [B, T, heads, H], rotated.
      key: [B, T, kv_heads, H], rotated.
      value: [B, T, kv_heads, H].
      reading: which keys each query may see.
      cache: keys [B, kv_heads, H, S] and values [B, kv_heads, S, H] of this layer, and those that groups of rows share,
        if any; or None.
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
        keys, values, *shared = cache
        cache = (*write_slots(keys, values, key, value, reading.index, layer), *shared)
        if not reading.prefill:
            return attend_cache(query, cache, reading, layer, **how), cache
    how |= dict(kernel=kernel, local_window=local_window)
    if reading.prompt is None:
        places = (reading.segment_ids, reading.positions)
        return _attend_keys(query, key, value, *places, *places, **how), cache
    return _attend_branches(query, key, value, reading, **how), cache


def _attend_branches(query, key, value, reading, **how):
    """Splash on the whole row, or the prompt by itself, then every response with the prompt's keys before its own."""
    places = (reading.segment_ids, reading.positions)
    cut, count = reading.prompt, reading.branches
    if query.shape[1] % 128 == 0 and choose_kernel(query=query, key=key, **how) == 'splash':
        out = _attend_keys(query, key, value, *places, *places, **how | dict(kernel='splash', branches=(cut, count)))
        if out is not None:
            return out
    prompt = [x[:, :cut] for x in (query, key, value, *places)]
    response = [x[:, cut:].reshape(x.shape[0] * count, -1, *x.shape[2:]) for x in (query, key, value, *places)]
    both = [jnp.concatenate([jnp.repeat(p, count, axis=0), r], axis=1) for p, r in zip(prompt[1:], response[1:])]
    in_prompt = _attend_keys(*prompt, *prompt[3:], **how)
    in_response = _attend_keys(response[0], *both[:2], *response[3:], *both[2:], **how)
    return jnp.concatenate([in_prompt, in_response.reshape(query.shape[0], -1, *query.shape[2:])], axis=1)


def _attend_keys(query, key, value, *places, kernel, window, local_window=None, branches=None, **how):
    """Without a cache: the queries are the last of the keys. On a mesh each device has its own rows and heads.

    With `branches` splash alone; None where the mesh splits what it must have whole.
    """
    kernel = choose_kernel(kernel, query, key, window=window, local_window=local_window, **how)
    key, value = (_heads_for_all(x, query) for x in (key, value))
    traced = (window,) if isinstance(window, jax.Array) else ()

    def run(query, key, value, *rest, kernel=kernel, first=None):
        places, seen = rest[:4], rest[4] if traced else window
        if kernel in ('splash', 'cudnn'):
            compute = partial(splash_attention, branches=branches) if kernel == 'splash' else cudnn_attention
            return _by_window(lambda w: compute(query, key, value, *places, window=w, **how), seen, local_window)
        if kernel == 'blockwise':
            return blockwise_attention(query, key, value, *places, window=seen, first=first, **how)
        mask = visible(*places, seen)
        keys, values = key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)
        return softmax_product(query, keys, values, mask, how['scale'], how['soft_cap']).astype(value.dtype)

    arguments = (query, key, value, *places, *traced)
    kinds = ('heads',) * 3 + ('tokens',) * 2 + ('rows',) * 2 + (None,) * len(traced)
    if branches and _row_parts(query) > 1:
        return None
    on_device = partial(_with_whole_rows, run) if _row_parts(query) > 1 else run
    mapped = over_devices(on_device, kinds, 'heads', arguments)
    if mapped is None:
        # Rows or heads do not divide: the compiler splits what is no kernel of a vendor's.
        return None if branches else run(*arguments, kernel='blockwise' if kernel in ('splash', 'cudnn') else kernel)
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
