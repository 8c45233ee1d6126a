"""Policy-gradient losses: `f(logps, old_logps, advantages, mask, *, hyperparameters) -> float32[B, T]`.

Per-token losses before `ops.reduce.aggregate`. Throughout, w_t = exp(log pi(y_t) - log pi_old(y_t)), with log-ratios
clipped to +-20 before exp, A_t is the advantage, |y| the number of unmasked tokens of the row, and sg stops the
gradient. Every loss takes

  logps: float[B, T], log-probabilities of the sampled tokens under the policy, in nats;
  old_logps: float[B, T], under the policy that sampled them (or the one at the start of the update);
  advantages: float[B, T], data: the caller has stopped them;
  mask: [B, T], True on sampled tokens;

is 0 with gradient 0 where masked, and raises AssertionError where a rank, shape or dtype is wrong. Losses of whole
sequences read a row as one sequence, so their rows must not be packed. The attribute `aggregate` of a loss is the mode
of `ops.reduce.aggregate` that its paper takes. Leaves out KL and entropy terms, which are added outside, and
`importance_weights`, which are multiplied outside.
"""

import jax
import jax.numpy as jnp

from rlax_ft.losses._tokens import aggregated, prepare, row_mean
from rlax_ft.losses.covariance import clip_cov_loss, kl_cov_loss
from rlax_ft.losses.divergence import dppo_loss
from rlax_ft.ops.arrays import as_logps, as_mask, keep, safe_exp

__all__ = [
    'aggregated',
    'cispo_loss',
    'clip_cov_loss',
    'dppo_loss',
    'gmpo_loss',
    'gspo_loss',
    'gspo_token_loss',
    'importance_weights',
    'kl_cov_loss',
    'luspo_loss',
    'off_policy_mask',
    'ppo_clip_loss',
    'reinforce_loss',
    'sapo_loss',
    'vespo_loss',
]


@aggregated('seq_mean_token_sum')
def reinforce_loss(logps: jax.Array, old_logps: jax.Array, advantages: jax.Array, mask: jax.Array) -> jax.Array:
    """REINFORCE, -A_t log pi(y_t) (Williams, 1992); `old_logps` is not read.

    Returns:
      float32[B, T]; the gradient of the expected reward is that of `seq_mean_token_sum`.
    """
    logps, _, advantages, mask = prepare(logps, logps if old_logps is None else old_logps, advantages, mask)
    return keep(mask, -advantages * logps)


@aggregated('token_mean')
def ppo_clip_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> jax.Array:
    """PPO, -min(w_t A_t, clip(w_t, 1 - clip_low, 1 + clip_high) A_t) (arXiv 1707.06347).

    With dual_clip = c > 1 the loss of a negative advantage is at most c |A_t| (arXiv 1912.09729; TRL's `delta`, verl's
    `clip_ratio_c`, which is 3 there and off in TRL). clip_high above clip_low is DAPO's clip-higher (arXiv 2503.14476).

    Args:
      logps, old_logps, advantages, mask: see the top of the file.
      clip_low: the ratio's room below 1; 1 means no lower bound.
      clip_high: the ratio's room above 1.
      dual_clip: bound on the ratio under negative advantages; None: none.

    Returns:
      float32[B, T].

    Raises:
      ValueError: dual_clip is a number of at most 1.
    """
    logps, old_logps, advantages, mask = prepare(logps, old_logps, advantages, mask)
    return keep(mask, _clipped(safe_exp(logps - old_logps), advantages, clip_low, clip_high, dual_clip))


@aggregated('seq_mean_token_mean')
def gspo_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    dual_clip: float | None = None,
) -> jax.Array:
    """GSPO, PPO's clip on the sequence ratio s = exp(1/|y| sum_t log w_t) (arXiv 2507.18071, equation 5).

    Each unmasked token carries -min(s A_t, clip(s) A_t), whose gradient reaches every token of the row.

    Args:
      logps, old_logps, advantages, mask, dual_clip: as `ppo_clip_loss`.
      clip_low, clip_high: room of the sequence ratio; the paper's, far below PPO's, since s is a geometric mean.

    Returns:
      float32[B, T]; aggregate with `seq_mean_token_mean`.
    """
    logps, old_logps, advantages, mask = prepare(logps, old_logps, advantages, mask)
    ratio = safe_exp(row_mean(logps - old_logps, mask))
    return keep(mask, _clipped(ratio, advantages, clip_low, clip_high, dual_clip))


