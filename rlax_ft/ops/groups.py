"""Groups of completions of one prompt, beyond their mean: rewards normalised apart, a baseline by token.

Leaves out the plain advantages of a group (returns.py).
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_logps, as_mask, keep
from rlax_ft.ops.reduce import masked_var
from rlax_ft.ops.returns import discounted_returns, group_advantages


def decoupled_advantages(
    rewards: Mapping[str, jax.Array],
    weights: Mapping[str, float],
    group_size: int,
    *,
    scale: str = 'group',
    eps: float = 1e-4,
) -> jax.Array:
    """GDPO: each reward is normalised in its group, then weighed and summed, then the sum over the batch.

    A = (S - mean S) / (std S + eps), S = sum_k w_k (r_k - mean_group r_k) / (std_group r_k + eps) (arXiv 2601.05242;
    TRL's `normalize_then_sum`). Normalised after the sum, two rewards that pull against each other collapse into fewer
    values.

    Args:
      rewards: float[B] by name; rows of one prompt adjacent.
      weights: by name.
      group_size: completions per prompt.
      scale: of each reward, as `group_advantages` takes it.
      eps: added to every standard deviation.

    Returns:
      float32[B].
    """
    each = [weights[name] * group_advantages(r, group_size, scale=scale, eps=eps) for name, r in rewards.items()]
    total = functools.reduce(jnp.add, each)
    return (total - jnp.mean(total)) / (jnp.sqrt(masked_var(total, jnp.ones_like(total))) + eps)


def optimal_token_advantages(
    rewards: jax.Array,
    logps: jax.Array,
    sum_squares: jax.Array,
    mask: jax.Array,
    group_size: int,
    *,
    eps: float = 1e-8,
) -> jax.Array:
    """G_t - B_t with the optimal token baseline B_t = sum_i G_t W_t / (sum_i W_t + eps) (arXiv 2602.07078).

    The sums are over the group's completions that have a t-th token. G_t is the reward from token t on; W_t is the
    squared norm of the gradients up to t by the paper's proxy, sum_{j <= t} (1 - 2 pi(y_j) + sum_v pi_v^2), in logits.
    Where one completion alone goes on its baseline would be its own return: there it is 0, as in a group of one (both
    as verl has it).

    Args:
      rewards: float[B, T], per token (the score on the last); rows of one prompt adjacent, their tokens from 0 on.
      logps: float[B, T], of the sampled tokens, in nats.
      sum_squares: float[B, T], sum_v pi_v^2 of the distribution that each was drawn from.
      mask: [B, T].
      group_size: completions per prompt.
      eps: added to the weights.

    Returns:
      float32[B, T], 0 where masked.
    """
    rewards, logps, sum_squares = as_logps(2, rewards=rewards, logps=logps, sum_squares=sum_squares)
    mask = as_mask(logps.shape, mask=mask)
    returns = discounted_returns(rewards, mask, gamma=1.0)
    energy = jnp.cumsum(keep(mask, 1.0 - 2.0 * jnp.exp(keep(mask, logps)) + keep(mask, sum_squares)), axis=1)
    energy = keep(mask, energy)
    grouped = lambda x: x.reshape(-1, group_size, x.shape[1])  # noqa: E731
    total = jnp.sum(grouped(returns * energy), axis=1, keepdims=True)
    baseline = total / (jnp.sum(grouped(energy), axis=1, keepdims=True) + eps)
    alone = jnp.sum(grouped(mask), axis=1, keepdims=True) < 2
    advantages = grouped(returns) - jnp.where(alone, 0.0, baseline)
    return keep(mask, advantages.reshape(logps.shape))
