"""A user's own Gymnasium environments, for tests."""

import gymnasium
import numpy as np
from gymnasium import spaces

from rlax_ft.envs.environment import Box, Discrete, Environment, Step


class Parts(gymnasium.Env):
    """One step; a Dict of an image, switches and a number; reward 1 for naming the first switch."""

    metadata = {'render_modes': []}  # noqa: RUF012
    observation_space = spaces.Dict(
        {
            'image': spaces.Box(0, 255, (2, 2, 1), np.uint8),
            'number': spaces.Discrete(3, start=5),
            'switches': spaces.MultiBinary(2),
        }
    )
    action_space = spaces.Discrete(2, start=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.switches = self.np_random.integers(0, 2, 2).astype(np.int8)
        return self.seen(), {}

    def seen(self):
        return {'image': np.full((2, 2, 1), 255, np.uint8), 'number': 6, 'switches': self.switches}

    def step(self, action):
        assert self.action_space.contains(action)
        return self.seen(), float(action - 1 == self.switches[0]), True, False, {}


class Endless(gymnasium.Env):
    """Reward 1 for ever; the first observation is drawn from the seed."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.standard_normal(1).astype(np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}


class Old(Endless):
    """Speaks the API before Gymnasium's."""

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32)


class Misshapen(Endless):
    """Shows something else than it says."""

    def reset(self, *, seed=None, options=None):
        return np.zeros(3, np.float32), {}


class Unpaid(Endless):
    """Gives no reward."""

    def step(self, action):
        return np.zeros(1, np.float32), None, False, False, {}


def screen():
    """Environment of pure functions that shows uint8 and two arrays."""
    import jax.numpy as jnp

    shown = {'a': jnp.full((2, 2, 1), 255, jnp.uint8), 'b': jnp.asarray([3.0])}
    end = Step(shown, jnp.asarray(1.0), jnp.ones((), bool), jnp.zeros((), bool))
    return Environment('screen', lambda key: ((), shown), lambda key, s, a: (s, end), Box.of((1,)), Discrete(2))


def number():
    """Not an environment."""
    return 5


def fails():
    """Cannot be made."""
    raise RuntimeError('no licence')


gymnasium.register('MyBox-v0', entry_point=Endless, max_episode_steps=4)
