"""What an environment is: two pure functions, and what they take and give.

Auto-reset is in wrappers.py; batches of environments are `jax.vmap`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from flax import struct

from rlax_ft.errors import InputError
from rlax_ft.types import Array


@dataclasses.dataclass(frozen=True)
class Discrete:
    """One of the actions 0 .. n - 1, an int32[]."""

    n: int


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """Several choices at once, int32[len(sizes)]: component i is one of 0 .. sizes[i] - 1."""

    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Box:
    """A float32 array of a shape, between bounds.

    Attributes:
      shape: of the array.
      low: the lower bound of each component, flattened; -inf is none.
      high: the upper bound.
    """

    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, shape, low=-np.inf, high=np.inf) -> 'Box':
        """A box whose bounds may be numbers or arrays of the shape."""
        bounds = (tuple(np.broadcast_to(np.asarray(b, np.float64), shape).reshape(-1).tolist()) for b in (low, high))
        return cls(tuple(shape), *bounds)

    def components(self, kept: tuple[int, ...], name: str) -> 'Box':
        """The box of some components of a flat observation.

        Raises:
          InputError: the box is not flat, or has no such component.
        """
        if len(self.shape) != 1 or not all(0 <= c < self.shape[0] for c in kept):
            raise InputError(f'{name}: an observation of shape {self.shape} has no components {kept} to keep')
        return Box((len(kept),), tuple(self.low[c] for c in kept), tuple(self.high[c] for c in kept))


@struct.dataclass
class Step:
    """What an environment answers to an action.

    Attributes:
      observation: float32[...], of the state that the action led to, also where the episode ends with it.
      reward: float32[].
      terminated: bool[], that state is absorbing: nothing follows.
      truncated: bool[], the episode is cut here, by a time limit; what would follow still has a value.
    """

    observation: Array
    reward: Array
    terminated: Array
    truncated: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Environment:
    """A pair of pure functions with typed ends; it never resets itself.

    Attributes:
      name: as the user gave it.
      reset: key -> (state, observation).
      step: (key, state, action) -> (state, Step); what follows the end of an episode is not defined.
      observation: what is seen.
      action: Discrete, MultiDiscrete or Box.
      draw: (list of unbatched states, list of rewards, path) writes a GIF; None where it cannot be drawn.
    """

    name: str
    reset: Callable[[jax.Array], tuple[Any, jax.Array]]
    step: Callable[[jax.Array, Any, jax.Array], tuple[Any, Step]]
    observation: Box
    action: Discrete | MultiDiscrete | Box
    draw: Callable | None = None


class Environments(Protocol):
    """All environments of all runs, wherever they step: `DeviceEnvironments` or `HostEnvironments`."""

    @property
    def name(self) -> str:
        """As the user gave it."""

    @property
    def observation(self) -> Box:
        """What each shows."""

    @property
    def action(self) -> Discrete | MultiDiscrete | Box:
        """What each takes."""

    @property
    def drawable(self) -> bool:
        """Whether `draw` works."""

    def reset(self, key: jax.Array, num_envs: int) -> tuple[Any, jax.Array]:
        """(states, observations [num_envs, ...]) of one run's environments; pure."""

    def begin(self, state, updates: int):
        """The state [runs, ...] to train from after so many updates."""

    def program(self, iteration: Callable, agent, layout, *, num_steps: int) -> Callable:
        """`(hyper, state, count) -> (state, metrics)` of all runs, with `compile_seconds`.

        `iteration` is `(hyper, state, collect) -> (state, metrics)` of one run; `collect(state, key)` gives (Actors
        afterwards, Frames [num_steps, N]).
        """

    def play(self, agent, params, stats, keys, *, episodes: int, greedy: bool, max_steps: int):
        """Whole episodes of each run: Played [runs, episodes]."""

    def draw(self, agent, params, stats, key: jax.Array, path) -> None:
        """Plays one greedy episode of one run and writes it as a GIF."""
