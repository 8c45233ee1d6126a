"""Environments, adapters, wrappers and statistics."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.envs.adapters import find_environment, from_mjx
from rlax_ft.envs.environment import Discrete, MultiDiscrete
from rlax_ft.envs.gymnasium import GymnasiumBatch, GymnasiumMaker
from rlax_ft.envs.statistics import discounted_sums, init_stats, normalize, update_stats
from rlax_ft.envs.wrappers import continue_from, episode_statistics, select_observation, time_limit
from rlax_ft.errors import InputError

DOWNLOADS = {'MNISTBandit-bsuite'}  # Fetches its images from the network.


@pytest.mark.parametrize('name', sorted(set(gymnax.registered_envs) - DOWNLOADS))
def test_every_gymnax_environment_keeps_its_types(name):
    env = find_environment(name)
    key = jax.random.key(0)
    state, observation = env.reset(key)
    assert observation.shape == env.observation.shape and observation.dtype == jnp.float32
    action = jnp.zeros((), jnp.int32) if isinstance(env.action, Discrete) else jnp.zeros(env.action.shape)
    after, answer = jax.eval_shape(env.step, key, state, action)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), after, state)
    assert all(jax.tree.leaves(same))
    assert answer.observation.shape == env.observation.shape
    assert (answer.reward.dtype, answer.terminated.dtype, answer.truncated.dtype) == (jnp.float32, bool, bool)


def test_gymnax_time_limits_truncate_and_do_not_terminate():
    env = find_environment('Pendulum-v1')
    state, _ = env.reset(jax.random.key(0))

    def step(state, _):
        state, answer = env.step(jax.random.key(1), state, jnp.zeros(1))
        return state, (answer.terminated, answer.truncated)

    _, (terminated, truncated) = jax.lax.scan(step, state, None, 200)
    assert not terminated.any()
    np.testing.assert_array_equal(np.flatnonzero(truncated), [199])


def counter():
    from rlax_ft.envs.environment import Box, Environment, Step

    def step(key, count, action):
        no = jnp.zeros((), bool)
        return count + 1, Step(jnp.asarray(count + 1, jnp.float32)[None], jnp.asarray(2.0), count + 1 == 5, no)

    return Environment('counter', lambda k: (jnp.zeros((), jnp.int32), jnp.zeros(1)), step, Box.of((1,)), Discrete(2))


@pytest.mark.parametrize(('limit', 'ends'), [(3, (False, True)), (5, (True, False)), (9, (True, False))])
def test_time_limit_is_a_truncation_unless_the_episode_ends_there_anyway(limit, ends):
    env = episode_statistics(time_limit(counter(), limit))
    state, _ = env.reset(jax.random.key(0))
    for _ in range(min(limit, 5)):
        state, answer = env.step(jax.random.key(0), state, 0)
    assert (bool(answer.terminated), bool(answer.truncated)) == ends
    assert (float(state.episode_return), int(state.episode_length)) == (2.0 * min(limit, 5), min(limit, 5))


def test_a_time_limit_below_one_is_refused():
    with pytest.raises(InputError, match='at least 1'):
        time_limit(counter(), 0)


def test_continue_from_restarts_only_what_is_done():
    fresh, old = {'a': jnp.ones((3, 2)), 'b': jnp.ones(3)}, {'a': jnp.zeros((3, 2)), 'b': jnp.zeros(3)}
    merged = continue_from(jnp.asarray([True, False, True]), fresh, old)
    np.testing.assert_array_equal(merged['a'], [[1, 1], [0, 0], [1, 1]])
    np.testing.assert_array_equal(merged['b'], [1, 0, 1])


def test_select_observation():
    env = select_observation(find_environment('CartPole-v1'), (0, 2))
    state, observation = env.reset(jax.random.key(0))
    np.testing.assert_array_equal(observation, [state.x, state.theta])
    state, answer = env.step(jax.random.key(0), state, 1)
    np.testing.assert_array_equal(answer.observation, [state.x, state.theta])
    assert env.observation.shape == (2,)


def test_running_statistics_are_those_of_everything_seen():
    data = np.random.default_rng(0).normal(3.0, 2.0, (4, 50, 6, 2)).astype(np.float32)
    stats = init_stats((2,))
    for part in data:
        stats = update_stats(stats, jnp.asarray(part))
    flat = data.reshape(-1, 2)
    np.testing.assert_allclose(stats.mean, flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats.var, flat.var(0), rtol=1e-4)
    assert float(stats.count) == len(flat)
    white = normalize(stats, jnp.asarray(flat))
    np.testing.assert_allclose(white.std(0), 1.0, rtol=1e-3)
    assert float(normalize(stats, jnp.asarray([1e9, 1e9])).max()) == 10.0
    assert normalize(None, 5) == 5


def test_statistics_over_devices_are_those_of_one():
    data = jnp.asarray(np.random.default_rng(1).normal(size=(8, 5, 3)), jnp.float32)
    split = jax.pmap(lambda x: update_stats(init_stats((3,)), x, axis_name='data'), axis_name='data')(data)
    whole = update_stats(init_stats((3,)), data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-5), split, whole)


def test_discounted_sums_start_anew_after_an_end():
    rewards = jnp.ones((5, 1))
    done = jnp.asarray([False, False, True, False, False])[:, None]
    carry, sums = discounted_sums(jnp.zeros(1), rewards, done, gamma=0.5)
    np.testing.assert_allclose(sums[:, 0], [1.0, 1.5, 1.75, 1.0, 1.5])
    np.testing.assert_allclose(carry, 0.75)


def test_brax_protocol():
    class Falls:
        def reset(self, key):
            from types import SimpleNamespace

            return SimpleNamespace(obs=jnp.zeros(2), reward=jnp.zeros(()), done=jnp.zeros(()))

        def step(self, state, action):
            from types import SimpleNamespace

            return SimpleNamespace(obs=state.obs + action[0], reward=action[0], done=(state.obs[0] > 1).astype(float))

    env = from_mjx('falls', Falls(), 2, 1, 3)
    state, _ = env.reset(jax.random.key(0))
    for _ in range(3):
        state, answer = env.step(jax.random.key(0), state, jnp.asarray([0.1]))
    assert bool(answer.truncated) and not bool(answer.terminated)
    state, _ = env.reset(jax.random.key(0))
    for _ in range(2):
        state, answer = env.step(jax.random.key(0), state, jnp.asarray([2.0]))
    assert bool(answer.terminated) and not bool(answer.truncated)


def test_gymnasium_keeps_final_observations_and_restarts():
    env = GymnasiumBatch(find_environment('gymnasium:CartPole-v1'), 3)
    observation = env.reset([0, 1, 2])
    finals, lengths = 0, np.zeros(3, int)
    for _ in range(60):
        answer = env.step(np.ones(3, int))
        lengths += 1
        done = answer.step.terminated | answer.step.truncated
        np.testing.assert_array_equal(answer.episode_length, lengths)
        np.testing.assert_array_equal(answer.episode_return, lengths)
        lengths[done] = 0
        # A fallen pole is far from upright; the restarted one is not.
        assert (np.abs(answer.step.observation[done, 2]) > 0.2).all()
        assert (np.abs(answer.observation[done]) <= 0.05).all()
        np.testing.assert_array_equal(answer.observation[~done], answer.step.observation[~done])
        finals += done.sum()
    assert finals >= 9 and observation.shape == (3, 4)
    env.close()


def test_gymnasium_by_name_and_nearest_names():
    assert isinstance(find_environment('LunarLander-v3'), GymnasiumMaker)
    assert isinstance(find_environment('gymnasium:CartPole-v1'), GymnasiumMaker)
    with pytest.raises(InputError, match=r'near:.*LunarLander-v3'):
        find_environment('LunarLnder-v3')
    with pytest.raises(InputError, match='Gymnasium cannot make it'):
        find_environment('gymnasium:Nothing-v0').make(None)


def test_discrete_observations_are_one_hot():
    env = find_environment('FrozenLake-misc')
    _, observation = env.reset(jax.random.key(0))
    assert sorted(observation.tolist())[-2:] == [0.0, 1.0] and MultiDiscrete((2,)).sizes == (2,)
