"""Advantages from rewards of single steps of a completion (process supervision).

Leaves out where the steps end, and what they are worth (rewards/process.py).
"""

import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_float, as_mask, keep


def process_group_advantages(
    rewards: jax.Array, ends: jax.Array, mask: jax.Array, group_size: int, *, scale: bool = True, eps: float = 1e-4
) -> jax.Array:
    """A_t = sum of (r_j - mean) / (std + eps) over the steps j that end at t or later (GRPO, arXiv 2402.03300, 4.1.3).

    Mean and (unbiased) standard deviation are over all steps of a group's completions.

    Args:
      rewards: float[B, T], a step's reward on the token that ends it; not read elsewhere.
      ends: [B, T], True where a step ends.
      mask: [B, T], True on sampled tokens.
      group_size: completions of one prompt; adjacent, B a multiple of it.
      scale: divide by the standard deviation.
      eps: added to it.

    Returns:
      float32[B, T], 0 where masked.

    Raises:
      AssertionError: a rank or shape is wrong.
      ValueError: B is not a multiple of group_size.
    """
    rewards = as_float(2, rewards=rewards)
    mask = as_mask(rewards.shape, mask=mask)
    ends = as_mask(rewards.shape, ends=ends) & mask
    if group_size < 1 or rewards.shape[0] % group_size:
        raise ValueError(f'group_size {group_size} does not divide the {rewards.shape[0]} completions')
    by_group = lambda x: x.reshape(-1, group_size * x.shape[1])  # noqa: E731
    steps, there = by_group(keep(ends, rewards)), by_group(ends)
    count = jnp.sum(there, axis=1, keepdims=True)
    mean = jnp.sum(steps, axis=1, keepdims=True) / jnp.maximum(count, 1)
    centred = keep(there, steps - mean)
    if scale:
        variance = jnp.sum(jnp.square(centred), axis=1, keepdims=True) / jnp.maximum(count - 1, 1)
        centred /= jnp.sqrt(variance) + eps
    following = jnp.cumsum(centred.reshape(rewards.shape)[:, ::-1], axis=1)[:, ::-1]
    return keep(mask, following)
