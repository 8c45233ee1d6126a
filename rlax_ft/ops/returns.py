"""Advantages and returns: from rewards to what weighs a policy gradient.

Leaves out rewards themselves, and stopping gradients: the inputs are data.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_float, as_mask, keep
from rlax_ft.ops.reduce import masked_var, masked_whiten


def gae(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    discounts: jax.Array,
    traces: jax.Array,
    *,
    lam: float,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation, with termination and truncation apart (arXiv 1506.02438).

    delta_t = r_t + discounts_t V'_t - V_t and A_t = delta_t + discounts_t lam traces_t A_{t+1}.

    Args:
      rewards: float[T, N], time-major.
      values: float[T, N], V of the observation at t.
      next_values: float[T, N], V of the observation that followed, the final one where an episode was cut.
      discounts: float[T, N], gamma, and 0 where terminated: nothing follows, and `next_values` may be anything there.
      traces: float[T, N], 0 where terminated or truncated, else 1.
      lam: in [0, 1].

    Returns:
      (advantages, targets = advantages + values), each float32[T, N].

    Raises:
      AssertionError: a shape differs.
    """
    rewards, values, next_values, discounts, traces = as_float(
        rewards=rewards, values=values, next_values=next_values, discounts=discounts, traces=as_float(traces=traces)
    )
    deltas = rewards + discounts * keep(discounts != 0, next_values) - values

    def step(advantage: jax.Array, at: Any):
        delta, decay = at
        advantage = delta + decay * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(
        step, jnp.zeros_like(deltas[0]), (deltas, discounts * lam * traces), reverse=True, unroll=16
    )
    return advantages, advantages + values


def token_gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, *, gamma: float, lam: float
) -> tuple[jax.Array, jax.Array]:
    """GAE over the unmasked tokens of each row, as though masked tokens (padding, tool output) were not there.

    delta_t = r_t + gamma V_next - V_t and A_t = delta_t + gamma lam A_next, where `next` is the row's next unmasked
    token, and 0 after the last. The advantages are not whitened; verl whitens here, TRL's PPO after.

    Args:
      rewards: float[B, T]; a reward on a masked token is not seen.
      values: float[B, T].
      mask: [B, T].
      gamma: discount per token.
      lam: in [0, 1].

    Returns:
      (advantages, returns = advantages + values), each float32[B, T], 0 where masked.

    Raises:
      AssertionError: a shape differs.
    """
    rewards, values = as_float(2, rewards=rewards, values=values)
    mask = as_mask(rewards.shape, mask=mask)
    rewards, values = keep(mask, rewards, values)

    def step(carry: Any, at: Any):
        reward, value, real = at
        advantage = reward + gamma * carry[0] - value + gamma * lam * carry[1]
        carry = jnp.where(real, value, carry[0]), jnp.where(real, advantage, carry[1])
        return carry, carry[1]

    start = jnp.zeros_like(values[:, 0]), jnp.zeros_like(rewards[:, 0] + values[:, 0])
    _, advantages = jax.lax.scan(step, start, (rewards.T, values.T, mask.T), reverse=True)
    return keep(mask, advantages.T, advantages.T + values)


