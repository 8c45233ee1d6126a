"""Plackett-Luce losses: from rankings of K candidates, with ties, missing candidates and partial rankings.

Leaves out how rankings are collected. With K = 2 these are Bradley-Terry and DPO.
"""

import chex
import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_float, as_logps, as_mask, keep


def plackett_luce_loss(
    scores: jax.Array, ranks: jax.Array, mask: jax.Array | None = None, *, top: int | None = None
) -> jax.Array:
    """-log probability of a ranking under Plackett-Luce (Plackett, 1975; with K = 2, Bradley-Terry).

    sum_i [log sum_{j: rank_j >= rank_i} exp(s_j) - s_i], a sum over places, not divided by K - 1.

    Ties are Breslow's: each of the tied is chosen against all that are tied with it and all below, which keeps them
    exchangeable and pulls their scores together. (Efron's divides the tied part down, and differs by a constant only
    when two are tied in last place.) ListMLE (ICML 2008) is the same loss without ties.

    Args:
      scores: float[B, K]; may be NaN where masked.
      ranks: [B, K], 0 is best; only their order matters; equal ranks are ties.
      mask: bool[B, K], False where a candidate does not exist; None: all exist.
      top: count only the first so many places (a candidate counts when fewer than `top` are strictly better), for
        partial rankings: top=1 with the rest tied is the choice of one out of K. None: all places.

    Returns:
      float32[B], in nats; 0 with fewer than two candidates.

    Raises:
      AssertionError: a rank, shape or dtype is wrong.
    """
    scores, ranks = as_float(2, scores=scores, ranks=as_float(ranks=ranks))
    exists = jnp.ones(scores.shape, bool) if mask is None else as_mask(scores.shape, mask=mask)
    scores = keep(exists, scores)
    return _plackett_luce(scores[:, None, :] - scores[:, :, None], ranks, exists, top)


def plackett_luce_dpo_loss(
    logps: jax.Array,
    ref_logps: jax.Array,
    ranks: jax.Array,
    mask: jax.Array | None = None,
    *,
    beta: float = 0.1,
    top: int | None = None,
) -> jax.Array:
    """DPO on rankings: `plackett_luce_loss` of beta (log pi - log pi_ref) (arXiv 2305.18290, appendix A.3).

    Args:
      logps: float[B, K], log pi(y_k | x), in nats.
      ref_logps: float[B, K], the same under the reference.
      ranks, mask, top: as `plackett_luce_loss`.
      beta: strength of the KL constraint.

    Returns:
      float32[B], in nats; 0 with fewer than two candidates.

    Raises:
      AssertionError: a rank, shape or dtype is wrong.
    """
    logps, ref_logps = as_logps(2, logps=logps, ref_logps=ref_logps)
    _, ranks = as_float(2, logps=logps, ranks=ranks)
    exists = jnp.ones(logps.shape, bool) if mask is None else as_mask(logps.shape, mask=mask)
    ratios = keep(exists, logps) - keep(exists, ref_logps)
    # beta multiplies the difference, as in DPO, so that K = 2 is DPO exactly.
    return _plackett_luce(beta * (ratios[:, None, :] - ratios[:, :, None]), ranks, exists, top)


def _plackett_luce(margins: jax.Array, ranks: jax.Array, exists: jax.Array, top: int | None) -> jax.Array:
    """From margins[b, i, j] = s_j - s_i: sum over places i of softplus(log sum_{rivals j} exp(s_j - s_i))."""
    chex.assert_rank(margins, 3)
    pairs = exists[:, :, None] & exists[:, None, :]
    rivals = pairs & (ranks[:, None, :] >= ranks[:, :, None]) & ~jnp.eye(ranks.shape[1], dtype=bool)
    contested = jnp.any(rivals, axis=2)
    # A place without rivals gets a dummy one, and is dropped below: log sum over nothing has no gradient.
    rivals_or_dummy = rivals | ~contested[:, :, None]
    against = jax.nn.logsumexp(jnp.where(rivals_or_dummy, margins, -jnp.inf), axis=2)
    if top is not None:
        better = jnp.sum(pairs & (ranks[:, None, :] < ranks[:, :, None]), axis=2)
        contested &= better < top
    return jnp.sum(keep(contested, -jax.nn.log_sigmoid(-against)), axis=1)
