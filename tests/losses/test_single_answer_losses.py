"""Reward-model, unpaired, supervised, value and distillation losses by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.losses import distillation, game, reward_model, supervised, unpaired, value
from rlax_ft.losses.preference import nca_loss
from rlax_ft.types import PairLogps


def s(x):
    return 1 / (1 + math.exp(-x))


def test_bradley_terry_by_hand(x64):
    chosen, rejected = np.array([1.0, 0.2]), np.array([0.4, 0.9])
    plain = reward_model.bradley_terry_loss(chosen, rejected)
    np.testing.assert_allclose(plain, [-math.log(s(0.6)), -math.log(s(-0.7))], rtol=1e-12)
    full = reward_model.bradley_terry_loss(
        chosen, rejected, margin=np.array([0.5, 0.0]), label=np.array([0.8, 0.5]), center_coef=0.01
    )
    expected = [
        -0.8 * math.log(s(0.1)) - 0.2 * math.log(s(-0.1)) + 0.01 * 1.96,
        -0.5 * math.log(s(-0.7)) - 0.5 * math.log(s(0.7)) + 0.01 * 1.21,
    ]
    np.testing.assert_allclose(full, expected, rtol=1e-12)
    with pytest.raises(AssertionError, match='label'):
        reward_model.bradley_terry_loss(chosen, rejected, label=np.ones((2, 1)))


def test_bradley_terry_is_minimal_where_the_gap_is_the_logit_of_the_label(x64):
    gap = math.log(0.7 / 0.3)

    def loss(d):
        return reward_model.bradley_terry_loss(d[None], jnp.zeros(1), label=0.7)[0]

    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(gap)), 0.0, atol=1e-15)
    assert abs(jax.grad(loss)(jnp.asarray(gap + 0.1))) > 1e-3


def test_scores_and_steps_by_hand(x64):
    np.testing.assert_allclose(reward_model.score_regression_loss(np.array([3.0]), np.array([1.0])), [2.0])
    logits, labels = np.array([[0.5, -1.0, 2.0]]), np.array([[1, 0, 1]])
    loss = reward_model.step_reward_loss(logits, labels, np.array([[1, 1, 0]]))
    np.testing.assert_allclose(loss, [[-math.log(s(0.5)), -math.log(s(1.0)), 0.0]], rtol=1e-12)


def test_integer_targets_do_not_make_integer_losses():
    loss = reward_model.score_regression_loss(jnp.array([0.7]), jnp.array([0]))
    np.testing.assert_allclose(loss, [0.245], rtol=1e-6)


def test_kto_and_bco_by_hand(x64):
    logps, refs, thumbs = np.array([-1.0, -2.0]), np.array([-2.0, -1.5]), np.array([True, False])
    kto = unpaired.kto_loss(logps, refs, thumbs, 0.3, beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    np.testing.assert_allclose(kto, [2 * (1 - s(0.5 * 0.7)), 3 * (1 - s(0.5 * 0.8))], rtol=1e-12)
    bco = unpaired.bco_loss(logps, refs, thumbs, 0.3, beta=0.5)
    np.testing.assert_allclose(bco, [-math.log(s(0.2)), -math.log(s(0.55))], rtol=1e-12)


def test_baselines_are_clamped_stopped_and_skip_masked_rows(x64):
    logps, refs = np.array([-1.0, -2.0, np.nan]), np.array([-2.0, -1.5, -1.0])
    rows = np.array([True, True, False])
    np.testing.assert_allclose(unpaired.kto_kl(logps, refs, rows), 0.25)
    assert unpaired.kto_kl(refs, logps, rows) == 0.0
    gradient = jax.grad(lambda x: unpaired.kto_kl(x, refs, rows) * 3.0)(logps)
    np.testing.assert_array_equal(gradient, 0.0)
    shift = unpaired.bco_shift(logps[:2], refs[:2], np.array([True, False]), beta=0.5)
    np.testing.assert_allclose(shift, 0.5 * (0.5 - 0.25))


def test_both_sides_of_a_pair_add_up_to_nca(x64):
    logps, refs = np.array([-1.0, -2.0, -3.5, -0.2]), np.array([-2.0, -1.5, -3.0, -0.9])
    pair = PairLogps(chosen=logps[:2], rejected=logps[2:], ref_chosen=refs[:2], ref_rejected=refs[2:])
    sides = unpaired.nca_unpaired_loss(logps, refs, np.array([True, True, False, False]), beta=0.7)
    np.testing.assert_allclose(sides[:2] + sides[2:], nca_loss(pair, beta=0.7), rtol=1e-12)


def test_apo_zero_is_kto_without_a_baseline(x64):
    logps, refs, thumbs = np.array([-1.0, -2.0]), np.array([-2.0, -1.5]), np.array([True, False])
    apo = unpaired.apo_zero_unpaired_loss(logps, refs, thumbs, beta=0.5)
    np.testing.assert_allclose(apo, [1 - s(0.5), s(-0.25)], rtol=1e-12)
    np.testing.assert_allclose(apo, unpaired.kto_loss(logps, refs, thumbs, 0.0, beta=0.5), rtol=1e-12)


def test_the_gradient_of_nash_md_is_that_of_the_regularised_game(x64):
    # Three answers, an opponent that each beats with a known probability: enumerate instead of sampling.
    theta, ref, wins, beta = (
        jnp.array([0.3, -0.2, 0.5]),
        jax.nn.log_softmax(jnp.array([0.1, 0.4, -0.3])),
        [0.9, 0.2, 0.6],
        0.4,
    )
    wins, probs = jnp.asarray(wins), jax.nn.softmax(theta)

    def value(theta):
        logps = jax.nn.log_softmax(theta)
        return jnp.sum(jnp.exp(logps) * (wins - beta * (logps - ref)))

    surrogate = jax.grad(lambda t: jnp.sum(probs * game.nash_md_loss(jax.nn.log_softmax(t), ref, wins, beta=beta)))
    np.testing.assert_allclose(surrogate(theta), -jax.grad(value)(theta), rtol=1e-10)


def test_nll_and_dft_by_hand(x64):
    logps, mask = np.log([[0.5, 0.25, 0.1]]), np.array([[1, 1, 0]])
    np.testing.assert_allclose(supervised.nll_loss(logps, mask), [[math.log(2), math.log(4), 0]], rtol=1e-12)
    np.testing.assert_allclose(
        supervised.dft_loss(logps, mask), [[0.5 * math.log(2), 0.25 * math.log(4), 0]], rtol=1e-12
    )
    gradient = jax.grad(lambda x: supervised.dft_loss(x, mask).sum())(logps)
    np.testing.assert_allclose(gradient, [[-0.5, -0.25, 0.0]], rtol=1e-12)


def test_value_loss_takes_the_worse_of_clipped_and_plain(x64):
    values, old, returns = np.array([[2.0, 2.0, 0.1]]), np.array([[1.0, 1.0, 0.0]]), np.array([[0.0, 3.0, 1.0]])
    # Clipped to within 0.5 of old: 1.5, 1.5, 0.1.
    expected = [[0.5 * 4.0, 0.5 * 2.25, 0.5 * 0.81]]
    np.testing.assert_allclose(value.clipped_value_loss(values, old, returns, clip=0.5), expected, rtol=1e-12)
    plain = value.clipped_value_loss(values, None, returns, clip=None)
    np.testing.assert_allclose(plain, [[2.0, 0.5, 0.405]], rtol=1e-12)
    gradient = jax.grad(lambda v: value.clipped_value_loss(v, old, returns, clip=0.5).sum())(values)
    np.testing.assert_allclose(gradient, [[2.0, 0.0, -0.9]], rtol=1e-12)


def kl(p, q):
    return float(np.sum(p * (np.log(p) - np.log(q))))


def test_generalized_jsd_by_hand(x64):
    student, teacher = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    mixture = 0.7 * student + 0.3 * teacher
    expected = {0.0: kl(teacher, student), 1.0: kl(student, teacher)}
    expected[0.3] = 0.3 * kl(teacher, mixture) + 0.7 * kl(student, mixture)
    for beta, number in expected.items():
        loss = distillation.generalized_jsd_loss(np.log(student)[None, None], np.log(teacher)[None, None], beta=beta)
        np.testing.assert_allclose(loss, [[number]], rtol=1e-12)


@pytest.mark.parametrize('beta', [0.0, 0.5, 1.0])
def test_tokens_that_cannot_be_cost_nothing(beta):
    forbid = jnp.array([[[0.0, 1.0, -jnp.inf]]])
    other = jnp.array([[[0.5, 0.2, -jnp.inf]]])
    loss, gradient = jax.value_and_grad(lambda x: distillation.generalized_jsd_loss(x, other, beta=beta).sum())(forbid)
    shorter = distillation.generalized_jsd_loss(forbid[..., :2], other[..., :2], beta=beta)[0, 0]
    np.testing.assert_allclose(loss, shorter, rtol=1e-6)
    assert jnp.all(jnp.isfinite(gradient))
