"""Where preference methods end, by their own theory: distributions over completions that can be enumerated.

log pi_ref and rewards are float[P, Y], of every completion of every prompt; preferences are Bradley-Terry's. DPO, its
rankings, online DPO and XPO end at `enumeration.optimal_policy`. Leaves out training.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def win_rates(rewards: jax.Array, logps: jax.Array) -> jax.Array:
    """P(y beats y') = E_{y' ~ pi} sigma(r(y) - r(y')), float[P, Y]."""
    beats = jax.nn.sigmoid(rewards[:, :, None] - rewards[:, None, :])
    return jnp.einsum('pyz,pz->py', beats, jnp.exp(logps))


def ipo_optimum(ref_logps: jax.Array, rewards: jax.Array, beta: float, sampler: jax.Array | None = None) -> jax.Array:
    """pi ~ pi_ref exp(P(y beats mu) / beta), mu who wrote the pairs, pi_ref where None (arXiv 2310.12036)."""
    wins = win_rates(rewards, ref_logps if sampler is None else sampler)
    return jax.nn.log_softmax(ref_logps + wins / beta, axis=-1)


def sppo_iterate(ref_logps: jax.Array, rewards: jax.Array, beta: float, iterations: int) -> jax.Array:
    """Where SPPO's squared loss ends after so many iterations, of which each takes the policy as the next reference.

    With t = (P(y beats pi_t) - 1/2) / beta and h = log pi / pi_t, it is the least of E_{pi_t}(h - t)^2 over normalised
    pi: h + level e^h = t. The theory's pi_t exp(t) / Z has a constant in place of level e^h; the loss takes log Z for
    1 / (2 beta) (arXiv 2405.00675, equations 3.1 and 4.6).
    """
    logps = ref_logps
    for _ in range(iterations):
        logps = _squared_loss_optimum(logps, (win_rates(rewards, logps) - 0.5) / beta)
    return logps


def _squared_loss_optimum(ref_logps, target):
    def ratio(level):
        return _bisect(lambda h: h + level * jnp.exp(h) > target, target - 40.0, target + 1e-6)

    # E[t] = 0, so that E[exp(t)] >= 1: the level is at least 0.
    too_small = lambda level: jax.nn.logsumexp(ref_logps + ratio(level), axis=-1, keepdims=True) <= 0  # noqa: E731
    zeros = jnp.zeros((target.shape[0], 1))
    return jax.nn.log_softmax(ref_logps + ratio(_bisect(too_small, zeros, zeros + 40.0)), axis=-1)


def game_optimum(
    ref_logps: jax.Array, rewards: jax.Array, beta: float, opponent: Callable | None = None, *, rounds: int = 200
) -> jax.Array:
    """The fixed point pi ~ pi_ref exp(P(y beats opponent(pi)) / beta) (arXiv 2312.00886).

    Against itself (None) that is the Nash equilibrium of the game that is regularised by beta.

    Args:
      ref_logps, rewards, beta: as above.
      opponent: `log pi -> log of the opponent's distribution`, float[P, Y] both.
      rounds: of a damped iteration.
    """

    def improve(_, logps):
        wins = win_rates(rewards, logps if opponent is None else opponent(logps))
        return jax.nn.log_softmax(0.5 * logps + 0.5 * (ref_logps + wins / beta), axis=-1)

    return jax.lax.fori_loop(0, rounds, improve, ref_logps)


def kto_optimum(
    ref_logps: jax.Array,
    good: jax.Array,
    beta: float,
    *,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> jax.Array:
    """KTO's own optimum at its baseline 0: no tilted reference, since the loss saturates (arXiv 2402.01306).

    Over pi = u pi_ref it maximises E_{y ~ pi_ref}[a s(beta log u)] with a(y) = w_D p - w_U (1 - p), p = P(y is good):
    a beta u^(beta - 1) / (1 + u^beta)^2 is the same for all y of a prompt. Where a <= 0 the optimum is u = 0.

    Args:
      ref_logps: float[P, Y], also of who wrote the answers.
      good: float[P, Y], p.
      beta: below 1, where the solution is unique.
      desirable_weight, undesirable_weight: w_D and w_U.
    """
    a = desirable_weight * good - undesirable_weight * (1.0 - good)

    def log_u(log_level):
        """log u of every y at which the expression above has that value; it falls with u."""

        def low_enough(at):
            value = jnp.log(jnp.maximum(a, 1e-30) * beta) + (beta - 1.0) * at - 2.0 * jax.nn.softplus(beta * at)
            return value <= log_level

        return jnp.where(a > 0, _bisect(low_enough, jnp.full(a.shape, -60.0), jnp.full(a.shape, 60.0)), -jnp.inf)

    too_small = lambda level: jax.nn.logsumexp(ref_logps + log_u(level), axis=-1, keepdims=True) <= 0  # noqa: E731
    far = jnp.full((a.shape[0], 1), 60.0)
    return jax.nn.log_softmax(ref_logps + log_u(_bisect(too_small, -far, far)), axis=-1)


def _bisect(holds: Callable, low: jax.Array, high: jax.Array) -> jax.Array:
    """Where a condition begins to hold, between where it does not and where it does; elementwise."""

    def halve(_, ends):
        middle = 0.5 * (ends[0] + ends[1])
        there = holds(middle)
        return jnp.where(there, ends[0], middle), jnp.where(there, middle, ends[1])

    low, high = jax.lax.fori_loop(0, 60, halve, (low, high))
    return 0.5 * (low + high)
