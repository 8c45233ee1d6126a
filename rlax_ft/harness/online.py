"""Groups of completions for learning from comparisons made now: sampled from policy and opponent, and judged.

Leaves out losses and the reference that moves.
"""

import copy
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_ft.data.codec import Codec
from rlax_ft.harness.learner import Learner
from rlax_ft.harness.rollouts import make_collector
from rlax_ft.objectives.online import GroupBatch, compare, group_ranks, join_groups, noisy_scores
from rlax_ft.sampling.mixture import mixture_apply
from rlax_ft.tasks.task import Task
from rlax_ft.types import BranchBatch, RankingBatch


def make_groups(settings, task: Task | None, codec: Codec, learner: Learner) -> tuple[Callable, Callable]:
    """(`collect(policy, reference, tokens, mask, records, key) -> (groups, scores [P, G], metrics)`, `score`).

    Online DPO has all of a group from the policy. XPO has the second half of it from the reference, Nash-MD from the
    geometric mixture of both.
    """
    alone = settings.method == 'dpo'
    half = settings if alone else _half(settings)
    collect_own, score = make_collector(half, task, codec, learner.apply)
    collect_other = collect_own
    if settings.method == 'nash_md':
        collect_other, _ = make_collector(half, task, codec, mixture_apply(learner.apply, settings.mixture))

    def collect(policy, reference, tokens, mask, records, key):
        own_key, other_key = jax.random.split(key)
        own = collect_own(policy, tokens, mask, records, own_key)
        metrics = own.metrics() | {
            'objective/scores': own.scores.mean(),
            'completions/mean_length': own.rollout.mask.sum(axis=1).mean(),
        }
        if alone:
            return own.tokens, _by_group(own.scores, settings.group_size), metrics
        opponent = {'policy': policy, 'reference': reference} if settings.method == 'nash_md' else reference
        other = collect_other(opponent, tokens, mask, records, other_key)
        count = settings.group_size // 2
        scores = jnp.concatenate([_by_group(own.scores, count), _by_group(other.scores, count)], axis=1)
        metrics['objective/opponent_scores'] = other.scores.mean()
        return join_groups(own.tokens, other.tokens), scores, metrics

    return collect, score


def judged_groups(settings, tokens: BranchBatch, scores: jax.Array, ref_logps: jax.Array, key: jax.Array):
    """The groups as what --loss learns from: a RankingBatch for plackett_luce, else a GroupBatch of comparisons."""
    how = dict(judgement=settings.judgement, noise=settings.annotator_noise)
    if settings.loss == 'plackett_luce':
        ranks = group_ranks(noisy_scores(scores, key, **how))
        return RankingBatch(tokens, ranks, jnp.ones(ranks.shape, bool), ref_logps)
    pairs = settings.pairs if settings.method == 'dpo' else 'halves'
    return GroupBatch(tokens, *compare(scores, key, pairs=pairs, **how), ref_logps)


def _half(settings):
    """The settings with half of each group, which may be a single completion."""
    half = copy.copy(settings)  # Not made anew, which would refuse a group of one.
    for name in ('group_size', 'batch_size'):
        object.__setattr__(half, name, getattr(settings, name) // 2)
    return half


def _by_group(scores, size):
    return jnp.asarray(scores).reshape(-1, size)
