"""Rewards normalised apart by hand, and the optimal token baseline by loops and by its variance."""

import jax
import numpy as np

from rlax_ft.ops import groups, returns


def test_decoupled_advantages_by_hand(x64):
    a, b = np.array([0.0, 1.0, 1.0, 1.0]), np.array([3.0, 1.0, 0.0, 4.0])
    half = np.sqrt(0.5)
    # (r - mean) / std of each pair: a is (-1, 1), (0, 0) and b is (1, -1), (-1, 1), over sqrt 2.
    total = 2.0 * np.array([-half, half, 0, 0]) + 0.5 * np.array([half, -half, -half, half])
    expected = (total - total.mean()) / total.std(ddof=1)
    ours = groups.decoupled_advantages({'a': a, 'b': b}, {'a': 2.0, 'b': 0.5}, 2, eps=0.0 + 1e-12)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    # Summed before, rewards that cancel leave nothing to learn.
    collapsed = returns.group_advantages(a + np.array([1.0, 0.0, 0.0, 0.0]), 2)
    assert not np.any(np.asarray(collapsed))
    assert np.any(np.asarray(groups.decoupled_advantages({'a': a, 'b': 1 - a * 2}, {'a': 1.0, 'b': 1.0}, 2)))


def test_max_rl_by_hand():
    rewards = np.array([1, 0, 0, 1, 0, 0, 0, 0])
    ours = returns.group_advantages(rewards, 4, scale='mean', eps=0.0 + 1e-9)
    np.testing.assert_allclose(ours, [1, -1, -1, 1, 0, 0, 0, 0], atol=1e-6)


def test_optimal_token_baseline_by_loops(x64):
    rng = np.random.default_rng(0)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]], bool)
    probs = rng.uniform(0.1, 0.9, mask.shape)
    squares = probs**2 + rng.uniform(0, 0.1, mask.shape)
    rewards = rng.normal(size=mask.shape) * mask
    ours = groups.optimal_token_advantages(rewards, np.log(probs), squares, mask, 2)
    expected = np.zeros(mask.shape)
    for group in ((0, 1), (2, 3)):
        for t in range(4):
            alive = [i for i in group if mask[i, t]]
            gains = {i: rewards[i, t:].sum() for i in alive}
            energy = {i: (1 - 2 * probs[i, : t + 1] + squares[i, : t + 1]).sum() for i in alive}
            baseline = sum(gains[i] * energy[i] for i in alive) / sum(energy.values()) if len(alive) > 1 else 0.0
            for i in alive:
                expected[i, t] = gains[i] - baseline
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-9)


def test_the_energy_of_a_token_is_the_squared_norm_of_its_logit_gradient():
    logits = np.array([0.3, -1.2, 0.8, 0.0])
    gradient = jax.grad(lambda x: jax.nn.log_softmax(x)[2])(logits)
    p = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(np.sum(np.square(gradient)), 1 - 2 * p[2] + np.sum(p**2), rtol=1e-5)
