"""A policy-gradient loss whose trust region is a divergence of distributions, not a ratio of probabilities: DPPO.

Leaves out aggregation, as `policy_gradient` does, which re-exports it.
"""

import jax
import jax.numpy as jnp

from rlax_ft.losses._tokens import aggregated, prepare
from rlax_ft.ops.arrays import keep, safe_exp


@aggregated('token_mean')
def dppo_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    divergence: str = 'tv',
    clip_low: float = 0.15,
    clip_high: float = 0.15,
    cap: float = 20.0,
) -> jax.Array:
    """DPPO, -M_t sg(min(w_t, cap)) A_t log pi(y_t) with a mask M_t of the trust region (arXiv 2602.04879).

    M_t is 0 where the update would move a token on that has left the region already: A_t > 0, p > q and D > clip_high,
    or A_t <= 0, p < q and D > clip_low, where p = pi(y_t), q = pi_old(y_t); else 1. D is the divergence of the two
    distributions over {y_t, anything else}, the paper's binary approximation: total variation |p - q|, or
    KL(q || p) = q log(q / p) + (1 - q) log((1 - q) / (1 - p)). The gradient is that of -M_t w_t A_t where w_t <= cap;
    unlike PPO's clip, rare tokens may change their ratio a lot, and frequent ones only a little. Leaves out the
    paper's top-K approximation, which needs more than the sampled token's probabilities.

    Args:
      logps, advantages, mask: see the top of `policy_gradient`.
      old_logps: float[B, T], of the policy that sampled, to which the region is anchored.
      divergence: tv or kl.
      clip_low, clip_high: bounds of D for a token that grows rarer and more frequent; 0.15 suits tv, 0.05 kl.
      cap: bound on the ratio.

    Returns:
      float32[B, T].

    Raises:
      ValueError: an unknown divergence.
    """
    if divergence not in ('tv', 'kl'):
        raise ValueError(f'divergence is tv or kl, got {divergence!r}')
    logps, old_logps, advantages, mask = prepare(logps, old_logps, advantages, mask)
    p, q = jnp.exp(jax.lax.stop_gradient(logps)), jnp.exp(old_logps)
    if divergence == 'tv':
        distance = jnp.abs(p - q)
    else:
        rest = lambda x: jnp.log(jnp.maximum(1.0 - x, 1e-8))  # noqa: E731
        distance = q * (old_logps - jax.lax.stop_gradient(logps)) + (1.0 - q) * (rest(q) - rest(p))
    left = jnp.where(advantages > 0, (p > q) & (distance > clip_high), (p < q) & (distance > clip_low))
    weight = keep(~left, jnp.minimum(safe_exp(jax.lax.stop_gradient(logps) - old_logps), cap))
    return keep(mask, -weight * advantages * logps)
