"""Policy-gradient losses that hold entropy up by sparing the tokens that would lose most of it (arXiv 2505.22617).

Entropy falls by the covariance of log-probability and advantage, c_t = (A_t - mean A) (log pi(y_t) - mean log pi). The
means and the selection are over the whole batch, an exception to per-token arithmetic: take these losses on a whole
batch, not on micro-batches. Leaves out aggregation, as `policy_gradient` does, which re-exports both.
"""

import jax
import jax.numpy as jnp

from rlax_ft.losses._tokens import aggregated, prepare
from rlax_ft.ops.arrays import as_float, keep, safe_exp
from rlax_ft.ops.reduce import gather_rows, masked_mean, own_rows


@aggregated('token_mean')
def clip_cov_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    cov_low: float = 1.0,
    cov_high: float = 5.0,
    fraction: float = 2e-4,
    order: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Clip-Cov: PPO's loss, but 0 on a few tokens with cov_low < c_t < cov_high (arXiv 2505.22617, equation 12).

    Of the tokens in that band that PPO's clip does not hold already, max(1, floor(fraction * tokens)) are dropped. The
    paper and verl draw them at random: give `order`. Without it those of the largest c_t are dropped.

    Args:
      logps, old_logps, advantages, mask: as every loss of `policy_gradient`.
      clip_low, clip_high: the ratio's room below and above 1.
      cov_low, cov_high: the band of c_t.
      fraction: of unmasked tokens, how many may be dropped; verl's default.
      order: float[B, T], the highest go first: uniform random numbers for a random choice.
      axis_name: mapped axis over which the batch is split.

    Returns:
      float32[B, T].
    """
    logps, old_logps, advantages, mask = prepare(logps, old_logps, advantages, mask)
    ratio = safe_exp(logps - old_logps)
    plain = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    covariance = _covariance(logps, advantages, mask, axis_name)
    candidates = mask & (clipped <= plain) & (covariance > cov_low) & (covariance < cov_high)
    first = covariance if order is None else as_float(2, logps=logps, order=order)[1]
    dropped = _highest(first, candidates, mask, fraction, axis_name)
    return keep(mask & ~dropped, jnp.maximum(plain, clipped))


@aggregated('token_mean')
def kl_cov_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    fraction: float = 2e-4,
    kl_coef: float = 1.0,
    axis_name: str | None = None,
) -> jax.Array:
    """KL-Cov: -A_t w_t, plus kl_coef |log w_t| on the tokens of the largest c_t (arXiv 2505.22617, equation 13).

    Args:
      logps, old_logps, advantages, mask: as every loss of `policy_gradient`.
      fraction: of unmasked tokens, max(1, floor(fraction * tokens)) get the penalty; verl's default.
      kl_coef: weight of the penalty.
      axis_name: mapped axis over which the batch is split.

    Returns:
      float32[B, T].
    """
    logps, old_logps, advantages, mask = prepare(logps, old_logps, advantages, mask)
    log_ratio = logps - old_logps
    chosen = _highest(_covariance(logps, advantages, mask, axis_name), mask, mask, fraction, axis_name)
    return keep(mask, -advantages * safe_exp(log_ratio) + keep(chosen, kl_coef * jnp.abs(log_ratio)))


def _covariance(logps: jax.Array, advantages: jax.Array, mask: jax.Array, axis_name: str | None) -> jax.Array:
    """c_t, used to choose tokens only, so stopped."""
    logps = jax.lax.stop_gradient(logps)
    centred = [x - masked_mean(x, mask, axis_name=axis_name) for x in (advantages, logps)]
    return jax.lax.stop_gradient(centred[0] * centred[1])


def _highest(x: jax.Array, candidates: jax.Array, mask: jax.Array, fraction: float, axis_name: str | None) -> jax.Array:
    """True on the candidates with the highest x, max(1, floor(fraction * unmasked tokens)) of them at most."""
    x, candidates, mask = (gather_rows(a, axis_name) for a in (x, candidates, mask))
    count = jnp.maximum(1, jnp.floor(fraction * jnp.sum(mask))).astype(jnp.int32)
    order = jnp.argsort(jnp.where(candidates, -x, jnp.inf).reshape(-1), stable=True)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size)).reshape(x.shape)
    return own_rows(candidates & (place < count), axis_name)
