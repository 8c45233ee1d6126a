"""Curves over betas and seeds, the optimum from mixed samples, and what is said of methods at equal KL."""

import itertools

import numpy as np
import pytest

from rlax_ft.evaluate.comparison import (
    at_equal_kl,
    best_of_n_points,
    comparison_table,
    equal_kl_table,
    method_curves,
    overoptimisation_panels,
    peak_table,
)
from rlax_ft.evaluate.frontier import (
    best_of_n,
    effective_samples,
    gain_share,
    mixture_log_ratio,
    optimum,
    optimum_curve,
    peak,
    reward_at,
)
from rlax_ft.evaluate.plots import plot_overoptimisation


def test_best_of_n_is_the_mean_over_all_choices():
    rng = np.random.default_rng(0)
    gold, scores = rng.normal(size=(2, 6)), rng.normal(size=(2, 6))
    for n in (1, 3, 6):
        choices = list(itertools.combinations(range(6), n))
        chosen = [row[max(c, key=s.__getitem__)] for row, s in zip(gold, scores) for c in choices]
        assert best_of_n(gold, scores, n) == pytest.approx(np.mean(chosen))


def test_samples_of_a_second_policy_carry_the_optimum_further():
    """On an enumerable distribution, where pi* is computed exactly."""
    rng = np.random.default_rng(0)
    reward = rng.normal(size=400) * 1.5
    reference = rng.dirichlet(np.ones(400))
    other = reference * np.exp(reward / 0.8)
    other /= other.sum()
    beta = 0.5
    best = reference * np.exp(reward / beta)
    best /= best.sum()
    exact = (best @ reward, best @ np.log(best / reference))
    draws = [rng.choice(400, size=(1, 40_000), p=p) for p in (reference, other)]
    mixed = np.concatenate(draws, axis=1)
    ratio = mixture_log_ratio([np.log(reference)[mixed], np.log(other)[mixed]], [40_000, 40_000])
    assert optimum(reward[mixed], beta, ratio) == pytest.approx(exact, rel=0.03)
    alone = effective_samples(reward[draws[0]], beta)
    assert effective_samples(reward[mixed], beta, ratio) > 3 * alone
    # Of one policy alone the ratio is 0, and the curve begins at the reference.
    np.testing.assert_allclose(mixture_log_ratio([np.log(reference)[draws[0]]], [7]), 0.0, atol=1e-12)
    curve = optimum_curve(reward[mixed], ratio)
    assert curve[0] == (0.0, pytest.approx(reference @ reward, abs=0.06)) and curve[-1][0] > exact[1]


def test_shares_of_the_optimums_gain():
    curve = [(0.0, 1.0), (1.0, 3.0), (3.0, 4.0)]
    # Linear in sqrt(KL): 1.5^2 = 2.25 lies half way between 1 and 2^2, 0.25 between 0 and 1.
    assert reward_at([(1.0, 3.0), (4.0, 4.0)], 2.25) == pytest.approx(3.5)
    assert reward_at(curve, 3.1) is None and reward_at([], 1.0) is None
    assert gain_share((0.25, 1.5), curve) == 0.5 and gain_share((4.0, 9.0), curve) is None
    assert gain_share((0.0, 1.0), curve) is None
    assert peak([(0.0, 1.0), (1.0, 3.0), (2.0, 3.0)]) == (1.0, 3.0)


def record(method, beta, seed, kl, gold, size=64, **more):
    given = {'score': gold + 1, 'win_rate': 0.5, 'length': 8.0, 'samples': 100, 'seconds': 2.0, 'trace': []}
    return {'method': method, 'beta': beta, 'seed': seed, 'size': size, 'kl': kl, 'gold': gold, **given, **more}


RECORDS = [
    record('PPO', 0.4, 0, 1.0, 2.0),
    record('PPO', 0.1, 0, 2.0, 3.0),
    record('PPO', 0.4, 1, 1.0, 1.0),
    record('PPO', 0.1, 1, 3.0, 3.0),
    record('DPO', 0.4, 0, 0.5, 1.0),
]
OPTIMUM = [(0.0, 0.0), (1.0, 2.0), (2.0, 3.0)]


