"""Preference methods on a policy that is a table, each by its own objective, and the optimum of its own theory.

The task is `exact`; all seeds of a method train in one program. Leaves out the table of results
(experiments/benchmarks/preference_optimum.py).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlax_ft.evaluate import optima
from rlax_ft.evaluate.enumeration import kl_divergence, optimal_policy
from rlax_ft.evaluate.tables import TablePolicy
from rlax_ft.losses.preference import dpo_loss, ipo_loss, sppo_loss
from rlax_ft.losses.unpaired import kto_loss
from rlax_ft.objectives.online import (
    GroupBatch,
    compare,
    group_logps,
    group_objective,
    group_ranking_objective,
    group_ranks,
    nash_md_objective,
    noisy_scores,
)
from rlax_ft.objectives.unpaired import JudgedCounts, kl_baseline, unpaired_objective
from rlax_ft.tasks import exact
from rlax_ft.types import JudgedBatch, RankingBatch

TABLE = TablePolicy(len(exact.PROMPTS), len(exact.LETTERS), exact.LENGTH)
APPLY = TABLE.apply
REWARDS = jnp.asarray([[exact.reward(p, c) for c in exact.completions()] for p in exact.PROMPTS])
# KTO's thumbs are those of an undecided annotator; at equal weights an answer that is bad more often than not has no
# place in its optimum, at these each has one.
GOOD, KTO_WEIGHTS = jax.nn.sigmoid(REWARDS / 2), dict(desirable_weight=1.0, undesirable_weight=0.05)
MIXTURE = 0.125


def groups(policy, params, ref, keys, batch_size, size, *, halves=None, **how):
    """GroupBatch of `size` texts a prompt, drawn from log pi `policy` (the second half from `halves`) and judged."""
    prompt, index, scores = drawn(policy, keys, batch_size, size, halves)
    candidates = TABLE.batch(prompt, index)
    pairs = 'all' if halves is None else 'halves'
    return GroupBatch(candidates, *compare(scores, keys[2], pairs=pairs, **how), group_logps(APPLY, ref, candidates))


def drawn(policy, keys, batch_size, size, halves=None):
    """(prompts [B], numbers of their texts [B, size], rewards [B, size])."""
    prompt = jax.random.randint(keys[0], (batch_size,), 0, TABLE.prompts)
    own = size if halves is None else size // 2
    index = TABLE.draw(keys[1], policy, prompt, own)
    if halves is not None:
        index = jnp.concatenate([index, TABLE.draw(keys[3], halves, prompt, size - own)], axis=1)
    return prompt, index, REWARDS[prompt[:, None], index]


def mixed(params, ref):
    """log of the geometric mixture, token by token."""
    logps = [jax.nn.log_softmax(p['table']) for p in (params, ref)]
    return TABLE.logps({'table': (1.0 - MIXTURE) * logps[0] + MIXTURE * logps[1]})


def offline(loss, judgement, *, size=2):
    """All pairs of a group of the reference's texts."""

    def batch(p, ref, keys, b):
        return groups(TABLE.logps(ref), p, ref, keys, b, size, judgement=judgement)

    return batch, group_objective(APPLY, loss, beta=1.0)


def online(loss, judgement, *, size=2, opponent=None, explore=0.0):
    """Groups of the policy's texts, or half of them an opponent's."""

    def batch(p, ref, keys, b):
        other = None if opponent is None else opponent(p, ref)
        return groups(TABLE.logps(p), p, ref, keys, b, size, halves=other, judgement=judgement)

    return batch, group_objective(APPLY, loss, beta=1.0, explore=explore)


def rankings():
    """Whole rankings of four of the reference's texts, drawn from Plackett-Luce."""

    def batch(p, ref, keys, b):
        prompt, index, scores = drawn(TABLE.logps(ref), keys, b, 4)
        ranks = group_ranks(noisy_scores(scores, keys[2], judgement='sampled', noise=1.0))
        candidates = TABLE.batch(prompt, index)
        return RankingBatch(candidates, ranks, jnp.ones(ranks.shape, bool), group_logps(APPLY, ref, candidates))

    return batch, group_ranking_objective(APPLY, beta=1.0)


