"""Evaluation against closed forms and plain counting."""

import numpy as np
import pytest

from rlax_ft.evaluate.calibration import reliability
from rlax_ft.evaluate.comparison import MethodCurve
from rlax_ft.evaluate.frontier import best_of_n, best_of_n_kl, effective_samples, optimum
from rlax_ft.evaluate.plots import plot_bars, plot_frontier, plot_reliability
from rlax_ft.evaluate.policy import Samples
from rlax_ft.evaluate.report import policy_table, sample_table
from rlax_ft.evaluate.win_rate import accuracy_interval, length_baseline, win_rate
from rlax_ft.harness.evaluator import task_measures
from rlax_ft.tasks import reviews


def test_best_of_n_by_hand():
    gold = np.asarray([[1.0, 2, 3, 4], [8, 7, 6, 5]])
    scores = np.asarray([[4.0, 3, 2, 1], [1, 2, 3, 4]])
    # Of the six pairs of each row 4 (and 8) is the best of three, 3 (7) of two, 2 (6) of one.
    assert best_of_n(gold, gold, 2) == pytest.approx(np.mean([20 / 6, 44 / 6]))
    assert best_of_n(gold, scores, 4) == pytest.approx(np.mean([1, 5]))
    np.testing.assert_allclose(best_of_n_kl([1, 2]), [0, np.log(2) - 0.5])


def test_best_of_n_kl_is_that_of_the_uniform_distribution():
    # The best of n uniform numbers has density n u^(n-1); its KL to the uniform, by a Riemann sum.
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in (2, 5):
        density = n * u ** (n - 1)
        np.testing.assert_allclose((density * np.log(density)).mean(), best_of_n_kl(n), rtol=1e-3)


def test_the_optimum_of_a_normal_reward_is_a_shifted_normal():
    gold = np.random.default_rng(0).normal(size=(4, 50_000))
    # r ~ N(0, 1) under pi_ref: pi* has mean 1 / beta and KL 1 / (2 beta^2).
    reward, kl = optimum(gold, 2.0)
    assert reward == pytest.approx(0.5, abs=0.02) and kl == pytest.approx(0.125, abs=0.01)
    assert effective_samples(gold, 2.0) > effective_samples(gold, 0.5)
    assert effective_samples(np.zeros((2, 10)), 1.0) == pytest.approx(10)


def test_win_rates_count_ties_half_and_intervals_cover():
    rate, low, high = win_rate(np.asarray([1.0, 2, 3, 4]), np.asarray([0.0, 2, 5, 1]))
    assert rate == 0.625 and 0 <= low <= rate <= high <= 1
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        wins = rng.random(60) < 0.7
        _, low, high = win_rate(wins, np.full(60, 0.5), seed=trial, resamples=300)
        covered += low <= 0.7 <= high
    assert covered >= 85


def test_wilson_by_its_published_example():
    # 8 of 10: [0.490, 0.943] (Wilson, 1927, as tabulated).
    p, low, high = accuracy_interval(8, 10)
    assert (p, round(low, 3), round(high, 3)) == (0.8, 0.490, 0.943)


def test_the_length_baseline_learns_its_direction():
    assert length_baseline([1, 1], [5, 6], [2, 9, 4], [3, 1, 4]) == 0.5
    assert length_baseline([5, 6], [1, 1], [2, 9, 4], [1, 1, 4]) == pytest.approx(2.5 / 3)


def test_the_unended_count_as_ungrammatical():
    measures = task_measures(reviews.TASK)
    records, completions = [{'prompt': 'the plot'}] * 3, ['was funny .', 'was funny', 'was dull .']
    asked = (records, completions, [True, True, False], None)
    assert measures['gold'](*asked).tolist() == [1.0, -3.0, -1.0]
    assert measures['ungrammatical'](*asked).tolist() == [False, True, True]


def test_samples_are_summed_up_and_written():
    kl, length = np.asarray([1.0, 0, -1]), np.asarray([4, 3, 3])
    samples = Samples([{'prompt': 'p'}] * 3, ['a', 'b', 'c'], kl, length, {'gold': np.asarray([1.0, 2, 3])})
    assert samples.summary() == {'gold': 2.0, 'kl': 0.0, 'length': pytest.approx(10 / 3)}
    assert samples.rows(np.asarray([2])).completions == ['c']
    first = {'step': 5, 'prompt': 'p', 'completion': 'a', 'gold': 1.0, 'kl': 1.0, 'length': 4.0}
    assert samples.to_records(5)[0] == first


def test_figure_and_tables(tmp_path):
    point = MethodCurve('PPO', [[(2.0, 1.0)]], trace=[(1.0, 0.5), (2.0, 1.0)], box=(1.9, 2.1, 0.9, 1.1))
    seeds = MethodCurve('DPO', [[(0.5, 0.4), (1.0, 0.6)], [(0.6, 0.5), (1.2, 0.6)]], [(0.4, (0.55, 0.45))])
    plot_frontier(
        tmp_path / 'f.png',
        title='Toy task',
        methods=[point, seeds],
        best_of_n={'reward model': {1: (0.0, 0.0), 4: (1.0, 0.8)}},
        optimum=[(0.0, 0.0), (2.0, 2.0)],
        start=(0.0, 0.0),
    )
    plot_bars(tmp_path / 'b.png', {'gold': [('a', 1.0, 0.5, 1.5), ('b', 2.0, None, None)]})
    plot_reliability(tmp_path / 'r.png', {'a': reliability([1.0, -0.5])})
    assert sorted(path.name for path in tmp_path.iterdir()) == ['b.png', 'f.png', 'r.png']
    assert all(path.read_bytes()[:4] == b'\x89PNG' for path in tmp_path.iterdir())
    record = {'gold': 1, 'gold_low': 0.5, 'gold_high': 1.5, 'score': 2, 'kl': 0.5, 'length': 7, 'ungrammatical': 0.01}
    record |= {'win_rate': 0.8, 'win_rate_low': 0.7, 'win_rate_high': 0.9, 'gain_share': 0.6}
    table = policy_table([{'name': 'ppo', **record}, {'name': 'best_of_n', 'n': 16, **record}])
    assert '| PPO | 1.00 (0.50 to 1.50) | 2.00 | 0.50 | 60% | 7.0 | 1.0% | 80.0% (70.0% to 90.0%) |' in table
    assert '| best of n (n = 16) | 1.00' in table
    shown = {'sft': [('the plot', 'was good .', 1.0)], 'ppo': [('the plot', 'was superb .', 2.0)]}
    assert '| the plot | was good . **(+1.00)** | was superb . **(+2.00)** |' in sample_table(shown)
