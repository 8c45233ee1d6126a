"""Attention in blocks (arXiv 2205.14135): what runs where no vendor's kernel does.

Forward and backward hold the scores of one block of queries and keys at a time, never [T, S], and blocks that causality
or the window rules out are not computed. Leaves out the key-value cache and the choice of kernel (attention.py).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlax_ft.parallel.constrain import active_mesh
from rlax_ft.parallel.mesh import platform

_NEVER = -1e30  # Finite, so that a block in which a query sees nothing gives no NaN.
_IN_CACHE = 2**17  # Scores, in float32 half a megabyte. Measured on a CPU.


class _Settings(NamedTuple):
    scale: float
    soft_cap: float | None
    query_block: int
    key_block: int
    offset: int  # Place among the keys of the first query, before both are padded at the end.
    rows: int  # Rows of the batch that are computed together.


class _Places(NamedTuple):
    """Segments and positions of queries [T] and keys [S], the window (None: all), and the first query's place."""

    query_segments: jax.Array
    query_positions: jax.Array
    key_segments: jax.Array
    key_positions: jax.Array
    window: jax.Array | None
    first: jax.Array | None


def blockwise_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array,
    query_positions: jax.Array,
    key_segments: jax.Array,
    key_positions: jax.Array,
    *,
    scale: float,
    soft_cap: float | None = None,
    window: jax.Array | int | None = None,
    first: jax.Array | None = None,
    block: int | None = None,
) -> jax.Array:
    """softmax(cap(scale q k^T) + mask) v; a query sees keys of its segment at no later position, within the window.

    Args:
      query: [B, T, heads, H].
      key: [B, S, kv_heads, H], S >= T: within a segment, places are in order, and the queries are T of them.
      value: [B, S, kv_heads, H].
      query_segments, query_positions: int32[B, T].
      key_segments, key_positions: int32[B, S].
      scale: of the scores.
      soft_cap: scores become soft_cap tanh(scores / soft_cap).
      window: positions that a query sees, its own included.
      first: int32[], the place among the keys where the queries begin; S - T when absent.
      block: queries, and keys, in a block; chosen by length when absent.

    Returns:
      [B, T, heads, H].
    """
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    block = block or (64 if length <= 512 else 256)  # Measured on a CPU.
    query_block, key_block = min(block, length), min(block, key.shape[1])
    # What a CPU holds of the scores should stay in a core's own cache between one operation and the next. Rows that the
    # compiler splits over a mesh stay together: one group after another would be gathered.
    few = platform() == 'cpu' and active_mesh(query) is None
    rows = min(batch, max(1, _IN_CACHE // (heads * query_block * key_block))) if few else batch
    rows = max(n for n in range(1, rows + 1) if batch % n == 0)
    settings = _Settings(scale, soft_cap, query_block, key_block, key.shape[1] - length, rows)
    pad_q, pad_k = -length % settings.query_block, -key.shape[1] % settings.key_block
    # [B, T, heads, H] -> [B, kv_heads, heads / kv_heads, T, H]; padded places belong to segments that nobody has.
    query = _pad(query.reshape(batch, length, groups, -1, width).transpose(0, 2, 3, 1, 4), pad_q, 3)
    key, value = (_pad(x.transpose(0, 2, 1, 3), pad_k, 2) for x in (key, value))
    places = _Places(
        _pad(jnp.asarray(query_segments), pad_q, 1, -1),
        _pad(jnp.asarray(query_positions), pad_q, 1),
        _pad(jnp.asarray(key_segments), pad_k, 1, -2),
        _pad(jnp.asarray(key_positions), pad_k, 1),
        None if window is None else jnp.asarray(window, jnp.int32),
        first,
    )
    out = _attend(settings, query, key, value, places)
    return out[..., :length, :].transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings, query, key, value, places):
    """[B, K, G, T, H], [B, K, S, H], [B, K, S, H] -> [B, K, G, T, H]."""
    return _forward(settings, query, key, value, places)[0]


def _forward(settings, query, key, value, places):
    """The output, and what the backward pass needs: the arguments, the output, and each query's log-normaliser."""
    out, log_z = _by_rows(settings, partial(_forward_rows, settings), places, query, key, value)
    return out, (query, key, value, places, out, log_z)


def _forward_rows(settings, places, query, key, value):
    """A running softmax over key blocks, for one query block after another."""
    count = query.shape[3] // settings.query_block
    if count == 1:
        out, log_z = _softmax_over_keys(settings, query, key, value, places, 0)
    else:

        def query_block(j):
            q = _block(query, j, settings.query_block, axis=3)
            return _softmax_over_keys(settings, q, key, value, places, j)

        out, log_z = (_join(x) for x in jax.lax.map(query_block, jnp.arange(count)))
    return out, log_z


def _softmax_over_keys(settings, query, key, value, places, j):
    def key_block(i, carry):
        highest, total, out = carry
        k, v = (_block(x, i, settings.key_block, axis=2) for x in (key, value))
        scores = _scores(settings, query, k, places, j, i)
        new = jnp.maximum(highest, jnp.max(scores, axis=-1))
        weights, shrink = jnp.exp(scores - new[..., None]), jnp.exp(highest - new)
        out = shrink[..., None] * out + _matmul(weights.astype(v.dtype), v)
        return new, shrink * total + jnp.sum(weights, axis=-1), out

    start = jnp.full(query.shape[:4], _NEVER), jnp.zeros(query.shape[:4]), jnp.zeros(query.shape)
    highest, total, out = jax.lax.fori_loop(*_key_blocks(settings, key, places, j), key_block, start)
    return (out / total[..., None]).astype(value.dtype), highest + jnp.log(total)


def _backward(settings, saved, d_out):
    """The gradients of queries, keys and values."""
    query, key, value, places, out, log_z = saved
    rows = partial(_backward_rows, settings)
    return *_by_rows(settings, rows, places, query, key, value, out, log_z, d_out), None


def _backward_rows(settings, places, query, key, value, out, log_z, d_out):
    """Weights P are made again: dV = P^T dO, dS = P (dO V^T - <dO, O>), dQ = dS K, dK = dS^T Q."""
    count = query.shape[3] // settings.query_block
    centre = jnp.sum(d_out.astype(jnp.float32) * out, axis=-1)

    def query_block(carry, j):
        q, d_o, c, z = (_block(x, j, settings.query_block, axis=3) for x in (query, d_out, centre, log_z))
        # Sums over queries are products with these: XLA's CPU products are slow where their left side is transposed.
        q_transposed, d_o_transposed = (_rows(x).mT for x in (q, d_o))

        def key_block(i, carry):
            d_q, d_k, d_v = carry
            k, v = (_block(x, i, settings.key_block, axis=2) for x in (key, value))
            scores = _scores(settings, q, k, places, j, i)
            weights = jnp.exp(scores - z[..., None])
            d_scores = weights * (_matmul(d_o, v.mT) - c[..., None])
            if settings.soft_cap is not None:
                # Masked scores lie far below -cap: their weight is 0, and 0 times their square would be NaN.
                slope = 1.0 - jnp.square(jnp.maximum(scores / settings.soft_cap, -1.0))
                d_scores = d_scores * slope
            d_scores = (d_scores * settings.scale).astype(q.dtype)
            d_k = _add_block(d_k, i, _product(q_transposed, _rows(d_scores)))
            d_v = _add_block(d_v, i, _product(d_o_transposed, _rows(weights.astype(v.dtype))))
            return d_q + _matmul(d_scores, k), d_k, d_v

        start = (jnp.zeros(q.shape), *carry)
        d_q, *carry = jax.lax.fori_loop(*_key_blocks(settings, key, places, j), key_block, start)
        return tuple(carry), d_q

    zeros = tuple(jnp.zeros(x.mT.shape) for x in (key, value))
    (d_key, d_value), d_query = jax.lax.scan(query_block, zeros, jnp.arange(count))
    return _join(d_query).astype(query.dtype), d_key.mT.astype(key.dtype), d_value.mT.astype(value.dtype)


def _by_rows(settings, compute, places, *arrays):
    """`compute(places, *arrays)` of `settings.rows` rows after another."""
    if settings.rows == arrays[0].shape[0]:
        return compute(places, *arrays)
    split = lambda x: x.reshape(-1, settings.rows, *x.shape[1:])  # noqa: E731
    compute_part = lambda part: compute(_Places(*part[0], *places[4:]), *part[1])  # noqa: E731
    parts = jax.lax.map(compute_part, jax.tree.map(split, (places[:4], arrays)))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)


