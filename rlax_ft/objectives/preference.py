"""Direct preference optimisation: a preference loss on the log-probabilities of pairs or of whole rankings.

Leaves out formulas (losses/preference.py, losses/ranking.py) and packed pairs (packed.py).
"""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_ft.losses.preference import implicit_rewards
from rlax_ft.losses.ranking import plackett_luce_dpo_loss
from rlax_ft.models.scoring import candidate_logps, candidate_rows, token_logps_and_alignment
from rlax_ft.objectives.reward import best_and_worst, reward_metrics
from rlax_ft.types import ApplyFn, LossFn, PairLogps, Params, PreferenceBatch, RankingBatch


def preference_objective(
    apply: ApplyFn, loss: Callable, *, beta: float, nll_coef: float = 0.0, wpo: bool = False
) -> LossFn:
    """Mean over pairs of weight (f + nll_coef nll(y_w)), f with soft labels and margins as in `pair_loss`.

    Args:
      apply: the policy's `Transformer.apply`.
      loss: `f(pair: PairLogps) -> float[B]`, its hyperparameters bound.
      beta: for the implicit rewards in the metrics only.
      nll_coef: weight of -log pi(y_w | x) / |y_w| (ORPO arXiv 2403.07691, CPO 2401.08417, RPO 2404.19733).
      wpo: multiply f by `wpo_weights`.

    Returns:
      loss_fn; its batch is (PreferenceBatch [B], number of pairs in the whole batch).
    """

    def loss_fn(params: Params, batch: tuple[PreferenceBatch, jax.Array], key: jax.Array):
        pairs, total = batch
        rows = candidate_rows(pairs.candidates)
        lengths = jnp.sum(rows.mask, axis=-1).reshape(-1, 2)  # [B, 2]
        if wpo:
            tokens, alignment = token_logps_and_alignment(apply, {'params': params}, rows)
            logps = jnp.sum(tokens, axis=-1).reshape(-1, 2)  # [B, 2]
            likely = wpo_weights(jnp.sum(alignment, axis=-1).reshape(-1, 2), lengths)  # [B]
        else:
            logps = candidate_logps(apply, {'params': params}, pairs.candidates)
            likely = jnp.ones(len(logps))
        pair = make_pair(logps, pairs.ref_logps, lengths)
        value = likely * pair_loss(loss, pair, pairs.label, pairs.margin) + nll_coef * chosen_nll(pair)  # [B]
        value = value if pairs.weight is None else pairs.weight * value
        metrics = pair_metrics(pair, beta)
        return jnp.sum(value) / total, {name: jnp.sum(metric) / total for name, metric in metrics.items()}

    return loss_fn


def make_pair(logps: jax.Array, ref_logps: jax.Array | None, lengths: jax.Array) -> PairLogps:
    """PairLogps [B] from log-probabilities, the reference's, and lengths of (y_w, y_l), each [B, 2]."""
    return PairLogps(
        chosen=logps[:, 0],
        rejected=logps[:, 1],
        ref_chosen=None if ref_logps is None else ref_logps[:, 0],
        ref_rejected=None if ref_logps is None else ref_logps[:, 1],
        chosen_len=lengths[:, 0],
        rejected_len=lengths[:, 1],
    )


def pair_loss(loss: Callable, pair: PairLogps, label: jax.Array, margin: jax.Array | None = None) -> jax.Array:
    """label f(y_w, y_l; margin) + (1 - label) f(y_l, y_w; -margin), float[B], for any preference loss f.

    Args:
      loss: `f(pair: PairLogps) -> float[B]`; one that takes an `offset`, such as `odpo_loss`, is given the margin.
      pair: log-probabilities of the pairs.
      label: float[B], probability that y_w is the better one.
      margin: float[B], by how much y_w is better; None: no offset.
    """
    given = margin is not None and 'offset' in inspect.signature(loss).parameters
    swapped = PairLogps(
        chosen=pair.rejected,
        rejected=pair.chosen,
        ref_chosen=pair.ref_rejected,
        ref_rejected=pair.ref_chosen,
        chosen_len=pair.rejected_len,
        rejected_len=pair.chosen_len,
    )
    value, swapped_value = (
        (loss(pair, offset=margin), loss(swapped, offset=-margin)) if given else (loss(pair), loss(swapped))
    )
    return label * value + (1.0 - label) * swapped_value


def wpo_weights(alignment: jax.Array, lengths: jax.Array) -> jax.Array:
    """WPO's weight of a pair, w(y_w) w(y_l) with w(y) = exp(mean_t [log pi_t - log sum_v pi_v^2]) (arXiv 2406.11827).

    It is near 1 for answers such as the policy would write itself, and small for others.

    Args:
      alignment: float[B, 2], the sum over tokens of what `token_logps_and_alignment` gives.
      lengths: [B, 2], tokens.

    Returns:
      float32[B], stopped.
    """
    return jax.lax.stop_gradient(jnp.exp(jnp.sum(alignment / jnp.maximum(lengths, 1.0), axis=-1)))


def chosen_nll(pair: PairLogps) -> jax.Array:
    """-log pi(y_w | x) / |y_w|, float[B], in nats a token."""
    return -pair.chosen / jnp.maximum(pair.chosen_len, 1.0)


def pair_metrics(pair: PairLogps, beta: float) -> dict[str, jax.Array]:
    """TRL's `logps/*` and `rewards/*` of pairs, each [B]; without a reference the reward is beta log pi."""
    without = pair.ref_chosen is None
    rewards = (beta * pair.chosen, beta * pair.rejected) if without else implicit_rewards(pair, beta)
    return {'logps/chosen': pair.chosen, 'logps/rejected': pair.rejected, **reward_metrics(*rewards)}


def ranking_objective(apply: ApplyFn, *, beta: float) -> LossFn:
    """Mean Plackett-Luce DPO loss over rankings, each times its weight.

    Returns:
      loss_fn; its batch is (RankingBatch [B, K], number of rankings in the whole batch).
    """

    def loss_fn(params: Params, batch: tuple[RankingBatch, jax.Array], key: jax.Array):
        rankings, total = batch
        logps = candidate_logps(apply, {'params': params}, rankings.candidates)  # [B, K]
        value = plackett_luce_dpo_loss(logps, rankings.ref_logps, rankings.ranks, rankings.mask, beta=beta)
        value = value if rankings.weight is None else rankings.weight * value
        rewards = beta * (logps - rankings.ref_logps)
        metrics = reward_metrics(*best_and_worst(rewards, rankings))
        return jnp.sum(value) / total, {name: jnp.sum(metric) / total for name, metric in metrics.items()}

    return loss_fn
