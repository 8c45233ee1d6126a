"""Losses of reward models: from comparisons, from scores, from the steps of a solution.

Leaves out the reward head and rankings, which are in `ranking`.
"""

import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_float, as_mask, as_per_example, keep


def bradley_terry_loss(
    chosen: jax.Array,
    rejected: jax.Array,
    *,
    margin: jax.Array | float = 0.0,
    label: jax.Array | float = 1.0,
    center_coef: float = 0.0,
) -> jax.Array:
    """Bradley-Terry with margin and soft label, -log probability of the judgement (arXiv 2203.02155).

    -label log s(d) - (1 - label) log s(-d) + center_coef (chosen + rejected)^2, d = chosen - rejected - margin.

    Args:
      chosen: float[B], scores.
      rejected: float[B], scores.
      margin: by how much `chosen` should win, float or float[B] (arXiv 2307.09288).
      label: probability that `chosen` wins, float or float[B] in [0, 1].
      center_coef: weight that pulls scores towards mean 0 (arXiv 2312.09244); TRL recommends 0.01.

    Returns:
      float32[B].

    Raises:
      AssertionError: a rank, shape or dtype is wrong.
    """
    chosen, rejected = as_float(1, chosen=chosen, rejected=rejected)
    margin, label = as_per_example(chosen, margin=margin), as_per_example(chosen, label=label)
    d = chosen - rejected - margin
    loss = -label * jax.nn.log_sigmoid(d) - (1.0 - label) * jax.nn.log_sigmoid(-d)
    return loss + center_coef * jnp.square(chosen + rejected)


def score_regression_loss(predicted: jax.Array, target: jax.Array | float) -> jax.Array:
    """Half squared error, 1/2 (predicted - target)^2, for absolute scores.

    Args:
      predicted: float[B].
      target: float[B], in the same units.

    Returns:
      float32[B].

    Raises:
      AssertionError: a rank, shape or dtype is wrong.
    """
    predicted, target = as_float(1, predicted=predicted, target=target)
    return 0.5 * jnp.square(predicted - target)


def step_reward_loss(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Binary cross-entropy of each step being right, for process rewards (arXiv 2305.20050).

    -label log s(logit) - (1 - label) log s(-logit).

    Args:
      logits: float[B, T], at the last token of each step.
      labels: [B, T], probability that the step is right.
      mask: [B, T], True at those tokens.

    Returns:
      float32[B, T], 0 where masked.

    Raises:
      AssertionError: a rank, shape or dtype is wrong.
    """
    logits, labels = as_float(2, logits=logits, labels=labels)
    mask = as_mask(logits.shape, mask=mask)
    logits, labels = keep(mask, logits, labels)
    return keep(mask, -labels * jax.nn.log_sigmoid(logits) - (1.0 - labels) * jax.nn.log_sigmoid(-logits))
