"""Divergence of a policy from its reference: estimators from samples, the exact sum, and the coefficient's control.

Leaves out where the penalty goes: into rewards or into the loss is the script's choice.
"""

import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_float, as_logps, keep

KINDS = ('k1', 'k2', 'k3', 'abs', 'k3_straight')


def kl_estimate(logps: jax.Array, ref_logps: jax.Array, kind: str) -> jax.Array:
    """Per-sample estimate of KL(pi || ref) from samples of pi (Schulman, joschu.net/blog/kl-approx.html).

    With d = log pi - log ref: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d, abs = |d|. `k3_straight` has k3's value
    and k2's gradient, whose expectation is the gradient of the KL (verl's `low_var_kl+`).

    exp takes at most 20, so k3 is finite at any log-ratio; past that its gradient is 0. TRL does not clip; verl clips
    d to +-20 and then k3 to 10.

    Args:
      logps: float[...], log-probabilities of the samples under the policy, in nats.
      ref_logps: as logps, under the reference.
      kind: one of `KINDS`.

    Returns:
      float32 of the inputs' shape, in nats.

    Raises:
      ValueError: an unknown kind.
    """
    logps, ref_logps = as_logps(logps=logps, ref_logps=ref_logps)
    d = logps - ref_logps
    if kind == 'k1':
        return d
    if kind == 'abs':
        return jnp.abs(d)
    k2 = 0.5 * jnp.square(d)
    if kind == 'k2':
        return k2
    # Only the growing side needs a bound: as d grows, exp(-d) vanishes and k3 goes on as d - 1.
    bounded = jnp.maximum(d, -20.0)
    k3 = jnp.expm1(-bounded) + bounded
    if kind == 'k3':
        return k3
    if kind == 'k3_straight':
        return jax.lax.stop_gradient(k3 - k2) + k2
    raise ValueError(f'unknown KL estimate {kind!r}: one of {", ".join(KINDS)}')


def kl_from_logits(logits: jax.Array, ref_logits: jax.Array) -> jax.Array:
    """KL(p || q) = sum_v p_v (log p_v - log q_v) of two categorical distributions, exactly.

    Args:
      logits: float[..., V], unnormalised log-probabilities of p; -inf forbids a token.
      ref_logits: as logits, of q.

    Returns:
      float32[...], in nats; inf where p allows what q forbids.
    """
    logits, ref_logits = as_float(logits=logits, ref_logits=ref_logits)
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    p = jnp.exp(log_p)
    possible = log_p > -jnp.inf  # 0 log 0 = 0
    return jnp.sum(keep(possible, p) * (keep(possible, log_p) - keep(possible, log_q)), axis=-1)


def adaptive_coef(
    coef: jax.Array | float, kl: jax.Array | float, *, target: float, horizon: float, n_steps: float
) -> jax.Array:
    """The next KL coefficient, coef (1 + clip(kl / target - 1, -0.2, 0.2) n_steps / horizon) (arXiv 1909.08593).

    Args:
      coef: float[], the coefficient now.
      kl: float[], mean KL of the last batch, in nats per sequence.
      target: KL to hold, in nats per sequence.
      horizon: samples over which the control acts.
      n_steps: samples in the last batch.

    Returns:
      float32[].
    """
    error = jnp.clip(as_float(kl=kl) / target - 1.0, -0.2, 0.2)
    return as_float(coef=coef) * (1.0 + error * n_steps / horizon)


def fixed_coef(coef: jax.Array | float, kl: jax.Array | float) -> jax.Array:
    """The coefficient as it was, with the signature of `adaptive_coef`."""
    del kl
    return as_float(coef=coef)
