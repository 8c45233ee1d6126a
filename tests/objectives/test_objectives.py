"""Objectives: a loss on a model is the loss on its log-probabilities, soft labels mix, shares add up."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.data.codec import Codec
from rlax_ft.data.rows import preference_rows, ranking_rows, take_rows
from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.evaluate.tables import TablePolicy
from rlax_ft.losses.preference import cpo_loss, dpo_loss, ipo_loss, odpo_loss, orpo_odds_loss
from rlax_ft.models.config import embedded_config
from rlax_ft.models.heads import ScalarModel, reward_params
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.objectives.preference import pair_loss, preference_objective, ranking_objective
from rlax_ft.objectives.reward import reward_objective, reward_ranking_objective
from rlax_ft.types import PairLogps, PreferenceBatch

CONFIG = embedded_config('tiny', vocab_size=8, max_length=12)
APPLY = Transformer(CONFIG).apply
CODEC = Codec(word_tokenizer('abcde'), 4, 6)
PAIRS = [
    {'prompt': 'a', 'chosen': 'b c', 'rejected': 'd'},
    {'prompt': 'a b', 'chosen': 'e', 'rejected': 'c c c'},
    {'prompt': 'e', 'chosen': 'a b c', 'rejected': 'b'},
]


@pytest.fixture(scope='module')
def params():
    return jax.tree.map(lambda x: x * 2, init_params(CONFIG, jax.random.key(0)))


@jax.jit
def whole_logps(params, tokens):
    """log p of every token of the vocabulary at each place of one row, [T, V], by whole logits."""
    hidden, _ = APPLY({'params': params}, tokens[None])
    return jax.nn.log_softmax(APPLY({'params': params}, hidden, method='unembed')[0])


def plain_logp(params, row):
    """log pi(y | x) of one row from whole logits, token by token."""
    logps = whole_logps(params, row.tokens)
    return sum(float(logps[t - 1, row.tokens[t]]) for t in range(1, len(row.tokens)) if row.mask[t] > 0)


def test_the_dpo_objective_by_plain_arithmetic(params):
    rows = preference_rows(CODEC, PAIRS)
    rows = rows.replace(ref_logps=np.asarray([[-3.0, -2.0], [-2.0, -6.0], [-5.0, -3.0]]))
    objective = jax.jit(preference_objective(APPLY, partial(dpo_loss, beta=0.5), beta=0.5))
    loss, metrics = objective(params, (rows, 3.0), None)
    expected, margins = [], []
    for i in range(3):
        w = plain_logp(params, take_rows(rows.candidates, (i, 0))) - rows.ref_logps[i, 0]
        l = plain_logp(params, take_rows(rows.candidates, (i, 1))) - rows.ref_logps[i, 1]  # noqa: E741
        margins.append(0.5 * (w - l))
        expected.append(np.log1p(np.exp(-margins[-1])))
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-4)
    np.testing.assert_allclose(metrics['rewards/margins'], np.mean(margins), rtol=1e-3)
    np.testing.assert_allclose(metrics['rewards/accuracies'], np.mean(np.asarray(margins) > 0), rtol=1e-6)


def test_soft_labels_mix_the_two_outcomes():
    pair = PairLogps(
        chosen=jnp.asarray([-1.0, -4.0]),
        rejected=jnp.asarray([-2.0, -2.0]),
        ref_chosen=jnp.asarray([-1.5, -3.0]),
        ref_rejected=jnp.asarray([-1.5, -3.0]),
        chosen_len=jnp.asarray([2.0, 3.0]),
        rejected_len=jnp.asarray([4.0, 1.0]),
    )
    label = jnp.asarray([0.7, 0.2])
    np.testing.assert_allclose(
        pair_loss(partial(dpo_loss, beta=0.3), pair, label),
        dpo_loss(pair, beta=0.3, label_smoothing=1 - label),
        rtol=1e-6,
    )
    # IPO with lengths: the swapped pair must carry its own lengths.
    names = ('chosen', 'ref_chosen', 'chosen_len')
    swap = {n: n.replace('chosen', 'rejected') for n in names}
    swap |= {b: a for a, b in swap.items()}
    flipped = PairLogps(**{to: getattr(pair, source) for to, source in swap.items()})
    np.testing.assert_allclose(
        pair_loss(partial(ipo_loss, beta=0.3), pair, label),
        label * ipo_loss(pair, beta=0.3) + (1 - label) * ipo_loss(flipped, beta=0.3),
        rtol=1e-6,
    )


@pytest.mark.parametrize('name', ['RPO', 'ORPO', 'CPO', 'ODPO'])
def test_terms_weights_margins_and_soft_labels_by_plain_arithmetic(name):
    # Two texts of two letters each; every number of a record counts at once.
    table = TablePolicy(2, 3, 2)
    policy = table.init(jax.random.key(0), 1.0)
    prompt, index, ref = np.asarray([0, 1, 1]), np.asarray([[0, 4], [3, 7], [8, 2]]), np.asarray([[-2.0, -1.0]] * 3)
    label, margin, weight = np.asarray([1.0, 0.8, 0.25]), np.asarray([0.0, 0.5, 2.0]), np.asarray([1.0, 3.0, 0.5])
    rows = PreferenceBatch(table.batch(prompt, index), label, margin, weight, ref)
    w, l = np.asarray(table.logps(policy))[prompt[:, None], index].T.astype(float)  # noqa: E741
    nlog = lambda z: np.log1p(np.exp(-z))  # noqa: E731
    delta, odds = (w + 2) - (l + 1), (lambda x: x / 2 - np.log(1 - np.exp(x / 2)))
    gap, loss, both = {
        'RPO': (0.5 * delta, dpo_loss, 1.0),
        'ORPO': (odds(w) - odds(l), orpo_odds_loss, 0.5),
        'CPO': (0.5 * (w - l), cpo_loss, 1.0),
        'ODPO': (0.5 * delta - margin, odpo_loss, 1.0),
    }[name]
    expected = np.mean(weight * (both * (label * nlog(gap) + (1 - label) * nlog(-gap)) - 0.7 * w / 2))
    objective = preference_objective(table.apply, partial(loss, beta=0.5), beta=0.5, nll_coef=0.7)
    np.testing.assert_allclose(objective(policy, (rows, 3.0), None)[0], expected, rtol=1e-5)


def test_wpo_weighs_by_how_likely_the_policy_is_to_write_both(params):
    rows = preference_rows(CODEC, PAIRS).replace(ref_logps=np.asarray([[0.0, 1.0]] * 3))

    def alignment(row):
        """Mean over response tokens of log pi_t - log sum_v pi_v^2, from whole logits."""
        logps = np.asarray(whole_logps(params, row.tokens))
        own = [logps[t - 1, row.tokens[t]] - np.log(np.sum(np.exp(2 * logps[t - 1])))
               for t in range(1, len(row.tokens)) if row.mask[t] > 0]  # fmt: skip
        return np.mean(own)

    weights = [np.exp(sum(alignment(take_rows(rows.candidates, (i, k))) for k in (0, 1))) for i in range(3)]
    assert np.ptp(weights) > 0.01
    objective = lambda wpo: jax.jit(  # noqa: E731
        jax.value_and_grad(preference_objective(APPLY, partial(dpo_loss, beta=0.5), beta=0.5, wpo=wpo), has_aux=True)
    )
    (loss, _), gradient = objective(True)(params, (rows, 3.0), None)
    weighted = rows.replace(weight=np.asarray(weights, np.float32))
    (expected, _), by_hand = objective(False)(params, (weighted, 3.0), None)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradient, by_hand)


def test_parts_of_a_batch_add_up(params):
    rows = preference_rows(CODEC, PAIRS).replace(ref_logps=np.asarray([[0.0, 1.0]] * 3))
    objective = jax.jit(preference_objective(APPLY, partial(dpo_loss, beta=0.1), beta=0.1))
    whole = objective(params, (rows, 3.0), None)
    parts = [objective(params, (take_rows(rows, slice(i, i + 1)), 3.0), None) for i in range(3)]
    jax.tree.map(lambda w, *p: np.testing.assert_allclose(w, sum(p), rtol=1e-5), whole, *parts)


def test_rankings_of_two_are_pairs(params):
    rankings = [{'prompt': p['prompt'], 'completions': [p['rejected'], p['chosen']], 'ranks': [1, 0]} for p in PAIRS]
    ranked = ranking_rows(CODEC, rankings)
    rows = preference_rows(CODEC, PAIRS).replace(ref_logps=np.asarray([[-2.0, -3.0]] * 3))
    ranked = ranked.replace(ref_logps=np.asarray([[-3.0, -2.0]] * 3))
    by_pair, pair_metrics = jax.jit(preference_objective(APPLY, partial(dpo_loss, beta=0.4), beta=0.4))(
        params, (rows, 3.0), None
    )
    by_rank, rank_metrics = jax.jit(ranking_objective(APPLY, beta=0.4))(params, (ranked, 3.0), None)
    np.testing.assert_allclose(by_rank, by_pair, rtol=1e-5)
    for name in rank_metrics:
        np.testing.assert_allclose(rank_metrics[name], pair_metrics[name], rtol=1e-4)
    scalar, reward = ScalarModel(CONFIG).apply, reward_params(params, jax.random.key(1))
    np.testing.assert_allclose(
        jax.jit(reward_ranking_objective(scalar))(reward, (ranked, 3.0), None)[0],
        jax.jit(reward_objective(scalar))(reward, (rows, 3.0), None)[0],
        rtol=1e-5,
    )
