"""Log-probabilities and entropies of tokens, with or without the logits ever being held.

Leaves out masks on the result and shifts: hidden state t is scored against target t, whoever calls has aligned them.
"""

import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from rlax_ft.ops.arrays import as_float, as_ids, as_mask, keep

# Up to this many logits at once, `chunk=None` means no chunks; above it, at most 1/16 of them is held at a time, or
# 1/32 with entropies, whose backward pass keeps four arrays of a chunk's size: 2/16 and 4/32 are well below a quarter.
# A chunk of `CHUNK` logits is never too large: a CPU multiplies much smaller ones at less than its rate.
SMALL = 2**22
SHARE, SHARE_WITH_ENTROPY = 16, 32
CHUNK = 2**21
# From this many logits on, a mask is worth chunks of their own accord: those that are wholly masked are then skipped.
WORTH_SKIPPING = 2**18
# Axes of a mesh that spread rows over devices, where it has them.
ROW_AXES = ('data', 'fsdp', 'expert', 'sequence')
# The axis that splits rows themselves: each part is then a row by itself.
SEQUENCE_AXIS = 'sequence'
# Axes over which a head is split along D.
HEAD_AXES = ('fsdp', 'sequence')


def token_logprobs(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """log softmax(logits)[target], without a second array of the logits' size.

    Args:
      logits: float[..., V].
      targets: int[...], below V.

    Returns:
      float32[...], in nats.

    Raises:
      AssertionError: the leading shapes differ, or targets are not integers.
    """
    logits = as_float(logits=logits)
    targets = as_ids(logits.shape[:-1], targets=targets)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def entropy(logits: jax.Array) -> jax.Array:
    """H = -sum_v p_v log p_v of softmax(logits); a logit of -inf is a token that cannot be.

    Args:
      logits: float[..., V].

    Returns:
      float32[...], in nats.
    """
    log_p = jax.nn.log_softmax(as_float(logits=logits))
    possible = log_p > -jnp.inf  # 0 log 0 = 0, in the gradient too
    log_p = keep(possible, log_p)
    return -jnp.sum(keep(possible, jnp.exp(log_p)) * log_p, axis=-1)


def chunked_token_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    chunk: int | None,
    temperature: float = 1.0,
    mask: jax.Array | None = None,
    soft_cap: float | jax.Array | None = None,
) -> jax.Array:
    """`token_logprobs(softcap(hidden @ head) / temperature, targets)` without ever holding [B, T, V].

    The logits of `chunk` positions are made, reduced and dropped; the backward pass makes them again. Under
    `jax.set_mesh` each row is chunked along T, so that rows stay on their devices, and a head that is sharded over V
    stays sharded; without a mesh the B*T positions are chunked as one row.

    Args:
      hidden: float[B, T, D].
      head: float[D, V].
      targets: int[B, T], below V; anything where masked.
      chunk: at most this many of the B*T positions are held at once; when B*T*V is above `SMALL` never more
        than 1/16 of them, or than `CHUNK` logits, and under a mesh at least one of each row. None leaves the choice
        here: one piece when B*T*V is small.
      temperature: what the logits are divided by, as in sampling; not differentiated.
      mask: [B, T], positions that count; the others cost nothing (whole chunks of them) and give 0. None: all.
      soft_cap: logits become soft_cap tanh(logits / soft_cap), before the temperature (Gemma 2, arXiv 2408.00118).

    Returns:
      float32[B, T], in nats; gradients have the dtypes of `hidden` and `head`.

    Raises:
      AssertionError: a shape or dtype is wrong.
      ValueError: chunk below 1.
    """
    return _chunked(hidden, head, targets, chunk, temperature, mask, soft_cap, with_entropy=False)[0]


