"""Learning from groups of completions that have just been sampled and judged: comparisons within a group, objectives.

Leaves out sampling, rewards (rewards/) and formulas (losses/).
"""

import itertools
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlax_ft.losses.game import exploration_bonus, nash_md_loss
from rlax_ft.losses.ranking import plackett_luce_dpo_loss
from rlax_ft.models.scoring import candidate_logps
from rlax_ft.objectives.preference import chosen_nll, pair_loss, pair_metrics
from rlax_ft.objectives.reward import best_and_worst, reward_metrics
from rlax_ft.types import BranchBatch, PairLogps, Params, RankingBatch, TokenBatch

JUDGEMENTS = ('hard', 'soft', 'sampled')


@struct.dataclass
class GroupBatch:
    """Groups of G completions of P prompts, and M comparisons within each.

    Attributes:
      candidates: BranchBatch [P] of G responses.
      first, second: int32[P, M], which of a group's responses are compared.
      label: float32[P, M], probability that `first` is the better one.
      weight: float32[P, M], 0 where the judge sees no difference.
      ref_logps: float32[P, G], of each completion under the reference.
    """

    candidates: BranchBatch
    first: jax.Array
    second: jax.Array
    label: jax.Array
    weight: jax.Array
    ref_logps: jax.Array


Batch = GroupBatch | RankingBatch


def group_logps(
    apply: Callable, params: Params, candidates: TokenBatch | BranchBatch, *, temperature: float = 1.0
) -> jax.Array:
    """log pi(y_g | x) of each completion of each group, float32[P, G], at the temperature of the sampling."""
    return candidate_logps(apply, {'params': params}, candidates, temperature=temperature)


def join_groups(policy: BranchBatch, opponent: BranchBatch) -> BranchBatch:
    """The completions of two policies of the same prompts as one group, the first one's first."""
    responses = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), policy.responses, opponent.responses)
    return replace(policy, responses=responses)


def noisy_scores(scores: jax.Array, key: jax.Array, *, judgement: str, noise: float) -> jax.Array:
    """What a judge orders a group by: the scores, and with `sampled` Gumbel noise on them, as Bradley-Terry has it."""
    return scores + noise * jax.random.gumbel(key, scores.shape) if judgement == 'sampled' else scores


