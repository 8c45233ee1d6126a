"""Running mean and variance over a batch of environments, to normalise observations and scale rewards.

The statistics change once per rollout and stand still within it, so that the policy that acted and the policy that
learns see the same numbers; at evaluation they are frozen.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class RunningStats:
    """Mean and variance of all that was seen.

    Attributes:
      count: float32[], entries seen.
      mean: float32[...].
      var: float32[...], biased.
    """

    count: jax.Array
    mean: jax.Array
    var: jax.Array


def init_stats(shape: tuple[int, ...] = ()) -> RunningStats:
    """Nothing seen: mean 0, variance 1."""
    return RunningStats(jnp.zeros(()), jnp.zeros(shape), jnp.ones(shape))


def update_stats(stats: RunningStats, batch: jax.Array, *, axis_name: str | None = None) -> RunningStats:
    """Takes in a batch, by the parallel form of Welford's sums (Chan, Golub and LeVeque, 1983).

    Args:
      stats: so far.
      batch: float[..., *shape]; all leading axes are entries.
      axis_name: mapped axis over which the batch is split; every device then has the same statistics.
    """
    axes = tuple(range(batch.ndim - stats.mean.ndim))
    share = lambda x: x if axis_name is None else jax.lax.psum(x, axis_name)  # noqa: E731
    size = share(jnp.asarray(batch.size / max(stats.mean.size, 1), jnp.float32))
    mean = share(jnp.sum(batch, axes)) / size
    squares = share(jnp.sum(jnp.square(batch - mean), axes))
    count = stats.count + size
    shift = mean - stats.mean
    spread = stats.var * stats.count + squares + jnp.square(shift) * stats.count * size / count
    return RunningStats(count, stats.mean + shift * size / count, spread / count)


def normalize(stats: RunningStats | None, x: jax.Array, *, clip: float = 10.0) -> jax.Array:
    """clip((x - mean) / sqrt(var + 1e-8), +-clip); x itself where there are no statistics."""
    if stats is None:
        return x
    return jnp.clip((x - stats.mean) * jax.lax.rsqrt(stats.var + 1e-8), -clip, clip)


def discounted_sums(start: jax.Array, rewards: jax.Array, done: jax.Array, *, gamma: float):
    """R_t = gamma R_{t-1} (1 - done_{t-1}) + r_t, whose spread is what rewards are divided by.

    Args:
      start: float32[N], gamma R (1 - done) of the step before.
      rewards: float32[T, N].
      done: bool[T, N].
      gamma: discount.

    Returns:
      (float32[N] to start the next rollout with, float32[T, N]).
    """

    def step(carry, at):
        reward, ended = at
        total = carry + reward
        return jnp.where(ended, 0.0, gamma * total), total

    return jax.lax.scan(step, start, (rewards, done))
