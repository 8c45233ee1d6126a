"""Statistics of learning curves against numbers worked out by hand, and the figure."""

import numpy as np

from rlax_ft.envs.curves import Curve, bootstrap_interval, interquartile_mean, plot_learning_curve, smoothed


def test_interquartile_mean():
    assert interquartile_mean([0.0, 1.0, 5.0, 100.0]) == 3.0
    assert interquartile_mean([7.0]) == 7.0
    assert interquartile_mean([1.0, 3.0]) == 2.0
    # Of three, a quarter of the ends' weight is left: (1/12 * 0 + 1/3 * 6 + 1/12 * 60) / (1/2).
    np.testing.assert_allclose(interquartile_mean([60.0, 0.0, 6.0]), (60 / 12 + 2) * 2)
    np.testing.assert_allclose(interquartile_mean([[0, 1, 5, 100], [2, 2, 2, 2]]), [3, 2])


def test_bootstrap_interval_is_that_of_the_drawn_seeds():
    low, high = bootstrap_interval(np.asarray([[1.0, 1.0, 1.0], [0.0, 10.0, 20.0]]))
    assert low[0] == high[0] == 1.0
    # 27 draws of three; all lowest or all highest has 1/27 each, beyond 2.5 %: the ends of the interval.
    assert low[1] == 0.0 and high[1] == 20.0
    # The spread of a mean of the middle half of normals, about 1.2 / sqrt(n) either side of 0 times 1.96.
    x = np.random.default_rng(1).standard_normal(400)
    low, high = bootstrap_interval(x)
    assert 0.8 < (high - low) / (2 * 1.96 * 1.1 / 20) < 1.25 and low < interquartile_mean(x) < high


def test_smoothing_leaves_gaps_out():
    x = np.asarray([[np.nan, 1.0], [2.0, 3.0], [np.nan, 5.0], [6.0, 7.0]])
    np.testing.assert_allclose(smoothed(x, 2), [[np.nan, 1], [2, 2], [2, 4], [6, 6]])
    np.testing.assert_allclose(smoothed(x, 9)[-1], [4, 4])


def test_the_figure_is_written_for_one_seed_and_for_a_grid(tmp_path):
    steps = np.arange(1, 41) * 1000
    one = Curve('', steps, np.full((40, 1), np.nan), steps[-1:], np.ones((1, 1)))
    plot_learning_curve(tmp_path / 'one.png', [one], title='X', evaluated='greedy')
    many = [Curve(f'learning rate {i}', steps, np.ones((40, 3)) * i, steps[::8], np.ones((5, 3))) for i in range(8)]
    plot_learning_curve(tmp_path / 'many.png', many, title='X', evaluated='greedy')
    assert (tmp_path / 'many.png').stat().st_size > (tmp_path / 'one.png').stat().st_size > 10_000
