"""Losses between the whole distributions of a student and a teacher.

Leaves out who generated the text (on-policy distillation is the same loss on the student's samples) and aggregation.
"""

import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_float, as_mask, keep


def generalized_jsd_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Generalised Jensen-Shannon divergence, summed over the vocabulary (arXiv 2306.13649, equation 1; TRL's GKD).

    beta KL(P_T || M) + (1 - beta) KL(P_S || M), M = (1 - beta) P_S + beta P_T; beta = 0 is KL(P_T || P_S), beta = 1 is
    KL(P_S || P_T).

    Args:
      student_logits: float[B, T, V].
      teacher_logits: float[B, T, V], over the same vocabulary; data.
      beta: in [0, 1].
      temperature: what both logits are divided by.
      mask: [B, T], positions that count; None: all.

    Returns:
      float32[B, T], in nats, 0 where masked.

    Raises:
      AssertionError: a rank, shape or dtype is wrong.
    """
    student, teacher = as_float(3, student_logits=student_logits, teacher_logits=teacher_logits)
    mask = jnp.ones(student.shape[:2], bool) if mask is None else as_mask(student.shape[:2], mask=mask)
    student, teacher = keep(mask[..., None], student, teacher)
    # A floor far below any log-probability keeps 0 log 0 = 0 where a token cannot be (logit -inf).
    log_s, log_t = (jnp.maximum(jax.nn.log_softmax(x / temperature), -1e30) for x in (student, teacher))
    if beta == 0:
        loss = _kl(log_t, log_s)
    elif beta == 1:
        loss = _kl(log_s, log_t)
    else:
        log_m = jnp.logaddexp(log_s + jnp.log1p(-beta), log_t + jnp.log(beta))
        loss = beta * _kl(log_t, log_m) + (1.0 - beta) * _kl(log_s, log_m)
    return keep(mask, loss)


def _kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
