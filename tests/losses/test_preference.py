"""Preference losses by hand: each paper's formula on one pair in plain `math`, and the facts that the papers state."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.losses import preference
from rlax_ft.types import PairLogps

# log pi(y_w) = -4, log pi(y_l) = -6 over 2 and 3 tokens; the reference gives -5 and -5.5: h_w = 1, h_l = -0.5.
W, L, RW, RL, NW, NL = -4.0, -6.0, -5.0, -5.5, 2, 3
HW, HL, BETA = 1.0, -0.5, 0.4
ONE = PairLogps(*(jnp.array([x]) for x in (W, L, RW, RL, NW, NL)))


def s(x):
    return 1 / (1 + math.exp(-x))


def odds(logp):
    return math.exp(logp) / (1 - math.exp(logp))


BY_HAND = [
    ('dpo_loss', {}, -math.log(s(0.4 * 1.5))),
    ('dpo_loss', {'label_smoothing': 0.25}, -0.75 * math.log(s(0.6)) - 0.25 * math.log(s(-0.6))),
    ('ipo_loss', {}, (1 / 2 + 0.5 / 3 - 1 / 0.8) ** 2),
    ('ipo_loss', {'per_token': False}, (1.5 - 1.25) ** 2),
    ('hinge_loss', {}, 1 - 0.6),
    ('robust_dpo_loss', {'label_smoothing': 0.25}, (-0.75 * math.log(s(0.6)) + 0.25 * math.log(s(-0.6))) / 0.5),
    ('exo_loss', {'label_smoothing': 0.25}, s(0.6) * math.log(s(0.6) / 0.75) + s(-0.6) * math.log(s(-0.6) / 0.25)),
    ('nca_loss', {}, -math.log(s(0.4)) - 0.5 * math.log(s(-0.4)) - 0.5 * math.log(s(0.2))),
    ('bco_pair_loss', {}, -math.log(s(0.4)) - math.log(s(0.2))),
    ('sppo_loss', {}, (1 - 1.25) ** 2 + (-0.5 + 1.25) ** 2),
    ('aot_loss', {}, -math.log(s(0.4 * (2 - 0.5)))),
    ('aot_unpaired_loss', {}, -math.log(s(0.4 * 1.5))),
    ('apo_zero_loss', {}, 1 - s(0.4) + s(-0.2)),
    ('apo_down_loss', {}, s(0.4) + 1 - s(0.6)),
    ('discopop_loss', {}, -s(-12.0) * math.log(s(0.6)) + s(12.0) * math.exp(-0.6)),
    ('dpo_norm_loss', {}, -math.log(s(0.4 * (1 / 2 + 0.5 / 3)))),
    ('f_dpo_loss', {}, -math.log(s(0.6))),
    ('f_dpo_loss', {'divergence': 'forward_kl'}, -math.log(s(0.4 * (math.exp(0.5) - math.exp(-1))))),
    (
        'f_dpo_loss',
        {'divergence': 'js'},
        -math.log(s(0.4 * math.log(2 * math.e / (1 + math.e) / (2 * math.exp(-0.5) / (1 + math.exp(-0.5)))))),
    ),
    ('f_dpo_loss', {'divergence': 'alpha', 'alpha': 3.0}, -math.log(s(0.4 * (math.exp(2) - math.exp(-1)) / 2))),
    ('odpo_loss', {'offset': 0.3}, -math.log(s(0.3))),
    ('cpo_loss', {}, -math.log(s(0.8))),
    ('simpo_loss', {'gamma': 0.3}, -math.log(s(0.4 * (-2 + 2) - 0.3))),
    ('orpo_odds_loss', {}, -0.4 * math.log(s(math.log(odds(-2.0) / odds(-2.0))))),
]


@pytest.mark.parametrize(('name', 'settings', 'expected'), BY_HAND, ids=lambda x: x if isinstance(x, str) else None)
def test_the_papers_formula_on_one_pair(name, settings, expected, x64):
    pair = jax.tree.map(lambda x: x.astype(jnp.float64), ONE)
    loss = getattr(preference, name)(pair, beta=BETA, **settings)
    assert loss.shape == (1,)
    np.testing.assert_allclose(loss[0], expected, rtol=1e-12)


def test_every_loss_has_its_line_by_hand_and_the_shape_of_the_contract():
    names = {name for name in vars(preference) if name.endswith('_loss')}
    assert names == {name for name, *_ in BY_HAND}
    for name in names:
        first, *rest = inspect.signature(getattr(preference, name)).parameters.values()
        assert first.name == 'pair'
        assert {p.kind for p in rest} == {inspect.Parameter.KEYWORD_ONLY}
        assert 'beta' in {p.name for p in rest}


def test_numbers_one_can_look_up():
    level = ONE.replace(chosen=ONE.ref_chosen, rejected=ONE.ref_rejected)
    np.testing.assert_allclose(preference.dpo_loss(level, beta=0.1), [0.6931472], rtol=1e-6)
    np.testing.assert_allclose(preference.sppo_loss(level, beta=0.1), [50.0], rtol=1e-6)
    np.testing.assert_allclose(preference.ipo_loss(level, beta=0.1), [25.0], rtol=1e-6)
    np.testing.assert_allclose(preference.implicit_rewards(ONE, 0.4), [[0.4], [-0.2]], rtol=1e-6)


@pytest.mark.parametrize('beta', [0.05, 0.5, 3.0])
def test_dpo_gradient_weight_is_sigmoid_of_the_wrong_way_reward_gap(beta, x64):
    rng = np.random.default_rng(0)
    pair = PairLogps(*(-5 * rng.random((4, 6))))
    gradient = jax.grad(lambda p: preference.dpo_loss(p, beta=beta).sum())(pair)
    r_w, r_l = preference.implicit_rewards(pair, beta)
    np.testing.assert_allclose(gradient.chosen, -beta / (1 + np.exp(r_w - r_l)), rtol=1e-12)
    np.testing.assert_allclose(gradient.rejected, -gradient.chosen, rtol=1e-12)


def test_soft_labels_per_pair_are_the_mixture_of_both_orders(x64):
    rng = np.random.default_rng(1)
    pair = PairLogps(*(-5 * rng.random((4, 6))))
    swapped = PairLogps(pair.rejected, pair.chosen, pair.ref_rejected, pair.ref_chosen)
    label = rng.random(6)
    soft = preference.dpo_loss(pair, beta=0.3, label_smoothing=1 - label)
    hard = [preference.dpo_loss(p, beta=0.3) for p in (pair, swapped)]
    np.testing.assert_allclose(soft, label * hard[0] + (1 - label) * hard[1], rtol=1e-12)
    half = preference.dpo_loss(pair, beta=0.3, label_smoothing=np.full(6, 0.5))
    np.testing.assert_allclose(half, preference.dpo_loss(swapped, beta=0.3, label_smoothing=0.5), rtol=1e-12)


def test_robust_dpo_is_unbiased_under_flipped_labels(x64):
    rng = np.random.default_rng(2)
    pair = PairLogps(*(-5 * rng.random((4, 6))))
    swapped = PairLogps(pair.rejected, pair.chosen, pair.ref_rejected, pair.ref_chosen)
    clean, flipped = (preference.robust_dpo_loss(p, beta=0.3, label_smoothing=0.2) for p in (pair, swapped))
    mean = 0.8 * clean + 0.2 * flipped
    np.testing.assert_allclose(mean, preference.dpo_loss(pair, beta=0.3), rtol=1e-12)


def test_orpo_is_exact_near_probability_one(x64):
    for logp in (-1e-8, -1e-4, -0.5, -0.8, -30.0):
        wide = PairLogps(
            chosen=jnp.array([logp]), rejected=jnp.array([-1.0]), chosen_len=jnp.array([1]), rejected_len=jnp.array([1])
        )
        truth = 0.4 * math.log1p(math.exp(math.log(-math.expm1(logp)) - logp + math.log(odds(-1.0))))
        narrow = jax.tree.map(lambda x: x.astype(jnp.float32), wide)
        np.testing.assert_allclose(preference.orpo_odds_loss(wide, beta=0.4), [truth], rtol=1e-9)
        np.testing.assert_allclose(preference.orpo_odds_loss(narrow, beta=0.4), [truth], rtol=3e-6)


def test_an_empty_response_counts_one_token():
    empty = ONE.replace(chosen=jnp.zeros(1), ref_chosen=jnp.zeros(1), chosen_len=jnp.zeros(1, int))
    for name in ('ipo_loss', 'dpo_norm_loss', 'simpo_loss', 'orpo_odds_loss'):
        assert jnp.isfinite(getattr(preference, name)(empty, beta=0.1)[0]), name


def test_what_is_missing_or_senseless_is_named():
    free = PairLogps(chosen=ONE.chosen, rejected=ONE.rejected)
    with pytest.raises(ValueError, match='ref_chosen'):
        preference.dpo_loss(free)
    with pytest.raises(ValueError, match='chosen_len'):
        preference.simpo_loss(free)
    with pytest.raises(AssertionError, match='rejected'):
        preference.dpo_loss(ONE.replace(rejected=jnp.zeros(2)))
    with pytest.raises(AssertionError, match='label_smoothing'):
        preference.dpo_loss(ONE, label_smoothing=jnp.zeros((1, 1)))
    with pytest.raises(AssertionError, match=r'`chosen`.*floating'):
        preference.dpo_loss(ONE.replace(chosen=jnp.array([7])))
    with pytest.raises(ValueError, match='label_smoothing'):
        preference.robust_dpo_loss(ONE, label_smoothing=0.5)
    with pytest.raises(ValueError, match='label_smoothing'):
        preference.exo_loss(ONE, label_smoothing=0.0)
    with pytest.raises(ValueError, match='jeffreys'):
        preference.f_dpo_loss(ONE, divergence='jeffreys')
