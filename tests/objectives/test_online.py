"""Groups judged now: comparisons by brute force, the laws of a judge, and objectives against those on pairs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.evaluate.tables import TablePolicy
from rlax_ft.losses.preference import dpo_loss, ipo_loss
from rlax_ft.losses.ranking import plackett_luce_dpo_loss
from rlax_ft.objectives.online import (
    GroupBatch,
    compare,
    follow,
    group_logps,
    group_objective,
    group_ranking_objective,
    group_ranks,
    nash_md_objective,
    noisy_scores,
    pick_groups,
)
from rlax_ft.objectives.preference import preference_objective
from rlax_ft.types import PreferenceBatch, RankingBatch

TABLE = TablePolicy(2, 3, 2)
POLICY, REFERENCE = (TABLE.init(jax.random.key(i), 1.0) for i in (0, 1))
PROMPT, INDEX = jnp.asarray([0, 1, 1, 0]), jnp.asarray([[0, 4, 8, 2], [3, 3, 1, 7], [5, 6, 0, 1], [2, 8, 4, 4]])
SCORES = jnp.asarray([[0.3, 2.0, -1.0, 0.5], [1.0, 1.0, 1.0, 1.0], [0.0, 3.0, 0.0, 3.0], [1.0, -2.0, 0.5, 4.0]])
KEY = jax.random.key(7)


scored = jax.jit(partial(group_logps, TABLE.apply))


def groups(**how):
    candidates = TABLE.batch(PROMPT, INDEX)
    return GroupBatch(candidates, *compare(SCORES, KEY, **how), scored(REFERENCE, candidates))


def test_a_table_is_a_policy():
    logps = TABLE.logps(POLICY)
    np.testing.assert_allclose(jax.nn.logsumexp(logps, axis=1), 0.0, atol=1e-5)
    logps_of = scored(POLICY, TABLE.batch(PROMPT, INDEX))
    np.testing.assert_allclose(logps_of, logps[PROMPT[:, None], INDEX], rtol=1e-5)
    np.testing.assert_allclose(TABLE.logps(TABLE.conditionals(logps)), logps, rtol=1e-5)


def test_best_against_worst_and_ties_teach_nothing():
    first, second, label, weight = compare(SCORES, KEY)
    assert first[:, 0].tolist() == [1, 0, 1, 3] and second[:, 0].tolist() == [2, 0, 0, 1]
    assert weight[:, 0].tolist() == [1, 0, 1, 1] and label[[0, 2, 3], 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(('pairs', 'both'), [('all', [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
                                             ('halves', [(0, 2), (0, 3), (1, 2), (1, 3)])])  # fmt: skip
def test_labels_of_all_pairs(pairs, both):
    first, second, label, weight = compare(SCORES, KEY, judgement='soft', noise=2.0, pairs=pairs)
    assert list(zip(first[0].tolist(), second[0].tolist())) == both
    for row, scores in enumerate(np.asarray(SCORES)):
        expected = [1 / (1 + np.exp(-(scores[i] - scores[j]) / 2)) for i, j in both]
        np.testing.assert_allclose(label[row], expected, rtol=1e-5)
    assert weight.min() == 1
    hard = compare(SCORES, KEY, pairs=pairs)
    gaps = np.asarray([[s[i] - s[j] for i, j in both] for s in np.asarray(SCORES)])
    np.testing.assert_array_equal(hard[2], (1 + np.sign(gaps)) / 2)
    np.testing.assert_array_equal(hard[3], gaps != 0)


def test_sampled_judgements_are_bradley_terrys():
    scores = jnp.broadcast_to(jnp.asarray([0.0, 1.5]), (20_000, 2))
    wins = compare(scores, KEY, judgement='sampled', noise=1.0, pairs='all')[2].mean()
    assert wins == pytest.approx(1 / (1 + np.exp(1.5)), abs=0.01)
    ranks = group_ranks(noisy_scores(scores, KEY, judgement='sampled', noise=1.0))
    assert (ranks[:, 0] == 0).mean() == pytest.approx(float(wins), abs=1e-6)
    assert group_ranks(SCORES)[:3].tolist() == [[2, 0, 3, 1], [0] * 4, [2, 0, 2, 0]]


@pytest.mark.parametrize('loss', [dpo_loss, partial(ipo_loss, per_token=False)], ids=['dpo', 'ipo'])
def test_a_group_is_the_pairs_that_are_in_it(loss):
    batch = groups(judgement='soft', pairs='all')
    candidates = [
        (PROMPT[p], INDEX[p, i], INDEX[p, j]) for p in range(4) for i, j in zip(batch.first[p], batch.second[p])
    ]
    prompt, a, b = (jnp.stack(column) for column in zip(*candidates))
    pairs = TABLE.batch(prompt, jnp.stack([a, b], axis=1))
    rows = PreferenceBatch(pairs, batch.label.reshape(-1), ref_logps=scored(REFERENCE, pairs))
    how = dict(beta=0.5, nll_coef=0.0)
    grouped = group_objective(TABLE.apply, partial(loss, beta=0.5), **how)
    paired = preference_objective(TABLE.apply, partial(loss, beta=0.5), **how)
    ours = jax.jit(jax.value_and_grad(lambda p: grouped(p, (batch, 4.0), None)[0]))
    theirs = jax.jit(jax.value_and_grad(lambda p: paired(p, (rows, 24.0), None)[0]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), ours(POLICY), theirs(POLICY))


def test_parts_of_a_batch_add_up_and_minibatches_cover_it():
    batch = groups(judgement='hard', pairs='all')
    objective = jax.jit(group_objective(TABLE.apply, partial(dpo_loss, beta=0.5), beta=0.5, nll_coef=0.3, explore=0.2))
    whole = objective(POLICY, (batch, 4.0), None)
    parts = [objective(POLICY, (jax.tree.map(lambda x, i=i: x[i : i + 1], batch), 4.0), None) for i in range(4)]
    jax.tree.map(lambda w, *p: np.testing.assert_allclose(w, sum(p), rtol=1e-4, atol=1e-6), whole, *parts)
    picked = [pick_groups(batch, KEY, 1, i, count=2)[0].candidates.responses.tokens for i in (0, 1)]
    every = sorted(np.concatenate(picked).reshape(4, -1).tolist())
    assert every == sorted(np.asarray(batch.candidates.responses.tokens).reshape(4, -1).tolist())


def test_explorations_and_nash_md_by_hand():
    batch = groups(judgement='soft', pairs='halves')
    plain, exploring = (
        jax.jit(group_objective(TABLE.apply, partial(dpo_loss, beta=0.5), beta=0.5, explore=e))(
            POLICY, (batch, 4.0), None
        )[0]
        for e in (0.0, 0.25)
    )
    logps = np.asarray(TABLE.logps(POLICY))[np.asarray(PROMPT)[:, None], np.asarray(INDEX)]
    np.testing.assert_allclose(exploring - plain, 0.25 * logps[:, 2:].mean(), rtol=1e-4)
    refs, total = np.asarray(batch.ref_logps), 0.0
    for p in range(4):
        for i, label in zip(np.asarray(batch.first[p]), np.asarray(batch.label[p])):
            total -= (label - 0.5 - 0.3 * (logps[p, i] - refs[p, i])) * logps[p, i]
    nash = jax.jit(nash_md_objective(TABLE.apply, beta=0.3))(POLICY, (batch, 4.0), None)[0]
    np.testing.assert_allclose(nash, total / 16, rtol=1e-4)


def test_rankings_of_groups():
    candidates, ranks = TABLE.batch(PROMPT, INDEX), group_ranks(SCORES)
    refs = scored(REFERENCE, candidates)
    batch = RankingBatch(candidates, ranks, jnp.ones(ranks.shape, bool), refs)
    loss, _ = jax.jit(group_ranking_objective(TABLE.apply, beta=0.5))(POLICY, (batch, 4.0), None)
    logps = scored(POLICY, candidates)
    np.testing.assert_allclose(loss, plackett_luce_dpo_loss(logps, refs, ranks, beta=0.5).mean(), rtol=1e-5)


def test_a_reference_follows():
    moved = follow({'w': jnp.asarray([1.0, 2.0])}, {'w': jnp.asarray([3.0, -2.0])}, 0.25)
    np.testing.assert_allclose(moved['w'], [1.5, 1.0])