def chunked_token_logprobs_and_entropy(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    chunk: int | None,
    temperature: float = 1.0,
    mask: jax.Array | None = None,
    soft_cap: float | jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`chunked_token_logprobs` and the entropy of each position's distribution, from one pass over the vocabulary.

    Args:
      hidden, head, targets, chunk, temperature, mask, soft_cap: as `chunked_token_logprobs`.

    Returns:
      (log-probabilities, entropies), each float32[B, T], in nats.
    """
    return _chunked(hidden, head, targets, chunk, temperature, mask, soft_cap, with_entropy=True)


def _chunked(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    chunk: int | None,
    temperature: float,
    mask: jax.Array | None,
    soft_cap: float | jax.Array | None,
    *,
    with_entropy: bool,
):
    """Checks, chooses one piece or chunks, and lays the positions out as [rows, length]."""
    hidden, head = jnp.asarray(hidden), jnp.asarray(head)
    chex.assert_rank(hidden, 3, custom_message=f'`hidden` must be [B, T, D], got shape {hidden.shape}.')
    chex.assert_shape(
        head, (hidden.shape[-1], None), custom_message=f'`head` must be [D, V] with D of `hidden`, got {head.shape}.'
    )
    chex.assert_type([hidden, head], float, custom_message='`hidden` and `head` must be floating point.')
    shape = hidden.shape[:2]
    targets = as_ids(shape, targets=targets)
    if mask is not None:
        mask = as_mask(shape, mask=mask)
        targets = keep(mask, targets)
        hidden = keep(mask[..., None], hidden)
    if chunk is not None and chunk < 1:
        raise ValueError(f'chunk must be at least 1, got {chunk}')

    positions, vocabulary = shape[0] * shape[1], head.shape[1]
    held = positions if chunk is None else chunk
    if positions * vocabulary > SMALL:
        share = positions // (SHARE_WITH_ENTROPY if with_entropy else SHARE)
        held = min(held, max(1, share, CHUNK // vocabulary))
    elif chunk is None and mask is not None and positions * vocabulary > WORTH_SKIPPING:
        held = max(1, positions // 8)
    settings = _Settings(soft_cap, with_entropy, chunk=0)
    scale = jnp.asarray(temperature, jnp.promote_types(jnp.result_type(hidden, head), jnp.float32))
    if held >= positions:
        outputs = _from_logits(_logits(hidden, head, scale, settings), targets, settings)[:-1]
    else:
        # Rows are the unit that a mesh spreads over devices; slicing across them would gather the hidden states.
        mesh = jax.sharding.get_abstract_mesh()
        parts = math.gcd(mesh.shape.get(SEQUENCE_AXIS, 1), shape[1])
        rows = 1 if mesh.empty else shape[0] * parts
        length = positions // rows
        pieces = -(-length // max(1, held // rows))
        settings = settings._replace(chunk=-(-length // pieces))
        by_row = hidden.reshape(rows, length, -1), targets.reshape(rows, length)
        outputs = _scan_rows(*by_row, head, scale, None if mask is None else mask.reshape(rows, length), settings)
        outputs = tuple(x.reshape(shape) for x in outputs)
    return outputs if mask is None else tuple(keep(mask, x) for x in outputs)


class _Settings(NamedTuple):
    """What is static: how logits are made, what is wanted of them, and how many positions of a row are held."""

    soft_cap: float | jax.Array | None
    with_entropy: bool
    chunk: int


def _raw(hidden: jax.Array, head: jax.Array):
    """hidden @ head in at least float32, [..., D], [D, V] -> [..., V]; bfloat16 inputs are multiplied as they are."""
    dtype = jnp.promote_types(jnp.result_type(hidden, head), jnp.float32)
    return jnp.matmul(hidden, head, preferred_element_type=dtype)


def _shape_logits(raw: Any, temperature: Any, settings: _Settings):
    """softcap(raw) / temperature."""
    if settings.soft_cap is not None:
        raw = settings.soft_cap * jnp.tanh(raw / settings.soft_cap)
    return raw / jax.lax.stop_gradient(temperature)


def _logits(hidden: jax.Array, head: jax.Array, temperature: Any, settings: _Settings):
    return _shape_logits(_raw(hidden, head), temperature, settings)


def _hits(logits: jax.Array, targets: jax.Array):
    """One-hot targets as a comparison: it fuses, and a vocabulary that is sharded needs no gather."""
    return targets[..., None] == jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)


def _from_logits(logits: jax.Array, targets: jax.Array, settings: _Settings):
    """([..., V], [...]) -> (log-probabilities, entropies if they are wanted, log-normalisers)."""
    chosen = jnp.sum(keep(_hits(logits, targets), logits), axis=-1)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return (chosen - log_z, entropy(logits), log_z) if settings.with_entropy else (chosen - log_z, log_z)


def _logits_gradient(logits: jax.Array, targets: jax.Array, known: Any, cotangents: Any):
    """Cotangents of log-probabilities and entropies -> that of logits: g (onehot - p) - g_H p (log p + H)."""
    *entropies, log_z = known
    log_p = logits - log_z[..., None]
    p = jnp.exp(log_p)
    gradient = cotangents[0][..., None] * (_hits(logits, targets) - p)
    if entropies:
        log_p = keep(log_p > -jnp.inf, log_p)
        gradient -= cotangents[1][..., None] * p * (log_p + entropies[0][..., None])
    return gradient


def _plan(mask: jax.Array, length: int, chunk: int):
    """Where positions go so that those that count come first, how many chunks have any, and the padded length."""
    pieces = -(-length // chunk)
    if mask is None:
        return None, pieces
    order = jnp.argsort(~mask, axis=1, stable=True)
    most = jnp.max(jnp.sum(mask, axis=1))
    return order, (most + chunk - 1) // chunk


def _to_front(x: jax.Array, order: jax.Array, chunk: int):
    """Reorders axis 1 of [R, L, ...] and pads it to whole chunks."""
    if order is not None:
        x = jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % chunk)) + ((0, 0),) * (x.ndim - 2))


def _to_place(x: jax.Array, order: jax.Array, length: int):
    """Undoes `_to_front`."""
    x = x[:, :length]
    if order is None:
        return x
    back = jnp.argsort(order, axis=1)
    return jnp.take_along_axis(x, back.reshape(back.shape + (1,) * (x.ndim - 2)), axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _scan_rows(
    hidden: jax.Array, targets: jax.Array, head: jax.Array, temperature: float, mask: jax.Array, settings: _Settings
):
    """[R, L, D], [R, L], [D, V] -> tuple of [R, L], with `settings.chunk` positions of each row at a time."""
    order, pieces = _plan(mask, targets.shape[1], settings.chunk)
    outputs = _scan_chunks(hidden, targets, head, temperature, order, pieces, settings)
    return tuple(_to_place(x, order, targets.shape[1]) for x in outputs[:-1])


def _scan_chunks(hidden: Any, targets: Any, head: Any, temperature: Any, order: Any, pieces: Any, settings: _Settings):
    """What `_from_logits` gives, where `_to_front` puts it, [R, L padded to whole chunks]."""
    chunk = settings.chunk
    hidden, targets = _to_front(hidden, order, chunk), _to_front(targets, order, chunk)

    def step(i: jax.Array, outputs: jax.Array):
        part = [jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1) for x in (hidden, targets)]
        values = _from_logits(_logits(part[0], head, temperature, settings), part[1], settings)
        return tuple(jax.lax.dynamic_update_slice_in_dim(o, v, i * chunk, axis=1) for o, v in zip(outputs, values))

    zeros = jnp.zeros(targets.shape, jnp.promote_types(jnp.result_type(hidden, head), jnp.float32))
    return jax.lax.fori_loop(0, pieces, step, (zeros,) * (3 if settings.with_entropy else 2))


def _scan_rows_forward(
    hidden: jax.Array, targets: jax.Array, head: jax.Array, temperature: float, mask: jax.Array, settings: Any
):
    order, pieces = _plan(mask, targets.shape[1], settings.chunk)
    outputs = _scan_chunks(hidden, targets, head, temperature, order, pieces, settings)
    saved = hidden, targets, head, temperature, order, pieces, outputs[1:]
    return tuple(_to_place(x, order, targets.shape[1]) for x in outputs[:-1]), saved


def _scan_rows_backward(settings: Any, saved: Any, cotangents: Any):
    """Makes each chunk's logits again; the head's gradient is summed in float32 and cast once, at the end."""
    hidden, targets, head, temperature, order, pieces, known = saved
    chunk, length = settings.chunk, targets.shape[1]
    moved = *(_to_front(x, order, chunk) for x in (hidden, targets, *cotangents)), *known

    def step(i: jax.Array, gradients: jax.Array):
        d_hidden, d_head = gradients
        part_hidden, part_targets, *rest = (jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1) for x in moved)
        logits, pull = jax.vjp(lambda z: _shape_logits(z, temperature, settings), _raw(part_hidden, head))
        (d_logits,) = pull(_logits_gradient(logits, part_targets, rest[len(cotangents) :], rest[: len(cotangents)]))
        d_part = jnp.einsum('rcv,dv->rcd', d_logits, head, preferred_element_type=d_logits.dtype)
        d_hidden = jax.lax.dynamic_update_slice_in_dim(d_hidden, d_part.astype(hidden.dtype), i * chunk, axis=1)
        return d_hidden, add_to_head(d_head, part_hidden, d_logits)

    add_to_head, zeros, total = _head_sums(targets.shape[0], head, cotangents[0].dtype)
    d_hidden, d_head = jax.lax.fori_loop(0, pieces, step, (jnp.zeros_like(moved[0]), zeros))
    return _to_place(d_hidden, order, length), None, total(d_head), jnp.zeros_like(temperature), None


def _head_sums(rows: int, head: jax.Array, dtype: Any):
    """(add, zeros, total) of the head's gradient: one sum, or on a mesh one for each device's rows.

    Devices add theirs up once, after the last chunk, and not after every one; under `fsdp` each gets its part.
    """
    shape = head.shape
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty or mesh.manual_axes else tuple(a for a in ROW_AXES if mesh.shape.get(a, 1) > 1)
    groups = math.prod(mesh.shape[axis] for axis in axes)
    if groups == 1 or rows % groups:

        def add(total: jax.Array, hidden: jax.Array, gradient: jax.Array):
            return total + jnp.einsum('rcd,rcv->dv', hidden, gradient, preferred_element_type=dtype)

        return add, jnp.zeros(shape, dtype), lambda total: total.astype(head.dtype)
    split = P(axes, None, P.UNCONSTRAINED)
    scattering = tuple(axis for axis in HEAD_AXES if axis in axes)

    def add_by_group(total: jax.Array, hidden: jax.Array, gradient: jax.Array):
        parts = (x.reshape(groups, -1, *x.shape[1:]) for x in (hidden, gradient))
        total = total + jnp.einsum('grcd,grcv->gdv', *parts, preferred_element_type=dtype)
        return jax.lax.with_sharding_constraint(total, split)

    def scattered(own: jax.Array):
        rest = tuple(axis for axis in axes if axis not in HEAD_AXES)
        own = jax.lax.psum(own[0], rest) if rest else own[0]
        return jax.lax.psum_scatter(own, scattering, tiled=True)

    def sum_over_groups(total: jax.Array):
        total = total.astype(head.dtype)
        if not scattering or shape[0] % math.prod(mesh.shape[axis] for axis in scattering):
            return jnp.sum(total, axis=0)
        # The compiler would reduce the whole head to every device, and slice.
        over_axes = functools.partial(jax.shard_map, axis_names=set(axes), check_vma=False)
        return over_axes(scattered, in_specs=P(axes), out_specs=P(scattering))(total)

    zeros = jax.lax.with_sharding_constraint(jnp.zeros((groups, *shape), dtype), split)
    return add_by_group, zeros, sum_over_groups


_scan_rows.defvjp(_scan_rows_forward, _scan_rows_backward)
