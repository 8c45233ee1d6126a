"""Environments so small that what a critic and a policy must learn is known exactly."""

import jax
import jax.numpy as jnp

from rlax_ft.envs.environment import Box, Discrete, Environment, Step
from rlax_ft.envs.wrappers import time_limit


def _environment(name, reset, step):
    return Environment(name, reset, step, Box.of((1,), -1, 1), Discrete(2))


def _coin(key):
    return jnp.where(jax.random.bernoulli(key), 1.0, -1.0)[None]


def _ends(observation, reward):
    return Step(observation, jnp.asarray(reward, jnp.float32), jnp.ones((), bool), jnp.zeros((), bool))


def constant_reward():
    """One step, reward 1: the value is 1."""
    nothing = jnp.zeros(1)
    return _environment('constant', lambda key: ((), nothing), lambda key, s, a: (s, _ends(nothing, 1.0)))


def observed_reward():
    """One step, the observation is the reward: the value is what is seen."""
    reset = lambda key: (_coin(key), _coin(key))  # noqa: E731
    return _environment('observed', reset, lambda key, seen, a: (seen, _ends(seen, seen[0])))


def delayed_reward():
    """Two steps, reward 1 at the end: the values are gamma and 1."""

    def step(key, time, action):
        last = time == 1
        observation = jnp.asarray(time + 1, jnp.float32)[None]
        return time + 1, Step(observation, jnp.where(last, 1.0, 0.0), last, jnp.zeros((), bool))

    return _environment('delayed', lambda key: (jnp.zeros((), jnp.int32), jnp.zeros(1)), step)


def acted_reward():
    """One step, reward 1 for action 1 and -1 for action 0."""
    nothing = jnp.zeros(1)
    return _environment('acted', lambda key: ((), nothing), lambda key, s, a: (s, _ends(nothing, 2.0 * a - 1.0)))


def both_reward():
    """One step, reward 1 where the action agrees with the observation, else -1."""
    reset = lambda key: (_coin(key), _coin(key))  # noqa: E731
    return _environment('both', reset, lambda key, seen, a: (seen, _ends(seen, seen[0] * (2.0 * a - 1.0))))


def endless():
    """Reward 1 for ever, cut after 10 steps: the value is 1 / (1 - gamma)."""
    answer = Step(jnp.zeros(1), jnp.ones(()), jnp.zeros((), bool), jnp.zeros((), bool))
    return time_limit(_environment('endless', lambda key: ((), jnp.zeros(1)), lambda key, s, a: (s, answer)), 10)


def broken():
    """Rewards that are not numbers."""
    nothing = jnp.zeros(1)
    return _environment('broken', lambda key: ((), nothing), lambda key, s, a: (s, _ends(nothing, jnp.nan)))


def remembered():
    """Two steps, the first shows a coin, the second rewards its name: only memory helps."""

    def reset(key):
        coin = _coin(key)
        return (coin, jnp.zeros((), jnp.int32)), coin

    def step(key, state, action):
        coin, time = state
        last = time == 1
        reward = jnp.where(last, coin[0] * (2.0 * action - 1.0), 0.0)
        return (coin, time + 1), Step(jnp.zeros(1), reward, last, jnp.zeros((), bool))

    return _environment('remembered', reset, step)


def several():
    """One step, three choices at once, each rewarded for its index."""
    from rlax_ft.envs.environment import MultiDiscrete

    nothing = jnp.zeros(1)
    step = lambda key, s, a: (s, _ends(nothing, jnp.sum(a == jnp.asarray([0, 1, 2])) / 3.0))  # noqa: E731
    reset = lambda key: ((), nothing)  # noqa: E731
    return Environment('several', reset, step, Box.of((1,), -1, 1), MultiDiscrete((2, 3, 4)))


def aimed():
    """One step, a number in [-2, 2] rewarded by its closeness to 1."""
    nothing = jnp.zeros(1)
    step = lambda key, s, a: (s, _ends(nothing, -jnp.sum(jnp.square(a - 1.0))))  # noqa: E731
    return Environment('aimed', lambda key: ((), nothing), step, Box.of((1,), -1, 1), Box.of((1,), -2.0, 2.0))
