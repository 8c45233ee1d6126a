"""Policies small enough to enumerate: their distribution, the optimum, and how far one is from the other, computed.

Leaves out sampling of any kind.
"""

import jax
import jax.numpy as jnp

from rlax_ft.models.scoring import sequence_logps
from rlax_ft.types import ApplyFn, TokenBatch


def enumerate_policy(apply: ApplyFn, variables, rows: TokenBatch, *, prompts: int) -> jax.Array:
    """log pi(y | x) of every completion of every prompt, normalised over the completions.

    Args:
      apply: `Transformer.apply`.
      variables: its variables.
      rows: TokenBatch [P * Y, T], every completion of the first prompt, then of the second, and so on.
      prompts: P.

    Returns:
      float32[P, Y]. Normalising takes away what the model spends on tokens that no completion has.
    """
    logps = sequence_logps(apply, variables, rows).reshape(prompts, -1)
    return jax.nn.log_softmax(logps, axis=-1)


def optimal_policy(ref_logps: jax.Array, rewards: jax.Array, beta: float) -> jax.Array:
    """log pi*(y | x) = log pi_ref + r / beta - log Z, float[P, Y] (arXiv 2305.18290, eq. 4)."""
    return jax.nn.log_softmax(ref_logps + rewards / beta, axis=-1)


def kl_divergence(logps: jax.Array, other: jax.Array) -> jax.Array:
    """Mean over prompts of KL(pi || other) = sum_y pi (log pi - log other), in nats."""
    return jnp.mean(jnp.sum(jnp.exp(logps) * (logps - other), axis=-1))


def objective(logps: jax.Array, ref_logps: jax.Array, rewards: jax.Array, beta: float) -> jax.Array:
    """J(pi) = E_pi[r] - beta KL(pi || pi_ref), the mean over prompts; J(pi*) - J(pi) = beta KL(pi || pi*)."""
    return jnp.mean(jnp.sum(jnp.exp(logps) * rewards, axis=-1)) - beta * kl_divergence(logps, ref_logps)
