"""Environments by name: gymnax (with MinAtar and bsuite), Brax, MuJoCo Playground, Gymnasium, one's own.

gymnax's time limits are truncations and its terminations terminations; its own auto-reset is left aside.
"""

import dataclasses
import difflib
import importlib
import inspect
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.envs.device import DeviceEnvironments
from rlax_ft.envs.environment import Box, Discrete, Environment, Step
from rlax_ft.envs.gymnasium import GymnasiumMaker
from rlax_ft.envs.host import HostEnvironments
from rlax_ft.envs.wrappers import episode_statistics, flat_observation, select_observation
from rlax_ft.envs.wrappers import time_limit as limit_time
from rlax_ft.errors import InputError


def make_environments(
    name: str, seeds: list[int], num_envs: int, *, observe: tuple[int, ...] = (), time_limit: int = 0
) -> DeviceEnvironments | HostEnvironments:
    """`num_envs` environments for each run, compiled or on the host; both have the same interface.

    Args:
      name: as `find_environment` takes it.
      seeds: of the runs.
      num_envs: N.
      observe: components of a flat observation to keep; empty keeps all.
      time_limit: an episode is truncated after so many steps; 0 leaves its own limit.

    Raises:
      InputError: nobody has it, or its spaces have no form here.
    """
    found = find_environment(name)
    if isinstance(found, GymnasiumMaker):
        return HostEnvironments(found, seeds, num_envs, observe=observe, time_limit=time_limit)
    if observe:
        found = select_observation(found, observe)
    if time_limit:
        found = limit_time(found, time_limit)
    return DeviceEnvironments(episode_statistics(found))


def find_environment(name: str) -> Environment | GymnasiumMaker:
    """The environment of a name.

    Args:
      name: of gymnax (`CartPole-v1`, `Breakout-MinAtar`), `brax:ant`, `playground:CartpoleBalance`,
        `gymnasium:LunarLander-v3` (or `LunarLander-v3` where gymnax has none of that name), or one's own:
        `MODULE:NAME-v0`, which the module registers with Gymnasium, or `MODULE:FUNCTION`, a function of no arguments
        that returns a `gymnasium.Env` or an `Environment`. Modules are looked up in the working directory, too.

    Raises:
      InputError: nobody has it; the nearest names are given.
    """
    library, _, inner = name.rpartition(':')
    if library == 'gymnasium':
        return _registered(inner, name)
    if library == 'brax':
        return _brax(inner)
    if library == 'playground':
        return _playground(inner)
    if library:
        return _own(library, inner, name)
    gymnax = _need('gymnax', name)
    if name in gymnax.registered_envs:
        return from_gymnax(*gymnax.make(name))
    others = gymnasium_names()
    if name in others:
        return _registered(name, name)
    known = list(dict.fromkeys([*gymnax.registered_envs, *others]))
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
    lower = {k.lower(): k for k in known}
    near += [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.4) if lower[n] not in near]
    raise InputError(f'--env={name}: no such environment; near: {", ".join(near[:4] or known[:4])}')


def from_gymnax(env, params) -> Environment:
    """An environment of gymnax 1.0: `step_env` and `reset_env` without its auto-reset.

    Raises:
      InputError: its observation is not one array or one number, or its action space is unknown here.
    """
    gymnax_spaces = importlib.import_module('gymnax.environments.spaces')
    seen, acts = env.observation_space(params), env.action_space(params)
    kinds = isinstance(seen, gymnax_spaces.Discrete), isinstance(acts, gymnax_spaces.Discrete)
    for space, known in ((seen, kinds[0]), (acts, kinds[1])):
        if not known and not isinstance(space, gymnax_spaces.Box):
            raise InputError(f'--env={env.name}: a space {space} has no form here; Discrete and Box have')
    observe = (lambda x: jax.nn.one_hot(x, seen.n)) if kinds[0] else (lambda x: jnp.asarray(x, jnp.float32))
    observation = Box.of((seen.n,), 0, 1) if kinds[0] else Box.of(seen.shape, _host(seen.low), _host(seen.high))
    action = Discrete(int(acts.n)) if kinds[1] else Box.of(acts.shape, _host(acts.low), _host(acts.high))
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(lambda: env.reset(jax.random.key(0), params)[1]))]

    def fixed(state):
        # Python numbers in gymnax's states become arrays whose types never change.
        leaves, structure = jax.tree.flatten(state)
        return jax.tree.unflatten(structure, [jnp.asarray(x, d) for x, d in zip(leaves, dtypes)])

    def reset(key):
        first, state = env.reset_env(key, params)
        return fixed(state), observe(first)

    def step(key, state, act):
        following, state, reward, terminated, _ = env.step_env(key, state, act, params)
        terminated = jnp.asarray(terminated, bool)
        truncated = jnp.asarray(env.is_truncated(state, params), bool) & ~terminated
        return fixed(state), Step(observe(following), jnp.asarray(reward, jnp.float32), terminated, truncated)

    def draw(states, rewards, path):
        visualizer = importlib.import_module('gymnax.visualize').Visualizer
        visualizer(env, params, states, np.cumsum(rewards)).animate(str(path))

    return Environment(env.name, reset, step, observation, action, draw)