@aggregated('seq_mean_token_mean')
def gspo_token_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    dual_clip: float | None = None,
) -> jax.Array:
    """GSPO-token, PPO's clip on s_t = sg(s) pi(y_t) / sg(pi(y_t)) with GSPO's s (arXiv 2507.18071, equation 14).

    The value is GSPO's; the gradient of token t's loss reaches token t alone, so advantages may differ within a row.

    Args:
      logps, old_logps, advantages, mask, clip_low, clip_high, dual_clip: as `gspo_loss`.

    Returns:
      float32[B, T]; aggregate with `seq_mean_token_mean`.
    """
    logps, old_logps, advantages, mask = prepare(logps, old_logps, advantages, mask)
    sequence = row_mean(logps - old_logps, mask)
    ratio = safe_exp(jax.lax.stop_gradient(sequence - logps) + logps)
    return keep(mask, _clipped(ratio, advantages, clip_low, clip_high, dual_clip))


@aggregated('seq_mean_token_sum')
def luspo_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    dual_clip: float | None = None,
) -> jax.Array:
    """LUSPO, GSPO with each sequence weighed by its length, -|y| min(s A, clip(s) A) (arXiv 2602.05261; TRL's luspo).

    The tokens carry GSPO's value; the length comes in as their sum, so that long answers are not made light of.

    Args:
      logps, old_logps, advantages, mask, clip_low, clip_high, dual_clip: as `gspo_loss`.

    Returns:
      float32[B, T]; aggregate with `seq_mean_token_sum`, by which alone it differs from GSPO.
    """
    how = dict(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    return gspo_loss(logps, old_logps, advantages, mask, **how)


@aggregated('token_mean')
def cispo_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_low: float = 1.0,
    clip_high: float = 4.0,
) -> jax.Array:
    """CISPO, -sg(clip(w_t, 1 - clip_low, 1 + clip_high)) A_t log pi(y_t) (arXiv 2506.13585).

    No token loses its gradient. The paper has no lower bound (clip_low = 1). TRL bounds the ratio by epsilon_high
    itself (5 is its advice: clip_high = 4, the default here) without a lower one; verl clips to [1 - low, 1 + high]
    with PPO's 0.2.

    Args:
      logps, old_logps, advantages, mask: see the top of the file.
      clip_low, clip_high: the ratio's room below and above 1.

    Returns:
      float32[B, T].
    """
    logps, old_logps, advantages, mask = prepare(logps, old_logps, advantages, mask)
    ratio = jnp.clip(safe_exp(logps - old_logps), 1.0 - clip_low, 1.0 + clip_high)
    return keep(mask, -jax.lax.stop_gradient(ratio) * advantages * logps)


@aggregated('seq_mean_token_mean')
def gmpo_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_low: float = 0.4,
    clip_high: float = 0.4,
) -> jax.Array:
    """GMPO, -A exp(1/|y| sum_t l_t): the geometric mean of clipped token ratios (arXiv 2507.20673; verl's geo_mean).

    l_t = log w_t clipped to [-clip_low, clip_high] on the side that PPO's min would choose: below clip_high where
    A_t >= 0, above -clip_low where A_t < 0. A is the row's mean advantage. The bounds are on log-ratios (+-0.4 in the
    paper and in TRL).

    Args:
      logps, old_logps, advantages, mask: see the top of the file; advantages constant within a row.
      clip_low, clip_high: room of the log-ratio below and above 0, in nats.

    Returns:
      float32[B, T], the row's value on each unmasked token; aggregate with `seq_mean_token_mean`.
    """
    logps, old_logps, advantages, mask = prepare(logps, old_logps, advantages, mask)
    log_ratio = jnp.clip(logps - old_logps, -20.0, 20.0)
    bounded = jnp.where(advantages >= 0, jnp.minimum(log_ratio, clip_high), jnp.maximum(log_ratio, -clip_low))
    value = -row_mean(advantages, mask) * safe_exp(row_mean(bounded, mask))
    return keep(mask, jnp.broadcast_to(value, logps.shape))


@aggregated('seq_mean_token_mean')
def sapo_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
) -> jax.Array:
    """SAPO, a sigmoid gate in place of the clip, -A_t (4 / tau) sigmoid(tau (w_t - 1)) (arXiv 2511.20347).

    Args:
      logps, old_logps, advantages, mask: see the top of the file.
      tau_pos: sharpness of the gate where A_t > 0.
      tau_neg: the same elsewhere.

    Returns:
      float32[B, T]; aggregate with `seq_mean_token_mean`.
    """
    logps, old_logps, advantages, mask = prepare(logps, old_logps, advantages, mask)
    tau = jnp.where(advantages > 0, tau_pos, tau_neg)
    gate = 4.0 / tau * jax.nn.sigmoid(tau * (safe_exp(logps - old_logps) - 1.0))
    return keep(mask, -advantages * gate)


