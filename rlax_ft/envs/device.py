"""Environments that are pure functions: the rollout is compiled together with the rest of an update.

`DeviceEnvironments` has the interface of `HostEnvironments` (host.py); a script asks neither which it is.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from rlax_ft.envs.agent import Agent
from rlax_ft.envs.environment import Environment
from rlax_ft.envs.episodes import Played, draw_episode, play_episodes
from rlax_ft.envs.programs import Layout, Program
from rlax_ft.envs.rollout import collect
from rlax_ft.envs.state import PPOState
from rlax_ft.parallel.placement import fetch


@dataclasses.dataclass(frozen=True)
class DeviceEnvironments:
    """All environments of all runs.

    Attributes:
      env: one of them, with episode statistics.
    """

    env: Environment

    @property
    def name(self) -> str:
        """As the user gave it."""
        return self.env.name

    @property
    def observation(self):
        """A Box."""
        return self.env.observation

    @property
    def action(self):
        """Discrete, MultiDiscrete or Box."""
        return self.env.action

    @property
    def drawable(self) -> bool:
        """Whether `draw` works."""
        return self.env.draw is not None

    def reset(self, key: jax.Array, num_envs: int):
        """(states, observations [num_envs, ...]) of one run's environments."""
        return jax.vmap(self.env.reset)(jax.random.split(key, num_envs))

    def begin(self, state: PPOState, updates: int) -> PPOState:
        """The state [runs, ...] to train from after so many updates: its environments are in it."""
        del updates
        return state

    def program(self, iteration: Callable, agent: Agent, layout: Layout, *, num_steps: int) -> Program:
        """`(hyper, state, count) -> (state, metrics)` of all runs.

        Args:
          iteration: `(hyper, state, collect) -> (state, metrics)` of one run, `collect(state, key)` its rollout.
          agent: the policy.
          layout: runs and devices.
          num_steps: T.
        """

        def play(state, key):
            return collect(self.env, agent, state, key, num_steps=num_steps)

        return Program(layout, lambda hyper, state: iteration(hyper, state, play))

    def play(self, agent: Agent, params, stats, keys, *, episodes: int, greedy: bool, max_steps: int) -> Played:
        """Whole episodes of every run, apart from training; params, stats and keys have a leading axis of runs."""

        def one(params, stats, key):
            return play_episodes(
                self.env, agent, params, stats, key, episodes=episodes, greedy=greedy, max_steps=max_steps
            )

        if jax.process_count() > 1:
            params, stats = fetch((params, stats))  # Every process plays the same episodes by itself.
        arguments = jax.device_put((params, stats, keys), jax.local_devices()[0])
        return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(*arguments))

    def draw(self, agent: Agent, params, stats, key: jax.Array, path) -> None:
        """Plays one greedy episode of one run and writes it as a GIF."""
        draw_episode(self.env, agent, params, stats, key, path)
