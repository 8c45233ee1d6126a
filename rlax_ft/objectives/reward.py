"""Reward models: losses on the scores of pairs, rankings, ratings and steps, and of ensembles.

Leaves out formulas (losses/reward_model.py, losses/ranking.py).
"""

import jax
import jax.numpy as jnp

from rlax_ft.losses.ranking import plackett_luce_loss
from rlax_ft.losses.reward_model import bradley_terry_loss, score_regression_loss, step_reward_loss
from rlax_ft.models.ensemble import over_members
from rlax_ft.models.heads import candidate_scores, sequence_scores
from rlax_ft.models.scoring import read
from rlax_ft.types import ApplyFn, LossFn, Params, PreferenceBatch, RankingBatch, ScoredBatch, StepBatch


def reward_objective(apply: ApplyFn, *, center_coef: float = 0.0) -> LossFn:
    """Mean Bradley-Terry loss over pairs, each times its weight; labels and margins are those of the batch.

    Args:
      apply: `ScalarModel.apply`.
      center_coef: weight of (r_w + r_l)^2, which keeps rewards around 0 (arXiv 2312.09244).

    Returns:
      loss_fn; its batch is (PreferenceBatch [B], number of pairs in the whole batch).
    """

    def loss_fn(params: Params, batch: tuple[PreferenceBatch, jax.Array], key: jax.Array):
        pairs, total = batch
        chosen, rejected = candidate_scores(apply, params, pairs.candidates).T  # each [B]
        margin = 0.0 if pairs.margin is None else pairs.margin
        value = bradley_terry_loss(chosen, rejected, margin=margin, label=pairs.label, center_coef=center_coef)  # [B]
        value = value if pairs.weight is None else pairs.weight * value
        metrics = reward_metrics(chosen, rejected)
        return jnp.sum(value) / total, {name: jnp.sum(metric) / total for name, metric in metrics.items()}

    return loss_fn


def reward_ranking_objective(apply: ApplyFn) -> LossFn:
    """Mean Plackett-Luce loss of a reward model over rankings, each times its weight.

    Returns:
      loss_fn; its batch is (RankingBatch [B, K], number of rankings in the whole batch).
    """

    def loss_fn(params: Params, batch: tuple[RankingBatch, jax.Array], key: jax.Array):
        rankings, total = batch
        scores = candidate_scores(apply, params, rankings.candidates)
        value = plackett_luce_loss(scores, rankings.ranks, rankings.mask)
        value = value if rankings.weight is None else rankings.weight * value
        metrics = reward_metrics(*best_and_worst(scores, rankings))
        return jnp.sum(value) / total, {name: jnp.sum(metric) / total for name, metric in metrics.items()}

    return loss_fn


def score_objective(apply: ApplyFn) -> LossFn:
    """Half the mean squared error of a reward model against ratings, each answer times its weight.

    Returns:
      loss_fn; its batch is (ScoredBatch [B], number of answers in the whole batch).
    """

    def loss_fn(params: Params, batch: tuple[ScoredBatch, jax.Array], key: jax.Array):
        answers, total = batch
        scores = sequence_scores(apply, params, answers.rows)
        value = score_regression_loss(scores, answers.target)
        value = value if answers.weight is None else answers.weight * value
        error = jnp.abs(scores - answers.target)
        return jnp.sum(value) / total, {
            'rewards/mean': jnp.sum(scores) / total,
            'rewards/error': jnp.sum(error) / total,
        }

    return loss_fn


def step_objective(apply: ApplyFn) -> LossFn:
    """Mean over steps of the cross-entropy of a process reward model, each solution times its weight.

    Returns:
      loss_fn; its batch is (StepBatch [B], number of steps in the whole batch).
    """

    def loss_fn(params: Params, batch: tuple[StepBatch, jax.Array], key: jax.Array):
        solutions, total = batch
        mask = solutions.rows.mask
        logits = read(apply, {'params': params}, solutions.rows)  # [B, T]
        value = step_reward_loss(logits, solutions.labels, mask)
        value = value if solutions.weight is None else solutions.weight[:, None] * value
        right = mask * ((logits > 0) == (solutions.labels > 0.5))
        return jnp.sum(value) / total, {'rewards/accuracies': jnp.sum(right) / total}

    return loss_fn


def ensemble_objective(objective: LossFn) -> LossFn:
    """The mean of an objective over the members of an ensemble, each with votes of its own on every row.

    Args:
      objective: of one reward model, on batches with a `weight`.

    Returns:
      loss_fn of an ensemble's parameters (models/ensemble.py); its batch is ((rows [B], votes float32[B, E]), total).
      Metrics are means over members.
    """

    def loss_fn(params: Params, batch: tuple, key: jax.Array):
        (rows, votes), total = batch

        def of_member(own: Params, vote: jax.Array):
            weight = vote if rows.weight is None else rows.weight * vote
            return objective(own, (rows.replace(weight=weight), total), key)

        return jax.tree.map(jnp.mean, over_members(of_member, params, votes, in_axes=(1,)))

    return loss_fn


def reward_metrics(chosen: jax.Array, rejected: jax.Array) -> dict[str, jax.Array]:
    """TRL's `rewards/*`, per example; an exact tie counts as half right."""
    return {
        'rewards/chosen': chosen,
        'rewards/rejected': rejected,
        'rewards/margins': chosen - rejected,
        'rewards/accuracies': (1.0 + jnp.sign(chosen - rejected)) / 2.0,
    }


def best_and_worst(rewards: jax.Array, rankings: RankingBatch) -> tuple[jax.Array, jax.Array]:
    """The rewards [B, K] of each ranking's first and last candidate, each [B]."""
    best = jnp.argmin(jnp.where(rankings.mask, rankings.ranks, jnp.iinfo(jnp.int32).max), axis=-1)
    worst = jnp.argmax(jnp.where(rankings.mask, rankings.ranks, -1), axis=-1)
    take = lambda index: jnp.take_along_axis(rewards, index[:, None], axis=-1)[:, 0]  # noqa: E731
    return take(best), take(worst)
