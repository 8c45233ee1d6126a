"""Gymnasium's environments, stepped on the host side by side: LunarLander, or any that a user has registered.

An ended episode restarts within the step, and its final observation comes along. Leaves out compiled environments
(adapters.py).
"""

import dataclasses
import importlib
from pathlib import Path

import numpy as np

from rlax_ft.envs.environment import Box, Discrete, MultiDiscrete, Step
from rlax_ft.errors import InputError


@dataclasses.dataclass
class HostStep:
    """What all environments answer: `step` as of the action, `observation` to go on from, after restarts."""

    step: Step
    observation: np.ndarray
    episode_return: np.ndarray
    episode_length: np.ndarray


class HostEnvironments:
    """`count` environments of one name, with the spaces of an `Environment` and its `draw`."""

    def __init__(self, name: str, count: int, seed: int = 0):
        """Makes them.

        Raises:
          InputError: Gymnasium cannot make it, or its spaces have no form here.
        """
        self.name, self._seed = name, seed
        try:
            self._gymnasium = importlib.import_module('gymnasium')
        except ImportError as error:
            raise InputError(f"--env={name}: needs Gymnasium ({error}); pip install 'rlax_ft[control]'") from error
        self._envs = self._make(count)
        self.observation = self._observation(self._envs.single_observation_space)
        self.action = self._action(self._envs.single_action_space)
        self._returns, self._lengths = np.zeros(count), np.zeros(count, np.int64)
        self.draw = self._draw if 'rgb_array' in (self._envs.metadata.get('render_modes') or ()) else None

    def reset(self, seed: int | None = None) -> np.ndarray:
        """First observations, float32[count, ...]."""
        self._returns[:], self._lengths[:] = 0.0, 0
        return self._seen(self._envs.reset(seed=self._seed if seed is None else seed)[0])

    def step(self, action: np.ndarray) -> HostStep:
        """Acts in all; an episode that ends restarts."""
        observation, reward, terminated, truncated, info = self._envs.step(np.asarray(action))
        done = terminated | truncated
        self._returns += reward
        self._lengths += 1
        observation = self._seen(observation)
        final = observation.copy()
        for i in np.flatnonzero(done):
            final[i] = self._seen(info['final_obs'][i][None])[0]
        answer = HostStep(
            Step(final, np.asarray(reward, np.float32), terminated, truncated & ~terminated),
            observation,
            self._returns.astype(np.float32),
            self._lengths.astype(np.int32),
        )
        self._returns, self._lengths = np.where(done, 0.0, self._returns), np.where(done, 0, self._lengths)
        return answer

    def apart(self, count: int) -> 'HostEnvironments':
        """Others of the same name, for evaluation."""
        return HostEnvironments(self.name, count, self._seed)

    def _draw(self, decide, path: str | Path, *, max_steps: int = 1000, every: int = 2) -> None:
        """Plays one episode of `decide(observation) -> action` and writes each `every`-th picture as a GIF."""
        from PIL import Image

        env = self._gymnasium.make(self.name, render_mode='rgb_array')
        observation, _ = env.reset(seed=self._seed)
        pictures, done = [], False
        for _ in range(max_steps):
            pictures.append(env.render())
            observation, _, terminated, truncated, _ = env.step(decide(self._seen(observation[None]))[0])
            done = terminated or truncated
            if done:
                break
        env.close()
        first, *others = [Image.fromarray(p) for p in pictures[::every]]
        first.save(path, save_all=True, append_images=others, duration=40, loop=0)

    def close(self) -> None:
        """Closes them."""
        self._envs.close()

    def _make(self, count):
        mode = self._gymnasium.vector.AutoresetMode.SAME_STEP
        try:
            return self._gymnasium.make_vec(
                self.name, num_envs=count, vectorization_mode='sync', vector_kwargs={'autoreset_mode': mode}
            )
        except (self._gymnasium.error.Error, ImportError, TypeError) as error:
            raise InputError(f'--env={self.name}: Gymnasium cannot make it: {error}') from error

    def _observation(self, space):
        spaces = self._gymnasium.spaces
        if isinstance(space, spaces.Discrete):
            return Box.of((int(space.n),), 0, 1)
        if not isinstance(space, spaces.Box):
            raise InputError(f'--env={self.name}: observations of {space} have no form here; Box and Discrete have')
        return Box.of(space.shape, space.low, space.high)

    def _action(self, space):
        spaces = self._gymnasium.spaces
        if isinstance(space, spaces.Discrete) and space.start == 0:
            return Discrete(int(space.n))
        if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
            return MultiDiscrete(tuple(int(n) for n in space.nvec))
        if isinstance(space, spaces.Box):
            return Box.of(space.shape, space.low, space.high)
        raise InputError(f'--env={self.name}: actions of {space} have no form here')

    def _seen(self, observation):
        if isinstance(self._envs.single_observation_space, self._gymnasium.spaces.Discrete):
            return np.eye(self._envs.single_observation_space.n, dtype=np.float32)[np.asarray(observation, int)]
        return np.asarray(observation, np.float32)
