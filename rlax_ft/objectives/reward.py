"""Reward models: losses on the scores of pairs and of whole rankings.

Leaves out formulas (losses/reward_model.py, losses/ranking.py).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_ft.losses.ranking import plackett_luce_loss
from rlax_ft.losses.reward_model import bradley_terry_loss
from rlax_ft.models.heads import candidate_scores
from rlax_ft.types import Params, PreferenceBatch, RankingBatch


def reward_objective(apply: Callable, *, center_coef: float = 0.0) -> Callable:
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


def reward_ranking_objective(apply: Callable) -> Callable:
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
