"""Advantages by brute force: the double sum, termination and truncation, holes, groups, V-trace's definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_ft.ops import returns

seeds = st.integers(0, 2**16)


def episodes(seed, t=7, n=3):
    """Rewards, values and ends: some terminated, some truncated."""
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.normal(size=(3, t, n))
    terminated = rng.random((t, n)) < 0.2
    truncated = ~terminated & (rng.random((t, n)) < 0.2)
    discounts = 0.9 * ~terminated
    traces = (~(terminated | truncated)).astype(float)
    return rewards, values, next_values, discounts, traces


@settings(max_examples=20, deadline=None)
@given(seed=seeds, lam=st.sampled_from([0.0, 0.7, 1.0]))
def test_gae_is_the_double_sum(seed, lam):
    rewards, values, next_values, discounts, traces = episodes(seed)
    deltas = rewards + discounts * next_values - values
    expected = np.zeros_like(rewards)
    for t in range(len(rewards)):
        for later in range(t, len(rewards)):
            expected[t] += np.prod(discounts[t:later] * lam * traces[t:later], axis=0) * deltas[later]
    with jax.enable_x64(True):
        advantages, targets = returns.gae(rewards, values, next_values, discounts, traces, lam=lam)
    np.testing.assert_allclose(advantages, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(targets, expected + values, rtol=1e-9, atol=1e-12)


def test_termination_forgets_and_truncation_bootstraps(x64):
    rewards, values = np.array([[1.0], [1.0]]), np.array([[0.5], [0.5]])
    next_values = np.array([[10.0], [20.0]])
    ends = {'terminated': (0.0, 0.0), 'truncated': (0.9, 0.0)}
    for kind, (discount, trace) in ends.items():
        advantages, _ = returns.gae(
            rewards, values, next_values, np.array([[discount], [0.9]]), np.array([[trace], [1.0]]), lam=1.0
        )
        first = 1.0 - 0.5 if kind == 'terminated' else 1.0 + 0.9 * 10.0 - 0.5
        np.testing.assert_allclose(advantages[:, 0], [first, 1.0 + 0.9 * 20.0 - 0.5], rtol=1e-12)


def test_what_follows_a_termination_may_be_anything():
    rewards, values, next_values, discounts, traces = episodes(0)
    next_values = np.where(discounts == 0, np.nan, next_values)
    for advantages in (
        returns.gae(rewards, values, next_values, discounts, traces, lam=0.9)[0],
        returns.vtrace(rewards, values, next_values, discounts, traces, 0 * rewards)[0],
    ):
        assert np.all(np.isfinite(advantages))


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_token_gae_reads_each_row_as_though_masked_tokens_were_not_there(seed):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, 4, 6))
    mask = rng.random((4, 6)) < 0.6
    poisoned = [np.where(mask, x, np.nan) for x in (rewards, values)]
    with jax.enable_x64(True):
        advantages, targets = returns.token_gae(*poisoned, mask, gamma=0.9, lam=0.8)
    for row in range(4):
        kept = np.flatnonzero(mask[row])
        r, v = rewards[row, kept], values[row, kept]
        deltas = r + 0.9 * np.append(v[1:], 0.0)[: len(v)] - v
        expected = [sum((0.9 * 0.8) ** (u - t) * deltas[u] for u in range(t, len(r))) for t in range(len(r))]
        np.testing.assert_allclose(advantages[row, kept], expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(targets[row, kept], expected + v, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(advantages[~mask], 0.0)
    np.testing.assert_array_equal(targets[~mask], 0.0)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, lam=st.sampled_from([0.6, 1.0]))
def test_vtrace_is_its_definition(seed, lam):
    rewards, values, next_values, discounts, traces = episodes(seed)
    # As in one stream of states: what follows t is t + 1, except where an episode ends.
    next_values[:-1] = np.where(traces[:-1] == 1, values[1:], next_values[:-1])
    log_rhos = np.random.default_rng(seed).normal(size=rewards.shape)
    rho = np.exp(log_rhos)
    deltas = np.minimum(1.1, rho) * (rewards + discounts * next_values - values)
    cs = lam * np.minimum(0.9, rho)
    targets = values.copy()
    for s in range(len(rewards)):
        for t in range(s, len(rewards)):
            targets[s] += np.prod(discounts[s:t] * traces[s:t] * cs[s:t], axis=0) * deltas[t]
    following = next_values.copy()
    following[:-1] = np.where(traces[:-1] == 1, targets[1:], next_values[:-1])
    with jax.enable_x64(True):
        advantages, ours = returns.vtrace(
            rewards,
            values,
            next_values,
            discounts,
            traces,
            log_rhos,
            lam=lam,
            clip_rho=1.1,
            clip_c=0.9,
            clip_pg_rho=1.3,
        )
    np.testing.assert_allclose(ours, targets, rtol=1e-9, atol=1e-12)
    expected = np.minimum(1.3, rho) * (rewards + discounts * following - values)
    np.testing.assert_allclose(advantages, expected, rtol=1e-9, atol=1e-12)


def test_vtrace_on_policy_has_the_targets_of_gae(x64):
    rewards, values, next_values, discounts, traces = episodes(3)
    _, targets = returns.vtrace(rewards, values, next_values, discounts, traces, 0 * rewards, lam=0.8)
    np.testing.assert_allclose(
        targets, returns.gae(rewards, values, next_values, discounts, traces, lam=0.8)[1], rtol=1e-12
    )
    wild = returns.vtrace(rewards, values, next_values, discounts, traces, 0 * rewards + 1e4)
    assert np.all(np.isfinite(wild[0])) and np.all(np.isfinite(wild[1]))


def test_group_advantages_by_hand(x64):
    rewards = np.array([1.0, 3.0, 2.0, 2.0])
    expected = {
        ('mean', 'group'): [-1 / (np.sqrt(2) + 1e-4), 1 / (np.sqrt(2) + 1e-4), 0.0, 0.0],
        ('mean', 'none'): [-1.0, 1.0, 0.0, 0.0],
        ('leave_one_out', 'none'): [-2.0, 2.0, 0.0, 0.0],
        ('none', 'none'): rewards,
        ('mean', 'batch'): np.array([-1.0, 1.0, 0.0, 0.0]) / (np.std(rewards, ddof=1) + 1e-4),
    }
    for (baseline, scale), numbers in expected.items():
        ours = returns.group_advantages(rewards, 2, baseline=baseline, scale=scale, eps=1e-4)
        np.testing.assert_allclose(ours, numbers, rtol=1e-12, atol=1e-12)
    three = returns.group_advantages(np.array([1.0, 2.0, 6.0]), 3, baseline='leave_one_out', scale='none')
    np.testing.assert_allclose(three, [1 - 4.0, 2 - 3.5, 6 - 1.5], rtol=1e-12)


def test_a_group_of_one_is_finite():
    rewards = np.array([0.3, -2.0])
    np.testing.assert_array_equal(returns.group_advantages(rewards, 1), 0.0)
    alone = returns.group_advantages(rewards, 1, baseline='leave_one_out', scale='none')
    np.testing.assert_allclose(alone, rewards, rtol=1e-6)


def test_integer_rewards_are_not_truncated():
    """A reward array that inherits an integer dtype, so that 0.7 became 0, was a fault."""
    whole = jnp.array([0, 1, 1, 0], jnp.int32)
    ours = returns.group_advantages(whole, 4, scale='none')
    np.testing.assert_allclose(ours, [-0.5, 0.5, 0.5, -0.5])
    advantages, _ = returns.gae(whole[:, None], *(jnp.full((4, 1), 0.7),) * 4, lam=0.5)
    assert advantages.dtype == jnp.float32
    tokens = returns.token_rewards(jnp.array([1], jnp.int32), jnp.ones((1, 2)), jnp.full((1, 2), 0.7), kl_coef=1.0)
    np.testing.assert_allclose(tokens, [[-0.7, 0.3]], rtol=1e-6)


def test_the_score_goes_on_the_last_real_token():
    """A score added at the first PAD was a fault."""
    mask = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]])
    rewards = returns.token_rewards(np.array([5.0, 7.0, 9.0]), mask)
    np.testing.assert_array_equal(rewards, [[0, 5, 0, 0], [0, 0, 0, 7], [0, 0, 0, 0]])
    penalty = np.where(mask == 1, 0.5, np.nan)
    with_kl = returns.token_rewards(np.array([5.0, 7.0, 9.0]), mask, penalty, kl_coef=0.2)
    np.testing.assert_allclose(with_kl, rewards - 0.1 * mask, rtol=1e-6)


def test_reinforce_pp_by_hand(x64):
    rewards, mask = np.array([[0.0, 9.0, 2.0], [1.0, 0.0, 0.0]]), np.array([[1, 0, 1], [1, 1, 0]])
    raw = np.array([0.5 * 2.0, 2.0, 1.0, 0.0])
    np.testing.assert_allclose(
        returns.discounted_returns(rewards, mask, gamma=0.5), [[1.0, 0.0, 2.0], [1.0, 0.0, 0.0]], rtol=1e-12
    )
    white = (raw - raw.mean()) / np.sqrt(raw.var(ddof=1) + 1e-8)
    ours = returns.reinforce_pp_advantages(rewards, mask, gamma=0.5)
    np.testing.assert_allclose(ours, [[white[0], 0, white[1]], [white[2], white[3], 0]], rtol=1e-12)
    raw = np.array([-1.0, -1.0, 1.0, 1.0])  # two tokens in each row
    baseline = returns.reinforce_pp_baseline_advantages(np.array([1.0, 3.0]), mask, 2)
    white = raw / np.sqrt(raw.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(baseline, [[white[0], 0, white[1]], [white[2], white[3], 0]], rtol=1e-12)


def test_overlong_shaping_by_hand():
    penalty = returns.overlong_penalty(np.array([10, 80, 90, 100, 130]), max_len=100, cache=20)
    np.testing.assert_allclose(penalty, [0.0, 0.0, -0.5, -1.0, -1.0], rtol=1e-6)


def test_wrong_arguments_are_named():
    good = jnp.zeros((3, 2))
    with pytest.raises(AssertionError, match='discounts'):
        returns.gae(good, good, good, good[:2], good, lam=0.9)
    with pytest.raises(AssertionError, match='mask'):
        returns.token_gae(good, good, good[:2], gamma=1.0, lam=1.0)
    with pytest.raises(AssertionError, match='rewards'):
        returns.group_advantages(good, 2)
    for settings_ in ({'baseline': 'median'}, {'scale': 'token'}):
        with pytest.raises(ValueError, match=r'median|token'):
            returns.group_advantages(good[:, 0], 3, **settings_)
    with pytest.raises(ValueError, match='group_size'):
        returns.group_advantages(good[:, 0], 2)
