"""Wrappers: functions from an environment to an environment, and auto-reset.

Leaves out statistics that run over many environments, which are in `statistics`.
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
    shape = env.observation.shape
    if len(shape) != 1 or not all(0 <= c < shape[0] for c in components):
        raise InputError(f'{env.name}: an observation of shape {shape} has no components {components} to keep')
    kept = jnp.asarray(components)

    def reset(key):
        state, observation = env.reset(key)
        return state, observation[kept]

    def step(key, state, action):
        state, answer = env.step(key, state, action)
        return state, answer.replace(observation=answer.observation[kept])

    low, high = (tuple(bound[c] for c in components) for bound in (env.observation.low, env.observation.high))
    return dataclasses.replace(env, reset=reset, step=step, observation=Box((len(components),), low, high))


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