@aggregated('token_mean')
def vespo_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    k_pos: float = 2.0,
    lambda_pos: float = 3.0,
    k_neg: float = 3.0,
    lambda_neg: float = 2.0,
) -> jax.Array:
    """VESPO, -sg(phi(W)) A_t log pi(y_t), phi(W) = W^k exp(lambda (1 - W)), W = prod_t w_t (arXiv 2602.10693).

    phi(1) = 1, and phi falls off on both sides: a soft trust region on the whole sequence. TRL multiplies W by the
    sampler mismatch too; here `old_logps` are then the sampler's.

    Args:
      logps, old_logps, advantages, mask: see the top of the file.
      k_pos, lambda_pos: shape of phi where A_t >= 0.
      k_neg, lambda_neg: the same where A_t < 0.

    Returns:
      float32[B, T].
    """
    logps, old_logps, advantages, mask = prepare(logps, old_logps, advantages, mask)
    log_w = jnp.clip(jnp.sum(jnp.clip(logps - old_logps, -20.0, 20.0), axis=1, keepdims=True), -20.0, 20.0)
    k = jnp.where(advantages >= 0, k_pos, k_neg)
    rate = jnp.where(advantages >= 0, lambda_pos, lambda_neg)
    phi = jnp.exp(k * log_w + rate * (1.0 - jnp.exp(log_w)))
    return keep(mask, -jax.lax.stop_gradient(phi) * advantages * logps)


def importance_weights(
    train_logps: jax.Array,
    rollout_logps: jax.Array,
    mask: jax.Array,
    *,
    level: str = 'token',
    mode: str = 'truncate',
    cap: float = 3.0,
    floor: float = 0.0,
) -> jax.Array:
    """Weights exp(train - rollout) for a sampler whose numbers differ from the trainer's, to multiply a loss by.

    Truncated importance sampling: truncate clips to [floor, cap]; mask drops to 0 what is outside (arXiv 2510.18855;
    TRL's `vllm_importance_sampling_mode`, whose default is sequence and mask with a cap of 3).

    Args:
      train_logps: float[B, T], of the sampled tokens under the trainer's forward pass, in nats.
      rollout_logps: float[B, T], as the sampler reported them.
      mask: [B, T].
      level: token, or sequence (the product over the row, on each of its tokens).
      mode: truncate or mask.
      cap, floor: bounds of the weight.

    Returns:
      float32[B, T], stopped, 0 where masked.

    Raises:
      ValueError: an unknown level or mode.
    """
    if level not in ('token', 'sequence') or mode not in ('truncate', 'mask'):
        raise ValueError(f'level is token or sequence, mode is truncate or mask: got {level!r}, {mode!r}')
    train_logps, rollout_logps = as_logps(2, train_logps=train_logps, rollout_logps=rollout_logps)
    mask = as_mask(train_logps.shape, mask=mask)
    log_ratio = keep(mask, train_logps) - keep(mask, rollout_logps)
    if level == 'sequence':
        log_ratio = jnp.broadcast_to(jnp.sum(log_ratio, axis=1, keepdims=True), mask.shape)
    weights = safe_exp(log_ratio)
    inside = (weights >= floor) & (weights <= cap)
    weights = jnp.clip(weights, floor, cap) if mode == 'truncate' else keep(inside, weights)
    return jax.lax.stop_gradient(keep(mask, weights))


def off_policy_mask(
    logps: jax.Array, rollout_logps: jax.Array, advantages: jax.Array, mask: jax.Array, *, threshold: float
) -> jax.Array:
    """Drops bad sequences that the policy has moved away from, to multiply a loss by (arXiv 2512.02556, equation 9).

    0 where A_t < 0 and the row's mean of log pi_rollout - log pi is above the threshold, else 1.

    Args:
      logps, advantages, mask: see the top of the file.
      rollout_logps: float[B, T], as the sampler reported them.
      threshold: in nats per token.

    Returns:
      float32[B, T], stopped, 0 where masked.
    """
    logps, rollout_logps, advantages, mask = prepare(logps, rollout_logps, advantages, mask)
    kept = (advantages >= 0) | (row_mean(rollout_logps - logps, mask) <= threshold)
    return jax.lax.stop_gradient((kept & mask).astype(logps.dtype))


def _clipped(
    ratio: jax.Array, advantages: jax.Array, clip_low: float, clip_high: float, dual_clip: float | None
) -> jax.Array:
    """-min(w A, clip(w) A), and at most dual_clip |A| where A < 0."""
    if isinstance(dual_clip, int | float) and dual_clip <= 1:
        raise ValueError(f'dual_clip must be above 1, got {dual_clip}')
    loss = -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantages)
    if dual_clip is None:
        return loss
    return jnp.where(advantages < 0, jnp.minimum(loss, -dual_clip * advantages), loss)
