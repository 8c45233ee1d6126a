"""Divergences between whole distributions over the vocabulary, with or without the logits ever being held.

Leaves out reduction over tokens.
"""

import math

import chex
import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_mask, keep
from rlax_ft.ops.logprobs import SHARE_WITH_ENTROPY, SMALL

# Far below any log-probability: 0 log 0 = 0 where a token cannot be (logit -inf).
_FLOOR = -1e30


def jsd_of_logits(student: jax.Array, teacher: jax.Array, beta: float) -> jax.Array:
    """beta KL(P_T || M) + (1 - beta) KL(P_S || M), M = (1 - beta) P_S + beta P_T (arXiv 2306.13649, equation 1).

    Args:
      student: logits, float[..., V].
      teacher: logits, float[..., V].
      beta: in [0, 1]; 0 is KL(P_T || P_S), 1 is KL(P_S || P_T).

    Returns:
      float[...], in nats.
    """
    log_s, log_t = (jnp.maximum(jax.nn.log_softmax(x), _FLOOR) for x in (student, teacher))
    if beta == 0:
        return _kl(log_t, log_s)
    if beta == 1:
        return _kl(log_s, log_t)
    log_m = jnp.logaddexp(log_s + jnp.log1p(-beta), log_t + jnp.log(beta))
    return beta * _kl(log_t, log_m) + (1.0 - beta) * _kl(log_s, log_m)


def chunked_jsd(
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array,
    teacher_head: jax.Array,
    *,
    beta: float,
    chunk: int | None = None,
    temperature: float = 1.0,
    mask: jax.Array | None = None,
    student_soft_cap: float | jax.Array | None = None,
    teacher_soft_cap: float | jax.Array | None = None,
) -> jax.Array:
    """`jsd_of_logits` of softcap(hidden @ head) / temperature, without ever holding [B, T, V] of either model.

    The logits of `chunk` positions are made, reduced and dropped; the backward pass makes them again. Under
    `jax.set_mesh` each row is chunked along T, so that rows stay on their devices; without a mesh the B*T positions are
    chunked as one row. Chunks in which nothing counts cost nothing.

    Args:
      student_hidden: float[B, T, D].
      student_head: float[D, V].
      teacher_hidden: float[B, T, E]; the teacher's width may differ.
      teacher_head: float[E, V].
      beta: in [0, 1], as `jsd_of_logits`.
      chunk: at most this many of the B*T positions are held at once; None leaves the choice here.
      temperature: what both logits are divided by.
      mask: [B, T], positions that count; None: all.
      student_soft_cap, teacher_soft_cap: logits become cap tanh(logits / cap), before the temperature.

    Returns:
      float32[B, T], in nats, 0 where masked.

    Raises:
      AssertionError: a rank or shape is wrong.
      ValueError: chunk below 1.
    """
    chex.assert_rank([student_hidden, teacher_hidden], 3)
    shape = student_hidden.shape[:2]
    chex.assert_shape(teacher_hidden, (*shape, None))
    chex.assert_shape(student_head, (student_hidden.shape[2], None))
    chex.assert_shape(teacher_head, (teacher_hidden.shape[2], student_head.shape[1]))
    if chunk is not None and chunk < 1:
        raise ValueError(f'chunk must be at least 1, got {chunk}')
    mask = jnp.ones(shape, bool) if mask is None else as_mask(shape, mask=mask)
    hidden = keep(mask[..., None], student_hidden), keep(mask[..., None], teacher_hidden)

    positions = math.prod(shape)
    held = positions if chunk is None else chunk
    if positions * student_head.shape[1] > SMALL:
        held = min(held, max(1, positions // SHARE_WITH_ENTROPY))
    # Rows are the unit that a mesh spreads over devices; slicing across them would gather the hidden states.
    rows = 1 if held >= positions or jax.sharding.get_abstract_mesh().empty else shape[0]
    length = positions // rows
    pieces = -(-length // max(1, held // rows))
    size = -(-length // pieces)

    def pieces_of(x: jax.Array):
        x = x.reshape(rows, length, *x.shape[2:])
        x = jnp.pad(x, ((0, 0), (0, pieces * size - length)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, pieces, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def divergence(student: jax.Array, teacher: jax.Array):
        student_logits = _logits(student, student_head, student_soft_cap, temperature)
        teacher_logits = _logits(teacher, teacher_head, teacher_soft_cap, temperature)
        return jsd_of_logits(student_logits, teacher_logits, beta)

    dtype = jnp.promote_types(jnp.result_type(*hidden, student_head, teacher_head), jnp.float32)

    def step(_: None, part: tuple):
        student, teacher, counts = part
        zeros = jnp.zeros(counts.shape, dtype)
        return None, jax.lax.cond(jnp.any(counts), divergence, lambda *_: zeros, student, teacher)

    _, parts = jax.lax.scan(step, None, tuple(map(pieces_of, (*hidden, mask))))
    values = jnp.moveaxis(parts, 0, 1).reshape(rows, pieces * size)[:, :length].reshape(shape)
    return keep(mask, values)


def _logits(hidden: jax.Array, head: jax.Array, soft_cap: float | jax.Array | None, temperature: float):
    dtype = jnp.promote_types(jnp.result_type(hidden, head), jnp.float32)
    raw = jnp.matmul(hidden, head, preferred_element_type=dtype)
    return (raw if soft_cap is None else soft_cap * jnp.tanh(raw / soft_cap)) / temperature


def _kl(log_p: jax.Array, log_q: jax.Array):
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
