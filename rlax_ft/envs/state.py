"""The structs of PPO for environments: what acts, what is carried, what a rollout saw, what an update reads."""

from typing import Any

import jax
from flax import struct

from rlax_ft.envs.statistics import RunningStats
from rlax_ft.types import Array, TrainState


@struct.dataclass
class Actors:
    """N environments and what their policy carries along; every leaf has the leading axis N.

    Attributes:
      env: states of the environments; None where they step on the host.
      observation: float32[N, ...], what the policy sees next, not normalised.
      hidden: float32[N, H] of a recurrent policy, or ().
      first: bool[N], the observation is the first of its episode.
      discounted: float32[N], gamma times the discounted sum of rewards so far, for reward scaling.
    """

    env: Any
    observation: Array
    hidden: Any
    first: Array
    discounted: Array


@struct.dataclass
class Hyper:
    """Traced hyperparameters of a run, float32[]: a grid of them is trained in one program."""

    learning_rate: jax.Array
    entropy_coef: jax.Array


@struct.dataclass
class PPOState:
    """All that an update changes, and all that a checkpoint needs.

    Attributes:
      train: TrainState; its parameters are one vector (`Agent.tree` names them).
      actors: Actors.
      observation_stats: RunningStats of observations, or None.
      return_stats: RunningStats of discounted sums of rewards, or None.
      kl_coef: float32[], weight of the KL penalty; 0: none.
    """

    train: TrainState
    actors: Actors
    observation_stats: RunningStats | None
    return_stats: RunningStats | None
    kl_coef: jax.Array


@struct.dataclass
class Frames:
    """What a rollout saw, time-major [T, N].

    Attributes:
      observation: float32[T, N, ...], not normalised.
      hidden: float32[T, N, H], the hidden state carried to this step, or (). Where `first` holds it is that of the
        episode before: the value of a truncated step's final observation needs it, the new episode takes 0 instead.
      first: bool[T, N], the observation is the first of its episode.
      action: as the policy made it.
      outputs: float32[T, N, K], of the network that the action was drawn from.
      reward: float32[T, N].
      terminated, truncated: bool[T, N].
      final_observation: float32[T, N, ...], what the action led to, also where the episode ended there.
      episode_return, episode_length: of the episode so far, float32[T, N] and int32[T, N]; whole where it ended.
    """

    observation: Array
    hidden: Any
    first: Array
    action: Array
    outputs: Array
    reward: Array
    terminated: Array
    truncated: Array
    final_observation: Array
    episode_return: Array
    episode_length: Array


@struct.dataclass
class PPOBatch:
    """What the update reads, in rows [R, L]; `hidden` is [R, H], at the start of the row, or ()."""

    observation: jax.Array
    hidden: Any
    first: jax.Array
    action: jax.Array
    outputs: jax.Array
    logps: jax.Array
    values: jax.Array
    advantages: jax.Array
    returns: jax.Array
