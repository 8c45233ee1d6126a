"""What each stage minimises: a pure loss from losses/, put on a model, as `loss_fn(params, batch, key)`.

Every objective returns its share of the loss and of the metrics: sums over the rows that it is given, divided by the
denominator of the whole batch that travels in `batch`. PPO's objective is in ppo.py. Leaves out formulas: they are in
losses/.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_ft.losses.preference import implicit_rewards
from rlax_ft.losses.ranking import plackett_luce_dpo_loss, plackett_luce_loss
from rlax_ft.losses.reward_model import bradley_terry_loss
from rlax_ft.losses.supervised import nll_loss
from rlax_ft.models.heads import candidate_scores
from rlax_ft.models.scoring import candidate_logps, candidate_rows, token_logps
from rlax_ft.ops.reduce import aggregate
from rlax_ft.types import PairLogps, PreferenceBatch, RankingBatch, TokenBatch


def sft_objective(apply: Callable, loss: Callable = nll_loss) -> Callable:
    """Mean of a per-token loss over the response tokens of the whole batch.

    Args:
      apply: the policy's `Transformer.apply`.
      loss: `f(logps, mask) -> float[B, T]`.

    Returns:
      loss_fn; its batch is (TokenBatch [B, T], number of counted tokens in the whole batch).
    """

    def loss_fn(params, batch: tuple[TokenBatch, jax.Array], key):
        tokens, total = batch
        logps = token_logps(apply, {'params': params}, tokens)
        return aggregate(loss(logps, tokens.mask), tokens.mask, 'token_mean', denominator=total), {
            'num_tokens': jnp.sum(tokens.mask)
        }

    return loss_fn


def preference_objective(apply: Callable, loss: Callable, *, beta: float) -> Callable:
    """Mean of a preference loss over pairs, with soft labels: p f(y_w, y_l) + (1 - p) f(y_l, y_w).

    Args:
      apply: the policy's `Transformer.apply`.
      loss: `f(pair: PairLogps) -> float[B]`, its hyperparameters bound.
      beta: for the implicit rewards in the metrics only.

    Returns:
      loss_fn; its batch is (PreferenceBatch [B], number of pairs in the whole batch).
    """

    def loss_fn(params, batch: tuple[PreferenceBatch, jax.Array], key):
        pairs, total = batch
        candidates = pairs.candidates
        logps = candidate_logps(apply, {'params': params}, candidates)
        lengths = jnp.sum(candidate_rows(candidates).mask, axis=-1).reshape(logps.shape)
        pair = PairLogps(
            chosen=logps[:, 0],
            rejected=logps[:, 1],
            ref_chosen=pairs.ref_chosen,
            ref_rejected=pairs.ref_rejected,
            chosen_len=lengths[:, 0],
            rejected_len=lengths[:, 1],
        )
        value = soft_label_loss(loss, pair, pairs.label)
        metrics = {'logps/chosen': pair.chosen, 'logps/rejected': pair.rejected}
        metrics |= reward_metrics(*_rewards(pair, beta))
        return jnp.sum(value) / total, {name: jnp.sum(metric) / total for name, metric in metrics.items()}

    return loss_fn


def soft_label_loss(loss: Callable, pair: PairLogps, label: jax.Array) -> jax.Array:
    """label f(y_w, y_l) + (1 - label) f(y_l, y_w), float[B], for any preference loss f.

    Args:
      loss: `f(pair: PairLogps) -> float[B]`.
      pair: log-probabilities of the pair.
      label: float[B], probability that `chosen` wins.
    """
    swapped = PairLogps(
        chosen=pair.rejected,
        rejected=pair.chosen,
        ref_chosen=pair.ref_rejected,
        ref_rejected=pair.ref_chosen,
        chosen_len=pair.rejected_len,
        rejected_len=pair.chosen_len,
    )
    return label * loss(pair) + (1.0 - label) * loss(swapped)


def ranking_objective(apply: Callable, *, beta: float) -> Callable:
    """Mean Plackett-Luce DPO loss over rankings.

    Returns:
      loss_fn; its batch is (RankingBatch [B, K], number of rankings in the whole batch).
    """

    def loss_fn(params, batch: tuple[RankingBatch, jax.Array], key):
        rankings, total = batch
        logps = candidate_logps(apply, {'params': params}, rankings.candidates)
        value = plackett_luce_dpo_loss(logps, rankings.ref_logps, rankings.ranks, rankings.mask, beta=beta)
        rewards = beta * (logps - rankings.ref_logps)
        metrics = reward_metrics(*_best_and_worst(rewards, rankings))
        return jnp.sum(value) / total, {name: jnp.sum(metric) / total for name, metric in metrics.items()}

    return loss_fn


def reward_objective(apply: Callable, *, center_coef: float = 0.0) -> Callable:
    """Mean Bradley-Terry loss over pairs.

    Args:
      apply: `ScalarModel.apply`.
      center_coef: weight of (r_w + r_l)^2, which keeps rewards around 0 (arXiv 2312.09244).

    Returns:
      loss_fn; its batch is (PreferenceBatch [B], number of pairs in the whole batch).
    """

    def loss_fn(params, batch: tuple[PreferenceBatch, jax.Array], key):
        pairs, total = batch
        chosen, rejected = candidate_scores(apply, params, pairs.candidates).T
        value = bradley_terry_loss(chosen, rejected, label=pairs.label, center_coef=center_coef)
        metrics = reward_metrics(chosen, rejected)
        return jnp.sum(value) / total, {name: jnp.sum(metric) / total for name, metric in metrics.items()}

    return loss_fn


def reward_ranking_objective(apply: Callable) -> Callable:
    """Mean Plackett-Luce loss of a reward model over rankings.

    Returns:
      loss_fn; its batch is (RankingBatch [B, K], number of rankings in the whole batch).
    """

    def loss_fn(params, batch: tuple[RankingBatch, jax.Array], key):
        rankings, total = batch
        scores = candidate_scores(apply, params, rankings.candidates)
        value = plackett_luce_loss(scores, rankings.ranks, rankings.mask)
        metrics = reward_metrics(*_best_and_worst(scores, rankings))
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


def _rewards(pair, beta):
    if pair.ref_chosen is None:
        return beta * pair.chosen, beta * pair.rejected
    return implicit_rewards(pair, beta)


def _best_and_worst(rewards, rankings):
    best = jnp.argmin(jnp.where(rankings.mask, rankings.ranks, jnp.iinfo(jnp.int32).max), axis=-1)
    worst = jnp.argmax(jnp.where(rankings.mask, rankings.ranks, -1), axis=-1)
    take = lambda index: jnp.take_along_axis(rewards, index[:, None], axis=-1)[:, 0]  # noqa: E731
    return take(best), take(worst)