_attend.defvjp(_forward, _backward)


def _scores(settings, query, key, places, j, i):
    """Scores of query block j at key block i, float32[B, K, G, T', S']."""
    segments, positions = (
        _block(x, j, settings.query_block, axis=1)[:, :, None] for x in (places.query_segments, places.query_positions)
    )
    key_segments, key_positions = (
        _block(x, i, settings.key_block, axis=1)[:, None] for x in (places.key_segments, places.key_positions)
    )
    visible = (segments == key_segments) & (key_positions <= positions)
    if places.window is not None:
        visible &= positions - key_positions < places.window
    scores = _matmul(query, key.mT) * settings.scale
    if settings.soft_cap is not None:
        scores = settings.soft_cap * jnp.tanh(scores / settings.soft_cap)
    return jnp.where(visible[:, None, None], scores, _NEVER)


def _key_blocks(settings, key, places, j):
    """(first, end) of the key blocks that query block j can see."""
    offset = settings.offset if places.first is None else places.first
    reach = (j + 1) * settings.query_block + offset
    end = (reach + settings.key_block - 1) // settings.key_block
    first = 0
    if places.window is not None:
        # The window of layers that see all is the largest number: less anything more it would wrap around.
        window = jnp.minimum(places.window, key.shape[2])
        first = jnp.maximum(j * settings.query_block + offset - window + 1, 0) // settings.key_block
    return first, jnp.minimum(end, key.shape[2] // settings.key_block)


def _matmul(x, matrix):
    """[B, K, G, T, a] @ [B, K, a, b]: one product for each key-value head."""
    return _product(_rows(x), matrix).reshape(*x.shape[:4], matrix.shape[3])


def _product(x, y):
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def _rows(x):
    """[B, K, G, T, a] -> [B, K, G T, a]."""
    return x.reshape(*x.shape[:2], -1, x.shape[4])


def _block(x, i, size, axis):
    return jax.lax.dynamic_slice_in_dim(x, i * size, size, axis)


def _add_block(total, i, part):
    """Adds to block i of the last axis."""
    size = part.shape[3]
    return jax.lax.dynamic_update_slice_in_dim(total, _block(total, i, size, axis=3) + part, i * size, axis=3)


def _join(blocks):
    """[blocks, B, K, G, T', ...] -> [B, K, G, T, ...]."""
    x = jnp.moveaxis(blocks, 0, 3)
    return x.reshape(*x.shape[:3], -1, *x.shape[5:])


def _pad(x, count, axis, fill=0):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, count)
    return jnp.pad(x, widths, constant_values=fill) if count else x