def test_curves_and_bands_over_seeds():
    curve = method_curves(RECORDS)['PPO', 64]
    assert curve.label == 'PPO' and curve.betas == [(0.4, (1.0, 1.5)), (0.1, (2.5, 3.0))]
    kl, mean, low, high = curve.band((0.0, 0.0), points=3)
    # As far as both seeds reach; of the second seed 2 lies (sqrt 2 - 1) / (sqrt 3 - 1) of the way from 1 to 3.
    inner = 1 + 2 * (2**0.5 - 1) / (3**0.5 - 1)
    assert kl.tolist() == [0, 1, 2] and mean.tolist() == pytest.approx([0, 1.5, (3 + inner) / 2])
    assert low.tolist() == pytest.approx([0, 1, inner]) and high.tolist() == pytest.approx([0, 2, 3])
    assert method_curves(RECORDS, 'score')['DPO', 64].seeds == [[(0.5, 2.0)]]


def test_methods_at_equal_kl():
    found = at_equal_kl(RECORDS, 1.0, (0.0, 0.0), OPTIMUM)
    (mean, low, high), share = found['PPO', 64]
    assert mean == 1.5 and share == 0.75 and high - mean == pytest.approx(12.706 * 0.5, rel=1e-3) and low < mean
    assert found['DPO', 64] == (None, None)
    table = equal_kl_table(RECORDS, [1.0], (0.0, 0.0), OPTIMUM, {'best of n': [(0.0, 0.0), (4.0, 2.0)]})
    assert '| DPO | not reached |  |' in table and '| best of n | 1.00 | 50% |' in table
    assert '| optimum π\\* | 2.00 | 100% |' in table
    rows = comparison_table(RECORDS, OPTIMUM).splitlines()
    assert len(rows) == 2 + 3 and '| DPO | 0.4 | 1 | 0.50 | 1.00 | 2.00 | 71% | 50.0% | 8.0 | 100 | 2 |' in rows


def test_overoptimisation(tmp_path):
    # Gold falls after a KL of 1 while the score rises.
    runs = [
        record('PPO', b, s, kl, g, score=kl, reward_model='rm') for s in (0, 1) for b, kl, g in ((1, 1, 2), (0.1, 3, 1))
    ]
    best = {('rm', 64): [[[1, 0.0, 0.0, 0.0], [4, 1.0, 1.0 + s, 2.0]] for s in (0, 1)]}
    assert best_of_n_points(best) == {'rm': {1: (0.0, 0.0), 4: (1.0, 1.5)}}
    panels = overoptimisation_panels(runs, best)
    golds, scores = panels['PPO']['64 comparisons']
    assert golds[0] == [(0.0, 0.0), (1.0, 2.0), (3.0, 1.0)] and scores[1] == [(0.0, 0.0), (1.0, 1.0), (3.0, 3.0)]
    assert panels['best of n']['64 comparisons'][0][1] == [(0.0, 0.0), (1.0, 2.0)]
    table = peak_table({'PPO': golds})
    assert '| PPO | 2 | 1.00 (1.00 to 1.00) | 2.00 (2.00 to 2.00) | 1.00 (1.00 to 1.00) | 2 of 2 seeds |' in table
    # A run of one beta is followed along its training.
    trace = [{'kl': 0.5, 'gold': 1.0, 'score': 0.2}]
    followed = [record('PPO', 1, 0, 1.0, 2.0, reward_model='rm', trace=trace)]
    along = overoptimisation_panels(followed, best)
    assert along['PPO']['64 comparisons'][0] == [[(0.0, 0.0), (0.5, 1.0), (1.0, 2.0)]]
    assert method_curves(followed)['PPO', 64].seeds == [[(0.5, 1.0), (1.0, 2.0)]]
    plot_overoptimisation(tmp_path / 'o.png', title='t', panels=panels)
    assert (tmp_path / 'o.png').read_bytes()[:4] == b'\x89PNG'
