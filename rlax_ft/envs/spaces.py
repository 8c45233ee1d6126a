"""Gymnasium's spaces as ours: an observation becomes one float32 array, an action what the environment takes."""

import importlib
from collections.abc import Callable

import numpy as np

from rlax_ft.envs.environment import Box, Discrete, MultiDiscrete
from rlax_ft.errors import InputError


def observation_of(space, name: str) -> tuple[Box, Callable]:
    """(Box, observation -> float32 array of its shape).

    A Box keeps its shape, and one of uint8 (an image) is scaled from [0, 255] to [0, 1]. Discrete and MultiDiscrete
    become one-hot vectors, MultiBinary zeros and ones. The parts of a Dict (in the order of the space) or a Tuple are
    flattened and put one after the other.

    Args:
      space: of Gymnasium.
      name: of the environment, for messages.

    Raises:
      InputError: a space of another kind.
    """
    spaces = importlib.import_module('gymnasium.spaces')
    if isinstance(space, spaces.Dict | spaces.Tuple):
        keys = list(space.spaces) if isinstance(space, spaces.Dict) else range(len(space.spaces))
        parts = [(key, *observation_of(space.spaces[key], name)) for key in keys]
        bounds = [[b for _, box, _ in parts for b in getattr(box, side)] for side in ('low', 'high')]
        whole = lambda x: np.concatenate([encode(x[key]).reshape(-1) for key, _, encode in parts])  # noqa: E731
        return Box.of((len(bounds[0]),), *bounds), whole
    if isinstance(space, spaces.Discrete):
        n, least = int(space.n), int(space.start)
        return Box.of((n,), 0, 1), lambda x: np.eye(n, dtype=np.float32)[int(x) - least]
    if isinstance(space, spaces.MultiDiscrete):
        sizes, start = np.asarray(space.nvec).reshape(-1), np.asarray(space.start).reshape(-1)
        first = np.cumsum(sizes) - sizes

        def one_hots(x):
            found = np.zeros(sizes.sum(), np.float32)
            found[first + np.asarray(x).reshape(-1) - start] = 1.0
            return found

        return Box.of((int(sizes.sum()),), 0, 1), one_hots
    if isinstance(space, spaces.MultiBinary):
        return Box.of(space.shape, 0, 1), lambda x: np.asarray(x, np.float32)
    if isinstance(space, spaces.Box) and space.dtype == np.uint8:
        low, high = (np.asarray(bound, np.float64) / 255.0 for bound in (space.low, space.high))
        return Box.of(space.shape, low, high), lambda x: np.asarray(x, np.float32) / np.float32(255.0)
    if isinstance(space, spaces.Box):
        return Box.of(space.shape, space.low, space.high), lambda x: np.asarray(x, np.float32)
    raise InputError(
        f'--env={name}: observations of {type(space).__name__} have no form here; '
        'Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple have'
    )


def action_of(space, name: str) -> tuple[Discrete | MultiDiscrete | Box, Callable]:
    """(our space, action -> what the environment takes); MultiBinary is a choice of two for each component.

    Raises:
      InputError: a space of another kind.
    """
    spaces = importlib.import_module('gymnasium.spaces')
    if isinstance(space, spaces.Discrete):
        least = int(space.start)
        return Discrete(int(space.n)), lambda a: int(a) + least
    if isinstance(space, spaces.MultiDiscrete):
        sizes, start, shape, dtype = np.asarray(space.nvec), np.asarray(space.start), space.shape, space.dtype
        shifted = lambda a: (np.asarray(a).reshape(shape) + start).astype(dtype)  # noqa: E731
        return MultiDiscrete(tuple(int(n) for n in sizes.reshape(-1))), shifted
    if isinstance(space, spaces.MultiBinary):
        shape, dtype = space.shape, space.dtype
        return MultiDiscrete((2,) * int(np.prod(shape))), lambda a: np.asarray(a, dtype).reshape(shape)
    if isinstance(space, spaces.Box):
        shape, dtype = space.shape, space.dtype
        return Box.of(shape, space.low, space.high), lambda a: np.asarray(a, dtype).reshape(shape)
    raise InputError(
        f'--env={name}: actions of {type(space).__name__} have no form here; '
        'Box, Discrete, MultiDiscrete and MultiBinary have'
    )
