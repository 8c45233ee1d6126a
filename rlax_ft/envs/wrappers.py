"""Wrappers: functions from an environment to an environment, and auto-reset.

Statistics that run over many environments are in statistics.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from rlax_ft.envs.environment import Box, Environment
from rlax_ft.errors import InputError


def continue_from(done: jax.Array, fresh, state):
    """Auto-reset: the fresh state (or observation) where an episode is done, else the one at hand.

    The `Step` that ended the episode keeps its final observation: nothing is overwritten.

    Args:
      done: bool[N].
      fresh: a pytree of arrays [N, ...].
      state: as fresh.
    """
    pick = lambda new, old: jnp.where(done.reshape(done.shape + (1,) * (new.ndim - done.ndim)), new, old)  # noqa: E731
    return jax.tree.map(pick, fresh, state)


@struct.dataclass
class TimedState:
    """A state and the steps taken since reset, int32[]."""

    inner: object
    time: jax.Array


def time_limit(env: Environment, max_steps: int) -> Environment:
    """Truncates episodes after `max_steps` steps, on top of the environment's own ends.

    Raises:
      InputError: max_steps is below 1.
    """
    if max_steps < 1:
        raise InputError(f'a time limit of {max_steps} steps: must be at least 1')

    def reset(key):
        state, observation = env.reset(key)
        return TimedState(state, jnp.zeros((), jnp.int32)), observation

    def step(key, state, action):
        inner, answer = env.step(key, state.inner, action)
        time = state.time + 1
        late = (time >= max_steps) & ~answer.terminated
        return TimedState(inner, time), answer.replace(truncated=answer.truncated | late)

    draw = env.draw and (lambda states, rewards, path: env.draw([s.inner for s in states], rewards, path))
    return dataclasses.replace(env, reset=reset, step=step, draw=draw)


def select_observation(env: Environment, components: tuple[int, ...]) -> Environment:
    """Shows only some components of a flat observation: CartPole's (0, 2) hides its velocities.

    Raises:
      InputError: the observation is not flat, or has no such component.
    """
    observation_box, kept = env.observation.components(components, env.name), jnp.asarray(components)

    def reset(key):
        state, observation = env.reset(key)
        return state, observation[kept]

    def step(key, state, action):
        state, answer = env.step(key, state, action)
        return state, answer.replace(observation=answer.observation[kept])

    return dataclasses.replace(env, reset=reset, step=step, observation=observation_box)


def flat_observation(env: Environment) -> Environment:
    """Shows float32: a uint8 image is scaled to [0, 1], and several arrays are flattened and put one after the other.

    An environment that shows one float32 array is returned as it is.
    """
    shapes = jax.tree.leaves(jax.eval_shape(env.reset, jax.random.key(0))[1])
    if len(shapes) == 1 and shapes[0].dtype == jnp.float32:
        return env

    def number(x):
        return jnp.asarray(x, jnp.float32) / (255.0 if x.dtype == jnp.uint8 else 1.0)

    def shown(observation):
        parts = [number(x) for x in jax.tree.leaves(observation)]
        return parts[0] if len(parts) == 1 else jnp.concatenate([x.reshape(-1) for x in parts])

    def reset(key):
        state, observation = env.reset(key)
        return state, shown(observation)

    def step(key, state, action):
        state, answer = env.step(key, state, action)
        return state, answer.replace(observation=shown(answer.observation))

    shape = shapes[0].shape if len(shapes) == 1 else (sum(x.size for x in shapes),)
    image = all(x.dtype == jnp.uint8 for x in shapes)
    box = Box.of(shape, 0.0, 1.0) if image else Box.of(shape)
    return dataclasses.replace(env, reset=reset, step=step, observation=box)


@struct.dataclass
class EpisodeState:
    """A state and the return and length of the episode so far: float32[], int32[]."""

    inner: object
    episode_return: jax.Array
    episode_length: jax.Array


def episode_statistics(env: Environment) -> Environment:
    """Keeps the undiscounted return and the length of the running episode in its state."""

    def reset(key):
        state, observation = env.reset(key)
        return EpisodeState(state, jnp.zeros(()), jnp.zeros((), jnp.int32)), observation

    def step(key, state, action):
        inner, answer = env.step(key, state.inner, action)
        state = EpisodeState(inner, state.episode_return + answer.reward, state.episode_length + 1)
        return state, answer

    draw = env.draw and (lambda states, rewards, path: env.draw([s.inner for s in states], rewards, path))
    return dataclasses.replace(env, reset=reset, step=step, draw=draw)