def gymnasium_names() -> list[str]:
    """The names that Gymnasium knows, where it is installed."""
    try:
        return list(importlib.import_module('gymnasium').registry)
    except ImportError:
        return []


def _brax(name):
    envs = _need('brax.envs', f'brax:{name}')
    if name not in envs._envs:
        near = difflib.get_close_matches(name, envs._envs, n=4, cutoff=0.0)
        raise InputError(f'--env=brax:{name}: no such environment; near: {", ".join(near)}')
    env = envs.get_environment(name)
    return from_mjx(f'brax:{name}', env, env.observation_size, env.action_size, 1000)


def _playground(name):
    registry = _need('mujoco_playground', f'playground:{name}').registry
    if name not in registry.ALL_ENVS:
        near = difflib.get_close_matches(name, registry.ALL_ENVS, n=4, cutoff=0.0)
        raise InputError(f'--env=playground:{name}: no such environment; near: {", ".join(near)}')
    env, config = registry.load(name), registry.get_default_config(name)
    return from_mjx(f'playground:{name}', env, env.observation_size, env.action_size, config.episode_length)


def from_mjx(name: str, env, observation_size: int, action_size: int, max_steps: int) -> Environment:
    """An environment of Brax's protocol: `reset(key)` and `step(state, action)` with `obs`, `reward`, `done`.

    Its `done` is termination; the time limit, which those libraries add in their trainers, is truncation.
    """
    if not isinstance(observation_size, int):
        raise InputError(f'--env={name}: an observation of several arrays has no form here')

    def reset(key):
        state = env.reset(key)
        return state, jnp.asarray(state.obs, jnp.float32)

    def step(key, state, action):
        del key  # randomness is in the state
        state = env.step(state, action)
        done = state.done > 0.5
        return state, Step(jnp.asarray(state.obs, jnp.float32), state.reward, done, jnp.zeros_like(done))

    box = Box.of((action_size,), -1.0, 1.0)
    return limit_time(Environment(name, reset, step, Box.of((observation_size,)), box), max_steps)


def _own(module, inner, name):
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), inner, None)
    except ImportError as error:
        raise InputError(f'--env={name}: {error}; give MODULE:FUNCTION, or MODULE:NAME of a registered one') from error
    if found is None and inner in gymnasium_names():
        return _registered(inner, name)
    if found is None:
        raise InputError(
            f'--env={name}: {module} has no function {inner}, and registers no environment of that name with Gymnasium'
        )
    env = _called(found, name)
    if isinstance(env, Environment):
        return flat_observation(env if ':' in env.name else dataclasses.replace(env, name=name))
    gymnasium = sys.modules.get('gymnasium')
    if gymnasium is None or not isinstance(env, gymnasium.Env):
        raise InputError(
            f'--env={name}: returned {type(env).__name__}; give a function that returns a gymnasium.Env or an '
            'rlax_ft.envs Environment'
        )
    env.close()
    takes_mode = 'render_mode' in _parameters(found)
    make = lambda mode: _called(found, name, **({'render_mode': mode} if takes_mode else {}))  # noqa: E731
    return GymnasiumMaker(name, make, takes_mode)


def _parameters(function):
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return {}


def _called(function, name, **arguments):
    try:
        return function(**arguments)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f'--env={name}: could not be made ({type(error).__name__}: {error})') from error


def _registered(inner, name):
    gymnasium = _need('gymnasium', name)

    def make(render_mode):
        try:
            return gymnasium.make(inner, **({'render_mode': render_mode} if render_mode else {}))
        except Exception as error:
            raise InputError(f'--env={name}: Gymnasium cannot make it: {error}') from error

    return GymnasiumMaker(name, make)


def _need(module, name):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = "'rlax_ft[envs]'"
        package = {'gymnax': extra, 'gymnasium': extra, 'brax.envs': 'brax', 'mujoco_playground': 'playground'}[module]
        raise InputError(f'--env={name}: needs more packages ({error}); pip install {package}') from error


def _host(bound):
    return np.asarray(bound, np.float64)
