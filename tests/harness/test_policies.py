"""Policies of several seeds as one record."""

import pytest

from rlax_ft.harness.policies import over_seeds


def test_seeds_are_one_record_with_intervals_over_them():
    """t_{0.975, 2} = 4.3027: of 1, 2, 3 the mean is 2 and half the interval 4.3027 / sqrt(3)."""
    seeds = [
        dict(name='ppo', gold=gold, gold_low=0, gold_high=9, kl=1.0, kl_low=0, kl_high=9, length=8 * gold)
        | dict(win_rate=rate, win_rate_low=rate, win_rate_high=rate)
        for gold, rate in ((1.0, 0.9), (2.0, 0.99), (3.0, 0.6))
    ]
    found = over_seeds(seeds)
    assert (found['gold'], found['gold_low'], found['gold_high']) == pytest.approx((2.0, -0.4841, 4.4841), abs=1e-4)
    assert (found['kl'], found['kl_low'], found['kl_high']) == (1.0, 1.0, 1.0)
    assert found['length'] == 16.0 and 'length_low' not in found
    assert found['win_rate'] == pytest.approx(0.83) and found['win_rate_high'] == 1.0  # no rate is above one
    assert found['seeds'] == [[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]]
    assert over_seeds(seeds[:1]) is seeds[0]