def vtrace(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    discounts: jax.Array,
    traces: jax.Array,
    log_rhos: jax.Array,
    *,
    lam: jax.Array | float = 1.0,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
    clip_pg_rho: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """V-trace: GAE's time-major sum with truncated importance weights (arXiv 1802.01561).

    With rho = exp(log_rho): delta_t = min(clip_rho, rho_t) (r_t + discounts_t V'_t - V_t),
    v_t - V_t = delta_t + discounts_t traces_t lam min(clip_c, rho_t) (v_{t+1} - V_{t+1}), and the advantage is
    min(clip_pg_rho, rho_t) (r_t + discounts_t v_{t+1} - V_t), with V'_t in place of v_{t+1} where the trace is cut.

    Args:
      rewards, values, next_values, discounts, traces: float[T, N], as `gae`.
      log_rhos: float[T, N], log pi(a|s) - log mu(a|s); clipped to +-20.
      lam: in [0, 1].
      clip_rho: bound that fixes which policy's value is found.
      clip_c: bound on the trace, which fixes how fast.
      clip_pg_rho: bound on the weight of the advantage.

    Returns:
      (advantages, targets v), each float32[T, N].

    Raises:
      AssertionError: a shape differs.
    """
    rewards, values, next_values, discounts, traces, log_rhos = as_float(
        rewards=rewards, values=values, next_values=next_values, discounts=discounts, traces=traces, log_rhos=log_rhos
    )
    next_values = keep(discounts != 0, next_values)
    rhos = jnp.exp(jnp.clip(log_rhos, -20.0, 20.0))
    deltas = jnp.minimum(clip_rho, rhos) * (rewards + discounts * next_values - values)
    decays = discounts * traces * lam * jnp.minimum(clip_c, rhos)

    def step(excess: jax.Array, at: Any):
        delta, decay = at
        return delta + decay * excess, excess  # the excess of t + 1 goes out with t

    last, following = jax.lax.scan(step, jnp.zeros_like(deltas[0]), (deltas, decays), reverse=True)
    excess = jnp.concatenate([last[None], following[:-1]])
    corrected_next = next_values + traces * following
    advantages = jnp.minimum(clip_pg_rho, rhos) * (rewards + discounts * corrected_next - values)
    return advantages, values + excess


def group_advantages(
    rewards: jax.Array,
    group_size: int,
    *,
    baseline: str = 'mean',
    scale: str = 'group',
    eps: float = 1e-4,
    axis_name: str | None = None,
) -> jax.Array:
    """(r - baseline) / (scale + eps) within groups of completions of one prompt.

    - GRPO (arXiv 2402.03300): baseline mean, scale group; eps 1e-4 in TRL, 1e-6 in verl; the std is unbiased in both.
    - Dr. GRPO (arXiv 2503.20783): baseline mean, scale none.
    - RLOO (arXiv 2402.14740): baseline leave_one_out, the mean of the others; scale none.
    - scale batch: std of the rewards of the whole batch (TRL's `scale_rewards='batch'`, arXiv 2508.08221).
    - MaxRL (arXiv 2602.02710): baseline mean, scale mean, which divides by the group's mean reward + eps in place of
      its std: for rewards of 0 and 1, whose likelihood it maximises. A group without success gives 0.

    A group of one has no spread (std 0) and no others (leave-one-out baseline 0): mean gives 0 as TRL does, while
    verl leaves the reward as it is, which here is baseline none, scale none.

    Args:
      rewards: float[B]; rows of one prompt adjacent, B a multiple of group_size. Integers are taken as floats.
      group_size: G, completions per prompt.
      baseline: mean, leave_one_out or none.
      scale: group, batch, mean or none.
      eps: added to the standard deviation (or mean), in reward units.
      axis_name: mapped axis over which the batch is split by whole groups; read by scale batch alone.

    Returns:
      float32[B].

    Raises:
      ValueError: an unknown baseline or scale, or B is not a multiple of group_size.
    """
    rewards = as_float(1, rewards=rewards)
    if group_size < 1 or rewards.shape[0] % group_size:
        raise ValueError(f'group_size {group_size} does not divide the {rewards.shape[0]} rewards')
    groups = rewards.reshape(-1, group_size)
    mean = jnp.mean(groups, axis=1, keepdims=True)
    others = max(group_size - 1, 1)
    baselines = {
        'mean': mean,
        'leave_one_out': (jnp.sum(groups, axis=1, keepdims=True) - groups) / others,
        'none': jnp.zeros_like(mean),
    }
    if baseline not in baselines:
        raise ValueError(f'unknown baseline {baseline!r}: one of {", ".join(baselines)}')
    advantages = groups - baselines[baseline]
    if scale == 'group':
        advantages /= jnp.sqrt(jnp.sum(jnp.square(groups - mean), axis=1, keepdims=True) / others) + eps
    elif scale == 'batch':
        advantages /= jnp.sqrt(masked_var(rewards, jnp.ones_like(rewards), axis_name=axis_name)) + eps
    elif scale == 'mean':
        advantages /= mean + eps
    elif scale != 'none':
        raise ValueError(f'unknown scale {scale!r}: one of group, batch, mean, none')
    return advantages.reshape(-1)


def discounted_returns(rewards: jax.Array, mask: jax.Array, *, gamma: float) -> jax.Array:
    """G_t = r_t + gamma G_next over the unmasked tokens of each row; float[B, T], [B, T] -> float32[B, T]."""
    return token_gae(rewards, jnp.zeros_like(as_float(rewards=rewards)), mask, gamma=gamma, lam=1.0)[1]


def reinforce_pp_advantages(
    rewards: jax.Array, mask: jax.Array, *, gamma: float = 1.0, axis_name: str | None = None
) -> jax.Array:
    """REINFORCE++: discounted returns, whitened over all tokens of the global batch (arXiv 2501.03262).

    Args:
      rewards: float[B, T], per token (score on the last token, KL penalty on each).
      mask: [B, T].
      gamma: discount per unmasked token.
      axis_name: mapped axis over which the batch is split.

    Returns:
      float32[B, T], 0 where masked.
    """
    return masked_whiten(discounted_returns(rewards, mask, gamma=gamma), mask, axis_name=axis_name)


def reinforce_pp_baseline_advantages(
    rewards: jax.Array, mask: jax.Array, group_size: int, *, axis_name: str | None = None
) -> jax.Array:
    """REINFORCE++ with a baseline: r minus its group mean on each token, whitened over all tokens (arXiv 2501.03262).

    Args:
      rewards: float[B], one per completion; rows of one prompt adjacent.
      mask: [B, T].
      group_size: completions per prompt.
      axis_name: mapped axis over which the batch is split by whole groups.

    Returns:
      float32[B, T], 0 where masked.
    """
    centred = group_advantages(rewards, group_size, baseline='mean', scale='none')
    mask = as_mask((centred.shape[0], *jnp.shape(mask)[1:]), mask=mask)
    return masked_whiten(jnp.broadcast_to(centred[:, None], mask.shape), mask, axis_name=axis_name)


def token_rewards(
    scores: jax.Array, mask: jax.Array, kl: jax.Array | float | None = None, *, kl_coef: jax.Array | float = 0.0
) -> jax.Array:
    """Per-token rewards: -kl_coef kl_t on each token, plus the score on the row's last unmasked token.

    The score goes on the token that was sampled last, never on the first PAD after it.

    Args:
      scores: float[B], one per completion.
      mask: [B, T], True on sampled tokens.
      kl: float[B, T], per-token KL estimate in nats, or None.
      kl_coef: weight of the KL.

    Returns:
      float32[B, T], 0 where masked.
    """
    scores = as_float(1, scores=scores)
    mask = as_mask((scores.shape[0], *jnp.shape(mask)[1:]), mask=mask)
    after = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
    rewards = jnp.where(mask & (after == 1), scores[:, None], 0.0)
    return rewards if kl is None else rewards - kl_coef * keep(mask, as_float(2, kl=kl))


def overlong_penalty(lengths: jax.Array, *, max_len: int, cache: int) -> jax.Array:
    """DAPO's soft overlong shaping, a reward in [-1, 0] (arXiv 2503.14476).

    0 up to max_len - cache, then (max_len - cache - length) / cache, and -1 beyond max_len.

    Args:
      lengths: [B], completion lengths in tokens.
      max_len: tokens beyond which the penalty is whole.
      cache: tokens over which it grows, above 0.

    Returns:
      float32[B], to be added to the reward.
    """
    return jnp.clip((max_len - cache - as_float(lengths=lengths)) / cache, -1.0, 0.0)
