"""Policy-gradient losses by hand, where they clip, and the gradients of those that stop some."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.losses import policy_gradient as pg
from rlax_ft.ops import reduce

RATIOS = np.array([[0.5, 1.1, 2.0], [0.9, 1.5, 1.0]])
OLD = np.log([[0.3, 0.2, 0.1], [0.5, 0.2, 0.7]])
LOGPS = OLD + np.log(RATIOS)
MASK = np.array([[1, 1, 1], [1, 1, 0]])
PLUS, MINUS = np.full((2, 3), 2.0), np.full((2, 3), -2.0)


def grad(loss, advantages, **settings):
    return jax.grad(lambda x: loss(x, OLD, advantages, MASK, **settings).sum())(LOGPS)


def test_every_loss_has_the_shape_of_the_contract():
    names = [name for name in pg.__all__ if name.endswith('_loss')]
    assert len(names) == 12
    for name in names:
        parameters = inspect.signature(getattr(pg, name)).parameters.values()
        assert [p.name for p in parameters][:4] == ['logps', 'old_logps', 'advantages', 'mask']
        assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters)[4:])


def test_reinforce_by_hand(x64):
    np.testing.assert_allclose(pg.reinforce_loss(LOGPS, OLD, PLUS, MASK), -2 * LOGPS * MASK, rtol=1e-12)


def test_ppo_by_hand(x64):
    up = pg.ppo_clip_loss(LOGPS, OLD, PLUS, MASK, clip_low=0.2, clip_high=0.3)
    np.testing.assert_allclose(up, [[-1.0, -2.2, -2.6], [-1.8, -2.6, 0.0]], rtol=1e-12)
    down = pg.ppo_clip_loss(LOGPS, OLD, MINUS, MASK, clip_low=0.2, clip_high=0.3)
    np.testing.assert_allclose(down, [[1.6, 2.2, 4.0], [1.8, 3.0, 0.0]], rtol=1e-12)
    dual = pg.ppo_clip_loss(LOGPS, OLD, MINUS, MASK, clip_low=0.2, clip_high=0.3, dual_clip=1.4)
    np.testing.assert_allclose(dual, [[1.6, 2.2, 2.8], [1.8, 2.8, 0.0]], rtol=1e-12)
    open_below = pg.ppo_clip_loss(LOGPS, OLD, MINUS, MASK, clip_low=1.0)
    np.testing.assert_allclose(open_below, [[1.0, 2.2, 4.0], [1.8, 3.0, 0.0]], rtol=1e-12)


def test_ppo_gradient_is_the_weighted_score_where_not_clipped(x64):
    expected = [[-1.0, -2.2, 0.0], [-1.8, 0.0, 0.0]]
    np.testing.assert_allclose(grad(pg.ppo_clip_loss, PLUS), expected, rtol=1e-12)
    expected = [[0.0, 2.2, 4.0], [1.8, 3.0, 0.0]]
    np.testing.assert_allclose(grad(pg.ppo_clip_loss, MINUS), expected, rtol=1e-12)


def test_gspo_clips_the_geometric_mean(x64):
    s = [(0.5 * 1.1 * 2.0) ** (1 / 3), (0.9 * 1.5) ** (1 / 2)]
    loss = pg.gspo_loss(LOGPS, OLD, PLUS, MASK, clip_low=0.2, clip_high=0.1)
    np.testing.assert_allclose(loss, [[-2 * s[0]] * 3, [-2.2, -2.2, 0.0]], rtol=1e-12)
    # Each token moves the row's value on all of its tokens by 1/|y|, so the sum by the whole.
    np.testing.assert_allclose(
        grad(pg.gspo_loss, PLUS, clip_low=0.2, clip_high=0.1), [[-2 * s[0]] * 3, [0, 0, 0]], rtol=1e-12
    )


def test_gspo_token_has_gspos_value_and_per_token_gradients(x64):
    uneven = np.array([[2.0, -1.0, 0.5], [1.0, 3.0, 0.0]])
    settings = {'clip_low': 0.9, 'clip_high': 0.9}
    np.testing.assert_allclose(
        pg.gspo_token_loss(LOGPS, OLD, uneven, MASK, **settings),
        pg.gspo_loss(LOGPS, OLD, uneven, MASK, **settings),
        rtol=1e-12,
    )
    s = np.array([[(0.5 * 1.1 * 2.0) ** (1 / 3)], [(0.9 * 1.5) ** (1 / 2)]])
    np.testing.assert_allclose(grad(pg.gspo_token_loss, uneven, **settings), -s * uneven * MASK, rtol=1e-12)


def test_cispo_keeps_every_gradient_at_its_clipped_weight(x64):
    weights = np.clip(RATIOS, 0.8, 1.3)
    loss = pg.cispo_loss(LOGPS, OLD, PLUS, MASK, clip_low=0.2, clip_high=0.3)
    np.testing.assert_allclose(loss, -2 * weights * LOGPS * MASK, rtol=1e-12)
    gradient = grad(pg.cispo_loss, PLUS, clip_low=0.2, clip_high=0.3)
    np.testing.assert_allclose(gradient, -2 * weights * MASK, rtol=1e-12)
    np.testing.assert_allclose(grad(pg.cispo_loss, PLUS), -2 * RATIOS * MASK, rtol=1e-12)


def test_gmpo_clips_log_ratios_on_the_side_that_matters(x64):
    up = pg.gmpo_loss(LOGPS, OLD, PLUS, MASK)
    rows = [math.log(0.5) + math.log(1.1) + 0.4, math.log(0.9) + 0.4]
    np.testing.assert_allclose(up[0], [-2 * math.exp(rows[0] / 3)] * 3, rtol=1e-12)
    np.testing.assert_allclose(up[1], [-2 * math.exp(rows[1] / 2)] * 2 + [0.0], rtol=1e-12)
    down = pg.gmpo_loss(LOGPS, OLD, MINUS, MASK)
    np.testing.assert_allclose(down[0, 0], 2 * math.exp((-0.4 + math.log(1.1) + math.log(2.0)) / 3), rtol=1e-12)


def test_sapo_by_hand_and_its_slope_at_ratio_one(x64):
    loss = pg.sapo_loss(LOGPS, OLD, PLUS, MASK)
    np.testing.assert_allclose(loss, -2 * 4 / (1 + np.exp(-(RATIOS - 1))) * MASK, rtol=1e-12)
    loss = pg.sapo_loss(LOGPS, OLD, MINUS, MASK, tau_neg=1.05)
    np.testing.assert_allclose(loss, 2 * (4 / 1.05) / (1 + np.exp(-1.05 * (RATIOS - 1))) * MASK, rtol=1e-12)
    at_one = jax.grad(lambda x: pg.sapo_loss(x, OLD, MINUS, MASK).sum())(OLD)
    np.testing.assert_allclose(at_one, 2.0 * MASK, rtol=1e-12)


def test_vespo_weighs_by_the_gamma_of_the_whole_ratio(x64):
    w = np.array([[0.5 * 1.1 * 2.0], [0.9 * 1.5]])
    up, down = w**2 * np.exp(3 * (1 - w)), w**3 * np.exp(2 * (1 - w))
    np.testing.assert_allclose(grad(pg.vespo_loss, PLUS), -2 * up * MASK, rtol=1e-12)
    np.testing.assert_allclose(grad(pg.vespo_loss, MINUS), 2 * down * MASK, rtol=1e-12)
    np.testing.assert_allclose(pg.vespo_loss(LOGPS, OLD, PLUS, MASK), -2 * up * LOGPS * MASK, rtol=1e-12)


def test_importance_weights_by_hand(x64):
    weights = pg.importance_weights(LOGPS, OLD, MASK, level='token', mode='truncate', cap=1.2)
    np.testing.assert_allclose(weights, np.minimum(RATIOS, 1.2) * MASK, rtol=1e-12)
    weights = pg.importance_weights(LOGPS, OLD, MASK, level='token', mode='mask', cap=1.2, floor=0.6)
    np.testing.assert_allclose(weights, [[0.0, 1.1, 0.0], [0.9, 0.0, 0.0]], rtol=1e-12)
    product = np.array([[1.1] * 3, [1.35] * 3]) * MASK
    weights = pg.importance_weights(LOGPS, OLD, MASK, level='sequence', mode='truncate', cap=9.0)
    np.testing.assert_allclose(weights, product, rtol=1e-12)
    weights = pg.importance_weights(LOGPS, OLD, MASK, level='sequence', mode='mask', cap=1.2)
    np.testing.assert_allclose(weights, [[1.1] * 3, [0.0] * 3], rtol=1e-12)
    gradient = jax.grad(lambda x: pg.importance_weights(x, OLD, MASK).sum())(LOGPS)
    np.testing.assert_array_equal(gradient, 0.0)
    with pytest.raises(ValueError, match='geometric'):
        pg.importance_weights(LOGPS, OLD, MASK, level='geometric')


def test_off_policy_mask_drops_bad_rows_that_drifted(x64):
    # Mean log rollout/policy: row 0 -log(1.1)/3 < 0, row 1 below 0 too; swapped, both are above.
    kept = pg.off_policy_mask(LOGPS, OLD, MINUS, MASK, threshold=0.0)
    np.testing.assert_array_equal(kept, MASK)
    np.testing.assert_array_equal(pg.off_policy_mask(OLD, LOGPS, MINUS, MASK, threshold=0.0), 0 * MASK)
    np.testing.assert_array_equal(pg.off_policy_mask(OLD, LOGPS, PLUS, MASK, threshold=0.0), MASK)
    np.testing.assert_array_equal(pg.off_policy_mask(OLD, LOGPS, MINUS, MASK, threshold=0.1)[:, 0], [1, 0])


def test_covariance_losses_pick_the_tokens_of_the_highest_covariance(x64):
    advantages = np.array([[1.0, -1.0, 3.0], [0.0, -2.0, 9.0]])
    valid = MASK.astype(bool)
    centred = [x - x[valid].mean() for x in (advantages, LOGPS)]
    covariance = np.where(valid, centred[0] * centred[1], -np.inf)
    best = np.unravel_index(np.argmax(covariance), covariance.shape)
    plain = pg.ppo_clip_loss(LOGPS, OLD, advantages, MASK, clip_low=0.9, clip_high=9.0)
    loss = pg.kl_cov_loss(LOGPS, OLD, advantages, MASK, fraction=0.2, kl_coef=0.5)
    expected = np.array(plain)
    expected[best] += 0.5 * abs(np.log(RATIOS[best]))
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    # Two of five tokens: the chosen are the highest two of the band, or the first two of a given order.
    band = {'clip_low': 0.9, 'clip_high': 9.0, 'cov_low': -99.0, 'cov_high': 99.0, 'fraction': 0.4}
    dropped = pg.clip_cov_loss(LOGPS, OLD, advantages, MASK, **band)
    highest = np.isin(covariance, np.sort(covariance[valid])[-2:])
    np.testing.assert_allclose(dropped, np.where(highest, 0.0, plain), rtol=1e-12)
    order = np.array([[0.1, 0.9, 0.2], [0.8, 0.3, 9.0]])
    drawn = pg.clip_cov_loss(LOGPS, OLD, advantages, MASK, order=order, **band)
    np.testing.assert_allclose(drawn, np.where((order >= 0.8) & valid, 0.0, plain), rtol=1e-12)


def test_a_dual_clip_that_is_no_clip_and_token_ids_for_logps_are_refused():
    with pytest.raises(ValueError, match='dual_clip'):
        pg.ppo_clip_loss(LOGPS, OLD, PLUS, MASK, dual_clip=1.0)
    with pytest.raises(AssertionError, match='old_logps'):
        pg.ppo_clip_loss(LOGPS, jnp.ones((2, 3), int), PLUS, MASK)
    with pytest.raises(AssertionError, match='advantages'):
        pg.ppo_clip_loss(LOGPS, OLD, PLUS[:, :1], MASK)
    with pytest.raises(AssertionError, match='mask'):
        pg.ppo_clip_loss(LOGPS, OLD, PLUS, MASK[:, :1])


def test_luspo_is_gspo_times_the_length(x64):
    room = dict(clip_low=0.2, clip_high=0.1)
    s = [(0.5 * 1.1 * 2.0) ** (1 / 3), 1.1]  # the second is clipped
    loss = reduce.aggregate(pg.luspo_loss(LOGPS, OLD, PLUS, MASK, **room), MASK, pg.luspo_loss.aggregate)
    np.testing.assert_allclose(loss, -(3 * 2 * s[0] + 2 * 2 * s[1]) / 2, rtol=1e-12)
    gspo = reduce.aggregate(pg.gspo_loss(LOGPS, OLD, PLUS, MASK, **room), MASK, pg.gspo_loss.aggregate)
    np.testing.assert_allclose(gspo, -(2 * s[0] + 2 * s[1]) / 2, rtol=1e-12)


def test_dppo_holds_tokens_by_their_change_in_probability(x64):
    # p - q is -0.15, 0.02, 0.1 and -0.05, 0.1 (ratios 0.5, 1.1, 2.0 and 0.9, 1.5).
    up = grad(pg.dppo_loss, PLUS, clip_low=0.08, clip_high=0.08)
    np.testing.assert_allclose(up, [[-1.0, -2.2, 0.0], [-1.8, 0.0, 0.0]], rtol=1e-12)
    down = grad(pg.dppo_loss, MINUS, clip_low=0.08, clip_high=0.08)
    np.testing.assert_allclose(down, [[0.0, 2.2, 4.0], [1.8, 3.0, 0.0]], rtol=1e-12)
    # A rare token may double where PPO's clip would hold it.
    np.testing.assert_allclose(grad(pg.dppo_loss, PLUS)[0, 2], -4.0, rtol=1e-12)
    assert float(grad(pg.ppo_clip_loss, PLUS)[0, 2]) == 0.0
    value = pg.dppo_loss(LOGPS, OLD, PLUS, MASK, cap=1.5)
    np.testing.assert_allclose(value, -2 * np.minimum(RATIOS, 1.5) * LOGPS * MASK, rtol=1e-12)


def test_dppo_by_kl(x64):
    def kl(q, ratio):
        return q * math.log(1 / ratio) + (1 - q) * math.log((1 - q) / (1 - q * ratio))

    assert kl(0.2, 1.5) < 0.03 < kl(0.1, 2.0)
    up = grad(pg.dppo_loss, PLUS, divergence='kl', clip_low=0.03, clip_high=0.03)
    np.testing.assert_allclose(up, [[-1.0, -2.2, 0.0], [-1.8, -3.0, 0.0]], rtol=1e-12)
    with pytest.raises(ValueError, match=r"tv or kl, got 'js'"):
        pg.dppo_loss(LOGPS, OLD, PLUS, MASK, divergence='js')


def test_each_loss_says_how_its_paper_aggregates():
    modes = {name: getattr(pg, name).aggregate for name in pg.__all__ if name.endswith('_loss')}
    assert set(modes.values()) <= set(reduce.MODES)
    by_sequence = {'gspo_loss', 'gspo_token_loss', 'gmpo_loss', 'sapo_loss'}
    assert {name for name, mode in modes.items() if mode == 'seq_mean_token_mean'} == by_sequence
    assert {name for name, mode in modes.items() if mode == 'seq_mean_token_sum'} == {'luspo_loss', 'reinforce_loss'}
    # A long bad answer and a short good one: the mean over tokens is the long one's, the mean over answers is not.
    mask = np.array([[1, 1, 1, 1], [1, 0, 0, 0]])
    losses = pg.gspo_loss(np.zeros((2, 4)), np.zeros((2, 4)), np.array([[-1.0] * 4, [1.5] * 4]), mask)
    np.testing.assert_allclose(reduce.aggregate(losses, mask, 'token_mean'), (4 * 1.0 - 1.5) / 5, rtol=1e-6)
    np.testing.assert_allclose(reduce.aggregate(losses, mask, pg.gspo_loss.aggregate), (1.0 - 1.5) / 2, rtol=1e-6)
