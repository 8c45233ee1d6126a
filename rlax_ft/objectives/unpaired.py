"""Learning from single judged answers: an unpaired loss on a model, and the baselines that it takes.

A baseline belongs to the whole batch. It is computed before the step, from the parameters that the step starts with,
and goes whole to each micro-batch and device: no split changes it. Leaves out formulas (losses/unpaired.py).
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlax_ft.losses.unpaired import kto_kl
from rlax_ft.models.scoring import candidate_logps
from rlax_ft.types import BranchBatch, JudgedBatch, Params

# How much of the old mean stays in BCO's reward shift (arXiv 2404.04656).
SHIFT_DECAY = 0.9


@struct.dataclass
class JudgedCounts:
    """What the metrics and the loss of a whole batch are divided by, each float32[].

    Attributes:
      answers: rows.
      good: sum of the labels.
      bad: sum of 1 - label.
    """

    answers: jax.Array | np.float32
    good: jax.Array | np.float32
    bad: jax.Array | np.float32


def count_judged(batch: JudgedBatch) -> JudgedCounts:
    """The counts of a whole batch."""
    label = np.asarray(batch.label)
    return JudgedCounts(np.float32(len(label)), np.float32(label.sum()), np.float32((1.0 - label).sum()))


def unpaired_objective(
    apply: Callable, loss: Callable, *, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Callable:
    """Mean over answers of weight (p w_D f(good) + (1 - p) w_U f(bad)), p the label.

    Args:
      apply: the policy's `Transformer.apply`.
      loss: `f(logps[B], ref_logps[B], desirable[B], baseline[]) -> float[B]`, its hyperparameters bound.
      beta: for the implicit rewards in the metrics only.
      desirable_weight, undesirable_weight: w_D and w_U.

    Returns:
      loss_fn; its batch is (JudgedBatch [B], JudgedCounts of the whole batch, baseline float32[]).
    """

    def loss_fn(params: Params, batch: tuple[JudgedBatch, JudgedCounts, jax.Array], key: jax.Array):
        answers, counts, baseline = batch
        logps = candidate_logps(apply, {'params': params}, answers.candidates)[:, 0]  # [B]
        refs, good = answers.ref_logps[:, 0], jnp.ones(logps.shape, bool)
        up = desirable_weight * answers.label * loss(logps, refs, good, baseline)
        value = up + undesirable_weight * (1.0 - answers.label) * loss(logps, refs, ~good, baseline)
        value = value if answers.weight is None else answers.weight * value
        return jnp.sum(value) / counts.answers, _metrics(logps, refs, answers.label, counts, beta)

    return loss_fn


def mismatched(answers: BranchBatch) -> BranchBatch:
    """Each prompt with the answer of the row before it, (x_1, y_B), (x_2, y_1), ..., for KTO's baseline."""
    responses = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), answers.responses)
    prompt_length = jnp.sum(answers.prompt.segment_ids > 0, axis=1)[:, None, None]
    positions = prompt_length + jnp.arange(responses.tokens.shape[-1])
    responses = replace(responses, positions=jnp.where(responses.segment_ids > 0, positions, 0))
    return replace(answers, responses=responses)


def kl_baseline(apply: Callable, params: Params, ref_params: Params, answers: BranchBatch) -> jax.Array:
    """KTO's baseline z_0 of a whole batch, from its prompts with each other's answers; float32[], in nats, stopped."""
    other = mismatched(answers)
    logps, refs = (candidate_logps(apply, {'params': p}, other)[:, 0] for p in (params, ref_params))
    return kto_kl(logps, refs)


def next_shift(
    means: jax.Array, metrics: dict[str, jax.Array], counts: JudgedCounts, *, decay: float = SHIFT_DECAY
) -> jax.Array:
    """BCO's moving means of the rewards of good and bad answers after a step; its shift is half their sum.

    They begin at 0, which is right: there policy and reference are one. A batch without answers of a kind leaves its
    mean as it is.

    Args:
      means: float32[2], as they were.
      metrics: of the step, with `rewards/chosen` and `rewards/rejected`.
      counts: of its batch.
      decay: share of the old means that stays.

    Returns:
      float32[2].
    """
    fresh = jnp.stack([metrics['rewards/chosen'], metrics['rewards/rejected']])
    seen = jnp.stack([counts.good, counts.bad]) > 0
    return jnp.where(seen, decay * means + (1.0 - decay) * fresh, means)


def _metrics(logps: jax.Array, refs: jax.Array, label: jax.Array, counts: JudgedCounts, beta: float):
    """TRL's `logps/*` and `rewards/*`: means over the good and over the bad answers of the whole batch."""
    rewards = beta * (logps - refs)
    good, bad = (jnp.maximum(count, 1e-9) for count in (counts.good, counts.bad))
    over_good, over_bad = lambda x: jnp.sum(label * x) / good, lambda x: jnp.sum((1.0 - label) * x) / bad
    return {
        'logps/chosen': over_good(logps),
        'logps/rejected': over_bad(logps),
        'rewards/chosen': over_good(rewards),
        'rewards/rejected': over_bad(rewards),
        'rewards/margins': over_good(rewards) - over_bad(rewards),
    }
