"""Losses of preference games: an answer of the policy against an opponent's.

Leaves out who the opponent is, and who judges.
"""

import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_float, as_logps


def nash_md_loss(logps: jax.Array, ref_logps: jax.Array, wins: jax.Array, *, beta: float = 0.1) -> jax.Array:
    """Nash-MD's policy gradient, -sg(P - 1/2 - beta (log pi - log pi_ref)) log pi(y|x) (arXiv 2312.00886, section 7).

    Its expectation over y ~ pi is the gradient of E[P(y > y')] - beta KL(pi || pi_ref) against a fixed opponent y'.
    It is zero at pi ~ pi_ref exp(P(y > opponent) / beta): the Nash equilibrium of the regularised game where the
    opponent is the policy itself, near it where it is the mixture of the policy and a little of the reference.

    Args:
      logps: float[B], log pi(y|x) of answers that the policy has just sampled, in nats.
      ref_logps: float[B], under the reference.
      wins: float[B], P, probability that y is better than the opponent's answer, or 0 and 1 as judged.
      beta: tau of the paper.

    Returns:
      float32[B].

    Raises:
      AssertionError: a rank, shape or dtype is wrong.
    """
    logps, ref_logps = as_logps(1, logps=logps, ref_logps=ref_logps)
    _, wins = as_float(1, logps=logps, wins=wins)
    return -jax.lax.stop_gradient(wins - 0.5 - beta * (logps - ref_logps)) * logps


def exploration_bonus(logps: jax.Array, *, alpha: float) -> jax.Array:
    """XPO's term, alpha log pi(y'|x) of answers y' of the reference: less of what is known (arXiv 2405.21046, alg. 1).

    Args:
      logps: float[B], log pi(y'|x), in nats.
      alpha: of the paper.

    Returns:
      float32[B], to be added to a preference loss.
    """
    return alpha * jnp.asarray(as_logps(1, logps=logps))
