"""Calibration by hand, temperatures that are known, and the area under the curve by brute force."""

import numpy as np
import pytest

from rlax_ft.evaluate.calibration import calibrated, calibration, fit_temperature, reliability
from rlax_ft.evaluate.plots import plot_reliability
from rlax_ft.evaluate.win_rate import separation


def logit(p):
    return np.log(p / (1 - p))


def test_reliability_by_hand():
    # Two pairs at 0.62, one of them wrong, and two at 0.97, both right; a sign says who is predicted.
    margins = logit(np.array([0.62, 0.62, 0.97, 0.03]))
    found = reliability(margins, np.array([1.0, 0.0, 1.0, 0.0]))
    assert found.count.tolist() == [0, 0, 2, 0, 0, 0, 0, 0, 0, 2]
    np.testing.assert_allclose(found.accuracy[[2, 9]], [0.5, 1.0])
    np.testing.assert_allclose(found.error, 0.5 * (0.62 - 0.5) + 0.5 * (1.0 - 0.97), rtol=1e-9)


def test_a_tie_is_half_right_and_at_one_half():
    found = reliability(np.zeros(3))
    assert found.count[0] == 3 and found.accuracy[0] == found.confidence[0] == 0.5 and found.error == 0


def judged(n, temperature, seed=0):
    """Margins that are `temperature` times too large for labels drawn from the right ones."""
    rng = np.random.default_rng(seed)
    right = 1.5 * rng.standard_normal(n)
    return temperature * right, (rng.random(n) < 1 / (1 + np.exp(-right))).astype(float)


@pytest.mark.parametrize('temperature', [0.4, 3.0])
def test_the_temperature_that_was_put_in_is_found(temperature):
    margins, labels = judged(20_000, temperature)
    assert fit_temperature(margins, labels) == pytest.approx(temperature, rel=0.05)
    numbers = calibration(margins, labels)
    assert numbers['calibration_error'] > 0.05 > 0.02 > numbers['calibration_error_after']


def test_soft_labels_are_fitted_exactly_and_certainty_stays_within_bounds():
    margins = np.linspace(-3, 3, 50)
    assert fit_temperature(margins, 1 / (1 + np.exp(-margins / 2))) == pytest.approx(2.0, rel=1e-6)
    assert fit_temperature(np.ones(4)) == pytest.approx(0.01)


def test_no_pair_is_scaled_by_a_fit_that_saw_it():
    margins, labels = judged(200, 2.0)
    before, flipped = (
        calibrated(margins, labels),
        calibrated(margins, np.where(np.arange(200) == 7, 1 - labels, labels)),
    )
    assert before[7] == flipped[7] and not np.array_equal(before, flipped)


def test_the_diagram_is_drawn(tmp_path):
    plot_reliability(tmp_path / 'r.png', {'before': reliability(*judged(100, 2.0))})
    assert (tmp_path / 'r.png').read_bytes()[:4] == b'\x89PNG'


def test_separation_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(1)
    scores, good = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[good] for b in scores[~good]]
    share, low, high = separation(scores, good)
    assert share == pytest.approx(np.mean(pairs)) and 0 <= low < share < high <= 1
    resampled = [separation(scores[i], good[i])[0] for i in (rng.integers(0, 40, 40) for _ in range(400))]
    assert (high - low) / 2 / 1.96 == pytest.approx(np.std(resampled), rel=0.25)
    # One pair in order: whatever lies within 1.96 sqrt(s (1 - s)) of 1, so 1 - s = z^2 s.
    assert separation([2.0, 1.0], [True, False]) == pytest.approx((1.0, 1 / (1 + 1.959964**2), 1.0))
    assert separation([1.0, 2.0], [True, False]) == pytest.approx((0.0, 0.0, 1 - 1 / (1 + 1.959964**2)))
