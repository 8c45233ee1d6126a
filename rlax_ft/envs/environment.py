"""What an environment is: two pure functions, and what they take and give.

Leaves out auto-reset and batches of environments: `wrappers` has the first, `jax.vmap` the second.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import struct


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


@struct.dataclass
class Step:
    """What an environment answers to an action.

    Attributes:
      observation: float32[...], of the state that the action led to, also where the episode ends with it.
      reward: float32[].
      terminated: bool[], that state is absorbing: nothing follows.
      truncated: bool[], the episode is cut here, by a time limit; what would follow still has a value.
    """

    observation: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


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
