"""Distillation on sampled or given completions: the student's distribution at each token drawn to the teacher's.

The teacher may read another prompt than the student, such as one with the right answer (arXiv 2601.20802): both are
compared where they predict the completion's tokens. Leaves out who wrote the completions (harness/distillation.py) and
formulas (losses/distillation.py, ops/divergence.py).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rlax_ft.losses.policy_gradient import reinforce_loss
from rlax_ft.models.scoring import rollout_batch
from rlax_ft.ops.divergence import chunked_jsd
from rlax_ft.ops.logprobs import chunked_token_logprobs
from rlax_ft.ops.reduce import aggregate
from rlax_ft.types import Params, Rollout


@struct.dataclass
class DistillBatch:
    """Completions, and what the teacher thinks of them before it reaches for words.

    Attributes:
      rollout: Rollout [B] of the student's prompts; completions [B, N] are its own, or the data's (logps 0).
      teacher_hidden: float[B, N, E], the teacher's last hidden state before each token of the completions.
    """

    rollout: Rollout
    teacher_hidden: jax.Array


@struct.dataclass
class TeacherHead:
    """How the teacher's hidden states become logits.

    Attributes:
      matrix: float[E, V].
      soft_cap: float[] or None.
    """

    matrix: jax.Array
    soft_cap: float | jax.Array | None = None


def hidden_before_tokens(apply: Callable, params: Params, rollout: Rollout) -> jax.Array:
    """The last hidden states that predict the completion's tokens, float[B, N, D].

    Args:
      apply: `Transformer.apply`, or any function of the same shape.
      params: its parameters.
      rollout: of prompts [B, P], left-padded, and completions [B, N].
    """
    rows = rollout_batch(rollout)
    hidden, _ = apply({'params': params}, rows.tokens, rows.positions, rows.segment_ids)
    return hidden[:, rollout.prompts.shape[1] - 1 : -1]


def teacher_head(apply: Callable, params: Params) -> TeacherHead:
    """The teacher's LM head."""
    variables = {'params': params}
    return TeacherHead(apply(variables, method='unembed_matrix'), apply(variables, method='unembed_soft_cap'))


def distill_objective(
    apply: Callable, *, divergence: str = 'jsd', jsd_beta: float = 1.0, temperature: float = 1.0
) -> Callable:
    """Mean over the completions' tokens of a divergence between student and teacher.

    jsd: the generalised Jensen-Shannon divergence over the whole vocabulary (arXiv 2306.13649), in chunks.
    sampled: -(log pi_T(y_t) - log pi_S(y_t)) log pi_S(y_t), the first factor data: the gradient of KL(pi_S || pi_T) at
    each token, estimated from the token that the student drew; its reported value is that estimate.

    A teacher whose embedding has more or fewer rows (padding behind the vocabulary) is compared on what both have.

    Args:
      apply: of the student.
      divergence: jsd or sampled; sampled is right on the student's own samples only.
      jsd_beta: 0 is KL(teacher || student), 1 is KL(student || teacher).
      temperature: what both logits are divided by.

    Returns:
      `loss_fn(params, batch, key, head)`; its batch is (DistillBatch, number of tokens in the whole batch), head a
      TeacherHead.
    """

    def loss_fn(params: Params, batch: tuple[DistillBatch, jax.Array], key: jax.Array, head: TeacherHead):
        data, total = batch
        rollout, variables = data.rollout, {'params': params}
        hidden = hidden_before_tokens(apply, params, rollout)
        matrix = apply(variables, method='unembed_matrix')
        words = min(matrix.shape[1], head.matrix.shape[1])
        matrix, teacher_matrix = matrix[:, :words], head.matrix[:, :words]
        soft_cap = apply(variables, method='unembed_soft_cap')
        mean = lambda x: aggregate(x, rollout.mask, 'token_mean', denominator=total)  # noqa: E731
        counts: dict[str, Any] = {'num_tokens': jnp.sum(rollout.mask)}
        if divergence == 'jsd':
            values = chunked_jsd(
                hidden,
                matrix,
                data.teacher_hidden,
                teacher_matrix,
                beta=jsd_beta,
                temperature=temperature,
                mask=rollout.mask,
                student_soft_cap=soft_cap,
                teacher_soft_cap=head.soft_cap,
            )
            return mean(values), counts
        score = partial(chunked_token_logprobs, chunk=None, temperature=temperature, mask=rollout.mask)
        logps = score(hidden, matrix, rollout.tokens, soft_cap=soft_cap)
        teacher_logps = score(data.teacher_hidden, teacher_matrix, rollout.tokens, soft_cap=head.soft_cap)
        advantages = jax.lax.stop_gradient(teacher_logps - logps)
        loss = reinforce_loss(logps, logps, advantages, rollout.mask)
        return mean(loss), {**counts, 'kl': mean(logps - teacher_logps)}

    return loss_fn
