"""Losses between the whole distributions of a student and a teacher.

Leaves out who generated the text (on-policy distillation is the same loss on the student's samples), aggregation, and
vocabularies too large to be held (ops/divergence.py has the same numbers in chunks).
"""

import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_float, as_mask, keep
from rlax_ft.ops.divergence import jsd_of_logits


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
    return keep(mask, jsd_of_logits(student / temperature, teacher / temperature, beta))