def compare(
    scores: jax.Array, key: jax.Array, *, judgement: str = 'hard', noise: float = 1.0, pairs: str = 'best_worst'
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The comparisons of groups: (first, second, label, weight), each [P, M].

    Args:
      scores: float[P, G], rewards.
      key: of the judge's noise.
      judgement: `hard`: the higher score wins; `soft`: with probability sigma((s_a - s_b) / noise), which is the label;
        `sampled`: a draw of that, as the simulated annotator's.
      noise: temperature of the last two; 0 makes them hard.
      pairs: `best_worst` of each group, `all` of its pairs, or `halves`: each of the first half against each of the
        second, `first` always from the first half.
    """
    noisy = noisy_scores(scores, key, judgement=judgement, noise=noise)
    count = scores.shape[1]
    if pairs == 'best_worst':
        first, second = jnp.argmax(noisy, axis=1)[:, None], jnp.argmin(noisy, axis=1)[:, None]
    else:
        half = count // 2
        both = itertools.product(range(half), range(half, count))
        index = np.asarray(list(both if pairs == 'halves' else itertools.combinations(range(count), 2)))
        first, second = (jnp.broadcast_to(side, (len(scores), len(index))) for side in index.T)
    take = lambda x, index: jnp.take_along_axis(x, index, axis=1)  # noqa: E731
    gap = take(noisy, first) - take(noisy, second)
    if judgement == 'soft' and noise:
        return first, second, jax.nn.sigmoid(gap / noise), (first != second).astype(jnp.float32)
    return first, second, (1.0 + jnp.sign(gap)) / 2.0, (gap != 0).astype(jnp.float32)


def group_ranks(scores: jax.Array) -> jax.Array:
    """How many completions of its group score higher than each, int32[P, G]: equal scores are ties."""
    return jnp.sum(scores[:, None, :] > scores[:, :, None], axis=2).astype(jnp.int32)


def pick_groups(
    batch: Batch, key: jax.Array, epoch: jax.Array, index: jax.Array, *, count: int
) -> tuple[Batch, jax.Array]:
    """Minibatch `index` of `count` in an epoch, each of which has its own permutation of the groups, with its size.

    Args:
      batch: GroupBatch or RankingBatch of P groups, which `count` divides.
      key: of this update.
      epoch: int32[].
      index: int32[].
      count: number of minibatches.
    """
    groups = jax.tree.leaves(batch)[0].shape[0]
    rows = jax.random.permutation(jax.random.fold_in(key, epoch), groups).reshape(count, -1)[index]
    return jax.tree.map(lambda leaf: leaf[rows], batch), jnp.float32(groups // count)


def group_objective(
    apply: Callable,
    loss: Callable,
    *,
    beta: float,
    nll_coef: float = 0.0,
    explore: float = 0.0,
    temperature: float = 1.0,
) -> Callable:
    """Mean over groups of the mean over their comparisons of a preference loss, under soft labels as in `pair_loss`.

    Each completion is scored once, however many comparisons it is in.

    Args:
      apply: the policy's `Transformer.apply`.
      loss: `f(pair: PairLogps) -> float[B]`, its hyperparameters bound.
      beta: for the implicit rewards in the metrics only.
      nll_coef: weight of the NLL a token of the better answer.
      explore: XPO's alpha, on the second half of each group, which are then the reference's completions.
      temperature: of the sampling.

    Returns:
      loss_fn; its batch is (GroupBatch [P], number of groups in the whole batch).
    """

    def loss_fn(params: Params, batch: tuple[GroupBatch, jax.Array], key: jax.Array):
        groups, total = batch
        logps = group_logps(apply, params, groups.candidates, temperature=temperature)  # [P, G]
        pair, swapped = _pairs(groups, logps, groups.first, groups.second), None
        label, weight = groups.label.reshape(-1), groups.weight.reshape(-1)
        value = pair_loss(loss, pair, label)  # [P M]
        if nll_coef:
            swapped = _pairs(groups, logps, groups.second, groups.first)
            value += nll_coef * (label * chosen_nll(pair) + (1.0 - label) * chosen_nll(swapped))
        mean = lambda x: jnp.sum(x) / (total * groups.first.shape[1])  # noqa: E731
        metrics = {name: mean(x) for name, x in _oriented(pair_metrics(pair, beta), label).items()}
        objective = mean(weight * value)
        if explore:
            known = logps[:, logps.shape[1] // 2 :]
            bonus = exploration_bonus(known.reshape(-1), alpha=explore)
            objective += jnp.sum(bonus) / (total * known.shape[1])
        return objective, metrics | {'judged/share': mean(weight)}

    return loss_fn


def nash_md_objective(apply: Callable, *, beta: float, temperature: float = 1.0) -> Callable:
    """Mean over comparisons of Nash-MD's loss; `first` is the policy's completion, `second` the opponent's.

    Returns:
      loss_fn; its batch is (GroupBatch [P], number of groups in the whole batch).
    """

    def loss_fn(params: Params, batch: tuple[GroupBatch, jax.Array], key: jax.Array):
        groups, total = batch
        logps = group_logps(apply, params, groups.candidates, temperature=temperature)  # [P, G]
        pair = _pairs(groups, logps, groups.first, groups.second)
        wins = groups.label.reshape(-1)
        value = nash_md_loss(pair.chosen, pair.ref_chosen, wins, beta=beta)
        mean = lambda x: jnp.sum(x) / (total * groups.first.shape[1])  # noqa: E731
        return mean(value), {'judged/wins': mean(wins), 'logps/chosen': mean(pair.chosen)}

    return loss_fn


def group_ranking_objective(apply: Callable, *, beta: float, temperature: float = 1.0) -> Callable:
    """Mean Plackett-Luce DPO loss over the rankings of whole groups.

    Returns:
      loss_fn; its batch is (RankingBatch [P, G], number of groups in the whole batch).
    """

    def loss_fn(params: Params, batch: tuple[RankingBatch, jax.Array], key: jax.Array):
        groups, total = batch
        logps = group_logps(apply, params, groups.candidates, temperature=temperature)  # [P, G]
        value = plackett_luce_dpo_loss(logps, groups.ref_logps, groups.ranks, groups.mask, beta=beta)
        metrics = reward_metrics(*best_and_worst(beta * (logps - groups.ref_logps), groups))
        return jnp.sum(value) / total, {name: jnp.sum(metric) / total for name, metric in metrics.items()}

    return loss_fn


def follow(reference: Params, policy: Params, share: float) -> Params:
    """(1 - share) reference + share policy, leaf by leaf: a reference that follows (TR-DPO, arXiv 2404.09656).

    With share 1 it becomes the policy, in arrays of its own.
    """
    return jax.tree.map(lambda r, p: ((1.0 - share) * r + share * p).astype(r.dtype), reference, policy)


def _pairs(groups: GroupBatch, logps: jax.Array, first: jax.Array, second: jax.Array):
    """PairLogps [P M] of the comparisons."""
    lengths = jnp.sum(groups.candidates.responses.mask, axis=-1)
    take = lambda x, index: jnp.take_along_axis(x, index, axis=1).reshape(-1)  # noqa: E731
    return PairLogps(
        chosen=take(logps, first),
        rejected=take(logps, second),
        ref_chosen=take(groups.ref_logps, first),
        ref_rejected=take(groups.ref_logps, second),
        chosen_len=take(lengths, first),
        rejected_len=take(lengths, second),
    )


def _oriented(metrics: dict[str, jax.Array], label: jax.Array):
    """Metrics of pairs whose better answer may be the second one: `chosen` is the better, and margins point to it."""
    better = label >= 0.5
    turned = dict(metrics)
    for name in ('logps', 'rewards'):
        sides = metrics[f'{name}/chosen'], metrics[f'{name}/rejected']
        turned[f'{name}/chosen'], turned[f'{name}/rejected'] = (
            jnp.where(better, *sides),
            jnp.where(better, *sides[::-1]),
        )
    turned['rewards/margins'] = jnp.where(better, 1.0, -1.0) * metrics['rewards/margins']
    turned['rewards/accuracies'] = jnp.where(better, 1.0, -1.0) * (metrics['rewards/accuracies'] - 0.5) + 0.5
    return turned
