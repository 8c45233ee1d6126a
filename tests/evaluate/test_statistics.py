"""Statistics of samples and of judges, against hand computation, enumeration and closed forms."""

import itertools

import numpy as np
import pytest

from rlax_ft.errors import InputError
from rlax_ft.evaluate.calibration import fit_temperature, preference_nll, reliability
from rlax_ft.evaluate.diversity import distinct_n, distinct_share
from rlax_ft.evaluate.intervals import mean_interval, seed_interval
from rlax_ft.evaluate.length_control import length_controlled_win_rate
from rlax_ft.evaluate.pairwise import BothOrders, outcome_shares
from rlax_ft.evaluate.pass_at_k import pass_at_k
from rlax_ft.evaluate.preference_bench import calibration, length_bias, subset_accuracies


def test_pass_at_k_is_the_share_of_choices_with_a_right_one():
    rng = np.random.default_rng(0)
    right = rng.random((5, 7)) < np.asarray([[0.0], [0.1], [0.4], [0.8], [1.0]])
    for k in (1, 2, 5, 7):
        counted = [np.mean([row[list(c)].any() for c in itertools.combinations(range(7), k)]) for row in right]
        np.testing.assert_allclose(pass_at_k(right, k), counted, atol=1e-12)
    # 1 - C(2, 2) / C(4, 2) by hand.
    assert pass_at_k([[1, 1, 0, 0]], 2)[0] == pytest.approx(5 / 6)
    for k in (0, 8):
        with pytest.raises(InputError, match='k must be from 1 to 7'):
            pass_at_k(right, k)


def test_pass_at_k_has_no_bias():
    rng = np.random.default_rng(1)
    estimates = pass_at_k(rng.random((20_000, 6)) < 0.3, 3)
    assert estimates.mean() == pytest.approx(1 - 0.7**3, abs=0.005)


def test_distinct_n_by_hand():
    texts = ['a b a', 'a b', '']
    assert distinct_n(texts, 1) == 2 / 5
    assert distinct_n(texts, 2) == 2 / 3  # ab, ba, ab
    assert distinct_n(texts, 4) == 0.0 and distinct_share(['x', 'y', 'x', 'x']) == 0.5


def test_a_calibrated_judge_has_no_calibration_error_and_an_overconfident_one_is_cooled():
    rng = np.random.default_rng(0)
    margins = rng.normal(size=40_000) * 2
    # Margins of pairs in the order that a fair coin of probability sigma(margin) says.
    flips = rng.random(len(margins)) < 1 / (1 + np.exp(-margins))
    held = np.where(flips, margins, -margins)
    assert reliability(held).error() < 0.01
    assert fit_temperature(held) == pytest.approx(1.0, abs=0.03)
    assert fit_temperature(3 * held) == pytest.approx(3.0, abs=0.1)
    assert reliability(3 * held).error() > 0.08
    found = calibration(3 * held)
    assert found['ece_fitted'] < 0.01 < found['ece'] and found['nll_fitted'] < found['nll']


def test_calibration_by_hand():
    # Confidences sigma(0), sigma(1), sigma(1), sigma(-1 turned): half, right, right, wrong.
    curve = reliability(np.asarray([0.0, 1.0, 1.0, -1.0]), bins=10)
    p = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(curve.confidence, [0.5, p])
    np.testing.assert_allclose(curve.accuracy, [0.5, 2 / 3])
    assert curve.error() == pytest.approx(0.75 * (p - 2 / 3))
    assert preference_nll([0.0]) == pytest.approx(np.log(2))
    # A judge that is never wrong has no finite temperature.
    assert fit_temperature([1.0, 2.0]) == pytest.approx(0.02) and fit_temperature([-1.0]) == pytest.approx(50)
    assert fit_temperature([0.0]) == 1.0


def test_a_win_rate_that_length_alone_makes_is_a_half_at_equal_length():
    rng = np.random.default_rng(0)
    theirs = np.full(3000, 100.0)
    ours = theirs + rng.normal(60, 60, size=3000)
    # The judge goes by length, in the form of the fit.
    d = ours - theirs
    wins = (rng.random(3000) < 1 / (1 + np.exp(-2 * np.tanh(d / d.std())))).astype(float)
    rate, low, high = length_controlled_win_rate(wins, ours, theirs)
    assert wins.mean() > 0.7 and low < 0.5 < high and rate == pytest.approx(0.5, abs=0.05)
    # Where lengths are equal nothing is controlled for, but for the pull of the penalty to a half.
    rate, low, high = length_controlled_win_rate(wins, theirs, theirs)
    assert rate == pytest.approx(wins.mean(), abs=0.01) and low < rate < high
    # One that always wins stays finite.
    assert 0.9 < length_controlled_win_rate(np.ones(50), ours[:50], theirs[:50])[0] < 1


def test_verdicts_in_both_orders():
    # Ours is better; the first always wins; a tie; theirs is better.
    both = BothOrders(np.asarray([1.0, 1.0, 0.5, 0.0]), np.asarray([0.0, 1.0, 0.5, 1.0]))
    assert both.wins().tolist() == [1.0, 0.5, 0.5, 0.0]
    assert both.position_bias() == pytest.approx(0.125) and both.consistency() == 0.75
    assert outcome_shares(both.wins()) == (0.25, 0.5, 0.25)


def test_intervals():
    mean, low, high = seed_interval([1.0, 2.0, 3.0])
    # t_{0.975, 2} = 4.3027, s = 1.
    assert mean == 2 and high - mean == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4) and mean - low == high - mean
    assert np.isnan(seed_interval([1.0])[1])
    values = np.random.default_rng(0).normal(size=2000)
    mean, low, high = mean_interval(values)
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(2000), rel=0.1) and low < mean < high


def test_accuracy_by_subset():
    rows = subset_accuracies([1.0, -1.0, 2.0, 0.0], ['chat', 'chat', 'maths', 'maths'])
    assert [(r['subset'], r['pairs'], r['accuracy']) for r in rows] == [
        ('chat', 2, 0.5),
        ('maths', 2, 0.75),
        ('all', 4, 0.625),
        ('mean of subsets', 4, 0.625),
    ]
    assert all(r['low'] < r['accuracy'] < r['high'] for r in rows[:3])
    assert [r['subset'] for r in subset_accuracies([1.0], ['all'])] == ['all']


def test_length_bias_by_hand():
    # Longer right, longer wrong, shorter right, equal (does not count).
    found = length_bias([1.0, -1.0, 1.0, 1.0], [5, 6, 2, 3], [1, 2, 4, 3])
    assert found['prefers_longer'] == pytest.approx(1 / 3) and found['chosen_is_longer'] == pytest.approx(2 / 3)
    assert found['accuracy_longer'] == 0.5 and found['accuracy_shorter'] == 1.0
    assert length_bias([1.0], [3], [3]) == {}
