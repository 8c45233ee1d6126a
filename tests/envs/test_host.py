"""Environments on the host: a user's own, their spaces, time limits, streams of random numbers."""

import shutil
import sys
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from rlax_ft.envs.adapters import find_environment, make_environments
from rlax_ft.envs.environment import Discrete, MultiDiscrete
from rlax_ft.envs.gymnasium import GymnasiumBatch
from rlax_ft.envs.spaces import action_of, observation_of
from rlax_ft.errors import InputError
from rlax_ft.harness.env_run import evaluate, first_state
from rlax_ft.harness.env_setup import EnvSettings, agent_for, hyper_of, make_envs, runs_of


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working directory with a user's module in it, which is on no path."""
    shutil.copy(Path(__file__).parent / 'my_gymnasium.py', tmp_path / 'my_env.py')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if p not in ('', str(tmp_path))])
    monkeypatch.delitem(sys.modules, 'my_env', raising=False)
    gymnasium.registry.pop('MyBox-v0', None)


def test_observations_become_one_array():
    image = spaces.Box(0, 255, (4, 4, 3), np.uint8)
    box, encode = observation_of(image, 'x')
    assert box.shape == (4, 4, 3) and set(box.low) == {0.0} and set(box.high) == {1.0}
    seen = encode(np.full((4, 4, 3), 51, np.uint8))
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen, 0.2)

    space = spaces.Dict(
        {
            'bits': spaces.MultiBinary(3),
            'inner': spaces.Tuple([spaces.Discrete(2, start=1), spaces.MultiDiscrete([2, 3])]),
            'position': spaces.Box(-1, 2, (2,), np.float64),
        }
    )
    box, encode = observation_of(space, 'x')
    seen = encode({'bits': np.asarray([1, 0, 1]), 'inner': (2, np.asarray([0, 2])), 'position': np.asarray([0.5, -1])})
    np.testing.assert_array_equal(seen, [1, 0, 1, 0, 1, 1, 0, 0, 0, 1, 0.5, -1])
    assert box.shape == (12,) and box.high[-2:] == (2.0, 2.0) and seen.dtype == np.float32
    for _ in range(5):
        assert encode(space.sample()).shape == (12,)


def test_actions_are_what_the_environment_takes():
    ours, taken = action_of(spaces.Discrete(3, start=-1), 'x')
    assert ours == Discrete(3) and [taken(a) for a in np.arange(3)] == [-1, 0, 1]
    ours, taken = action_of(spaces.MultiBinary(2), 'x')
    assert ours == MultiDiscrete((2, 2)) and spaces.MultiBinary(2).contains(taken(np.asarray([0, 1])))
    box = spaces.Box(-1, 1, (2, 2), np.float64)
    ours, taken = action_of(box, 'x')
    assert ours.shape == (2, 2) and box.contains(taken(np.zeros((2, 2), np.float32)))


def test_spaces_without_a_form_are_refused():
    with pytest.raises(InputError, match='--env=x: observations of Text have no form'):
        observation_of(spaces.Dict({'a': spaces.Text(5)}), 'x')
    with pytest.raises(InputError, match='--env=x: actions of Dict have no form'):
        action_of(spaces.Dict({'a': spaces.Discrete(2)}), 'x')


@pytest.mark.parametrize('name', ['my_env:MyBox-v0', 'my_env:Endless'])
def test_ones_own_is_found_from_the_working_directory(name):
    envs = make_environments(name, [0], 2)
    assert envs.name == name and envs.observation.shape == (1,) and envs.action == Discrete(2)


def test_ones_own_pure_functions_may_show_images_and_several_arrays():
    env = find_environment('my_env:screen')
    state, observation = env.reset(jax.random.key(0))
    np.testing.assert_array_equal(observation, [1, 1, 1, 1, 3])
    assert env.observation.shape == (5,) and observation.dtype == jnp.float32
    np.testing.assert_array_equal(env.step(jax.random.key(0), state, 0)[1].observation, observation)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('nowhere:make', "No module named 'nowhere'"),
        ('my_env:missing', 'my_env has no function missing'),
        ('my_env:number', 'returned int; give a function that returns a gymnasium.Env'),
        ('my_env:fails', 'could not be made .RuntimeError: no licence'),
        ('gymnasium:Nothing-v0', 'Gymnasium cannot make it'),
        ('my_env:Old', r'reset gave ndarray; Gymnasium wants \(observation, info\)'),
        ('my_env:Misshapen', r'an observation has shape \(3,\); its observation_space says \(1,\)'),
    ],
)
def test_mistakes_in_ones_own_are_one_line(name, message):
    with pytest.raises(InputError, match=message) as caught:
        batch = GymnasiumBatch(find_environment(name), 1)
        batch.reset([0])
        batch.step(np.zeros(1, int))
    assert '\n' not in str(caught.value) and f'--env={name}' in str(caught.value)


@pytest.mark.parametrize(('name', 'limit', 'length'), [('my_env:Endless', 3, 3), ('my_env:MyBox-v0', 9, 4)])
def test_a_time_limit_truncates_on_the_host(name, limit, length):
    batch = GymnasiumBatch(find_environment(name), 2, time_limit=limit)
    first = batch.reset([0, 1])
    for step in range(1, length + 1):
        answer = batch.step(np.zeros(2, int))
        assert answer.step.truncated.all() == (step == length) and not answer.step.terminated.any()
    np.testing.assert_array_equal(answer.episode_length, [length] * 2)
    np.testing.assert_array_equal(answer.step.observation, 0.0)
    # The next episode's first observation is another draw, not the final one.
    assert (answer.observation != 0).all() and (answer.observation != first).all()


def first_observations(seeds, num_envs=4, updates=0):
    settings = EnvSettings(env='my_env:Endless', num_envs=num_envs)
    envs = make_environments(settings.env, seeds, num_envs)
    runs = [{'seed': s, 'learning_rate': 1e-3, 'entropy_coef': 0.0} for s in seeds]
    state = first_state(settings, envs, agent_for(settings, envs), runs, hyper_of(runs))
    return np.asarray(envs.begin(state, updates).actors.observation)[..., 0]


def test_streams_are_disjoint_and_those_of_a_seed_are_its_own():
    together = first_observations([0, 1, 2])
    assert together.shape == (3, 4) and len(np.unique(together)) == 12
    for seed in range(3):
        np.testing.assert_array_equal(first_observations([seed])[0], together[seed])
    # More environments add streams; a resumed run does not begin with the episodes of its start.
    np.testing.assert_array_equal(first_observations([1], num_envs=6)[0, :4], together[1])
    assert not np.isin(first_observations([0], updates=5), together).any()


@pytest.mark.parametrize(
    ('name', 'episodes'), [('my_env:Endless', 3), ('probes:endless', 3), ('my_env:MyBox-v0', 3), ('my_env:Endless', 23)]
)
def test_an_evaluation_is_bounded_and_counts_what_did_not_end(name, episodes, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    settings = EnvSettings(env=name, eval_episodes=episodes, eval_steps=6, num_envs=2)
    envs, runs = make_envs(settings), runs_of(settings)
    agent = agent_for(settings, envs)
    played = evaluate(settings, envs, agent, first_state(settings, envs, agent, runs, hyper_of(runs)), runs)
    ends = 4 if name == 'my_env:MyBox-v0' else 6
    assert played.returns.shape == (1, episodes)
    np.testing.assert_array_equal(played.returns, ends)
    np.testing.assert_array_equal(played.lengths, ends)
    np.testing.assert_array_equal(played.ended, ends == 4)