def thumbs(beta):
    """Single judged texts of the reference, with KTO's baseline."""

    def batch(p, ref, keys, b):
        prompt, index, _ = drawn(TABLE.logps(ref), keys, b, 1)
        label, candidates = GOOD[prompt, index[:, 0]], TABLE.batch(prompt, index)
        answers = JudgedBatch(candidates, label, ref_logps=group_logps(APPLY, ref, candidates))
        return (
            answers,
            JudgedCounts(jnp.float32(b), label.sum(), (1 - label).sum()),
            kl_baseline(APPLY, p, ref, candidates),
        )

    return batch, unpaired_objective(APPLY, partial(kto_loss, beta=beta), beta=beta, **KTO_WEIGHTS)


def nash(beta):
    """The policy's texts against those of its mixture with the reference."""
    batch, _ = online(dpo_loss, 'soft', opponent=mixed)
    return batch, nash_md_objective(APPLY, beta=beta)


def nash_optimum(ref, beta):
    """What Nash-MD's gradient is zero at: the best answer to its own mixture with the reference."""
    table = TABLE.conditionals(ref)
    return optima.game_optimum(ref, REWARDS, beta, lambda logps: mixed(TABLE.conditionals(logps), table))


def tilted(ref):
    """pi_ref exp(r) / Z."""
    return optimal_policy(ref, REWARDS, 1.0)


BT = partial(dpo_loss, beta=1.0)
# By name: (batch, objective), its own optimum, learning rate, iterations after which the policy becomes the reference.
METHODS = {
    'DPO (soft labels)': (lambda: offline(BT, 'soft'), tilted, 0.05, 1),
    'DPO (hard labels)': (lambda: offline(BT, 'sampled'), tilted, 0.02, 1),
    'Plackett-Luce DPO': (rankings, tilted, 0.02, 1),
    'online DPO': (lambda: online(BT, 'soft'), tilted, 0.05, 1),
    'XPO': (
        lambda: online(BT, 'soft', opponent=lambda p, ref: TABLE.logps(ref), explore=1e-5), tilted, 0.05, 1
    ),
    'IPO': (
        lambda: offline(partial(ipo_loss, beta=0.2, per_token=False), 'soft'),
        lambda ref: optima.ipo_optimum(ref, REWARDS, 0.2), 0.05, 1,
    ),
    'KTO': (lambda: thumbs(0.5), lambda ref: optima.kto_optimum(ref, GOOD, 0.5, **KTO_WEIGHTS), 0.05, 1),
    'SPPO (3 iterations)': (
        lambda: offline(partial(sppo_loss, beta=0.5), 'soft', size=4),
        lambda ref: optima.sppo_iterate(ref, REWARDS, 0.5, 3), 0.05, 3,
    ),
    'Nash-MD': (lambda: nash(0.2), lambda ref: nash_optimum(ref, 0.2), 0.02, 1),
}  # fmt: skip


def train(name: str, seeds: int, steps: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(KL(pi || its own optimum), KL(that optimum || pi_ref exp(r) / Z)) of each seed."""
    make, optimum, learning_rate, iterations = METHODS[name]
    batch_of, objective = make()
    rate = optax.cosine_decay_schedule(learning_rate, steps // iterations)
    optimizer = optax.adam(rate)

    def one_seed(key):
        start = TABLE.init(jax.random.fold_in(key, 0), 0.7)

        def step(carry, key):
            params, ref, state = carry
            batch = batch_of(params, ref, jax.random.split(key, 4), batch_size)
            batch = batch if isinstance(batch, tuple) else (batch, jnp.float32(batch_size))
            grads = jax.grad(lambda p: objective(p, batch, key)[0])(params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), ref, state), None

        params = start
        for i in range(iterations):
            keys = jax.random.split(jax.random.fold_in(key, i + 1), steps // iterations)
            params = jax.lax.scan(step, (params, params, optimizer.init(params)), keys)[0][0]
        ref = TABLE.logps(start)
        own = optimum(ref)
        return kl_divergence(TABLE.logps(params), own), kl_divergence(own, tilted(ref))

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one_seed))(keys))
