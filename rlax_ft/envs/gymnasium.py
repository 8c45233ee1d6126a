"""Gymnasium's environments, stepped on the host side by side: LunarLander, or a user's own.

An ended episode restarts within the step, and its final observation comes along.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rlax_ft.envs.environment import Step
from rlax_ft.envs.spaces import action_of, observation_of
from rlax_ft.errors import InputError


@dataclasses.dataclass(frozen=True)
class GymnasiumMaker:
    """Makes environments of one kind.

    Attributes:
      name: as the user gave it.
      make: (render mode or None) -> `gymnasium.Env`.
      takes_mode: whether the render mode has an effect.
    """

    name: str
    make: Callable
    takes_mode: bool = True


@dataclasses.dataclass
class HostStep:
    """What all environments answer: `step` as of the action, `observation` to act on next, after restarts."""

    step: Step
    observation: np.ndarray
    episode_return: np.ndarray
    episode_length: np.ndarray


def stream_seed(*entropy: int) -> int:
    """A seed of 31 bits for an environment; other numbers give independent ones (`numpy.random.SeedSequence`)."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0]) >> 1


class GymnasiumBatch:
    """Environments of one maker side by side, with the spaces of an `Environment`."""

    def __init__(self, maker: GymnasiumMaker, count: int, *, observe: tuple[int, ...] = (), time_limit: int = 0):
        """Makes them.

        Args:
          maker: of one environment.
          count: how many.
          observe: components of a flat observation to keep; empty keeps all.
          time_limit: an episode is truncated after so many steps; 0 leaves its own limit.

        Raises:
          InputError: a space has no form here, or no such components.
        """
        self.name, self._time_limit = maker.name, time_limit
        self._envs = [maker.make(None) for _ in range(count)]
        self.observation, self._encode = observation_of(self._envs[0].observation_space, self.name)
        self.action, self._decode = action_of(self._envs[0].action_space, self.name)
        if observe:
            kept, encode = list(observe), self._encode
            self.observation = self.observation.components(observe, self.name)
            self._encode = lambda x: encode(x)[kept]
        modes = self._envs[0].metadata.get('render_modes') or ()
        self.drawable = 'rgb_array' in modes and (maker.takes_mode or self._envs[0].render_mode == 'rgb_array')
        self._returns, self._lengths = np.zeros(count), np.zeros(count, np.int64)

    def reset(self, seeds: list[int]) -> np.ndarray:
        """First observations, float32[count, ...]; each environment's later episodes follow from its seed."""
        self._returns[:], self._lengths[:] = 0.0, 0
        return np.stack([self._first(env, seed) for env, seed in zip(self._envs, seeds)])

    def restart(self, index: int) -> np.ndarray:
        """Leaves the episode of one environment: the first observation of its next."""
        self._returns[index], self._lengths[index] = 0.0, 0
        return self._first(self._envs[index], None)

    def step(self, actions: np.ndarray) -> HostStep:
        """Acts in all; an episode that ends restarts."""
        count, shape = len(self._envs), self.observation.shape
        final, rewards = np.zeros((count, *shape), np.float32), np.zeros(count)
        terminated, truncated = np.zeros(count, bool), np.zeros(count, bool)
        for i, env in enumerate(self._envs):
            answer = env.step(self._decode(actions[i]))
            if len(answer) != 5:
                raise InputError(
                    f'--env={self.name}: step gave {len(answer)} things; Gymnasium wants (observation, reward, '
                    'terminated, truncated, info)'
                )
            final[i] = self.seen(answer[0])
            # A reward of None becomes NaN here, which the training loop refuses.
            rewards[i], terminated[i], truncated[i] = answer[1:4]
        self._returns += rewards
        self._lengths += 1
        if self._time_limit:
            truncated |= self._lengths >= self._time_limit
        returns, lengths, following = self._returns.astype(np.float32), self._lengths.astype(np.int32), final.copy()
        for i in np.flatnonzero(terminated | truncated).tolist():
            following[i] = self.restart(i)
        step = Step(final, rewards.astype(np.float32), terminated, truncated & ~terminated)
        return HostStep(step, following, returns, lengths)

    def close(self) -> None:
        """Closes them."""
        for env in self._envs:
            env.close()

    def _first(self, env, seed):
        try:
            answer = env.reset(seed=seed)
        except TypeError as error:
            raise InputError(
                f'--env={self.name}: reset(seed=...) failed ({error}); Gymnasium wants reset(self, *, seed=None, '
                'options=None)'
            ) from error
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise InputError(
                f'--env={self.name}: reset gave {type(answer).__name__}; Gymnasium wants (observation, info)'
            )
        return self.seen(answer[0])

    def taken(self, action: np.ndarray):
        """An action as one environment takes it."""
        return self._decode(action)

    def seen(self, observation) -> np.ndarray:
        """An observation of one environment as the policy sees it, float32[...].

        Raises:
          InputError: it is not of the observation space.
        """
        try:
            seen = self._encode(observation)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                f'--env={self.name}: an observation is not of its observation_space ({type(error).__name__}: {error})'
            ) from error
        if seen.shape != self.observation.shape:
            raise InputError(
                f'--env={self.name}: an observation has shape {seen.shape}; its observation_space says '
                f'{self.observation.shape}'
            )
        return seen


def draw_gymnasium(
    maker: GymnasiumMaker, decide: Callable, path: str | Path, *, seed: int, max_steps: int = 1000, every: int = 2
) -> None:
    """Plays one episode of `decide(env's observation) -> action` and writes each `every`-th picture as a GIF."""
    from PIL import Image

    env = maker.make('rgb_array')
    observation, _ = env.reset(seed=seed)
    pictures = []
    for _ in range(max_steps):
        pictures.append(env.render())
        observation, _, terminated, truncated, _ = env.step(decide(observation))
        if terminated or truncated:
            break
    env.close()
    first, *others = [Image.fromarray(np.asarray(p, np.uint8)) for p in pictures[::every]]
    first.save(path, save_all=True, append_images=others, duration=40, loop=0)
