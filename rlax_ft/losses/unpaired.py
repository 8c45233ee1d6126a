"""Losses on single answers with a thumb up or down, and the batch-wide baselines that they take.

Leaves out where the baseline's log-probabilities come from: the step pairs each prompt with the next one's answer, so
that data may come in any order.
"""

import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_float, as_logps, as_mask
from rlax_ft.ops.reduce import masked_mean


def kto_loss(
    logps: jax.Array,
    ref_logps: jax.Array,
    desirable: jax.Array,
    kl: jax.Array | float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> jax.Array:
    """KTO: w_D (1 - s(beta (h - kl))) where desirable, else w_U (1 - s(beta (kl - h))) (arXiv 2402.01306, equation 8).

    h = log pi(y|x) - log pi_ref(y|x). With kl = 0 it is TRL's apo_zero_unpaired (arXiv 2408.06266).

    Args:
      logps: float[B], log pi(y | x), in nats.
      ref_logps: float[B], under the reference.
      desirable: bool[B].
      kl: float[], the baseline z_0 of `kto_kl`: clamped at 0, stopped, in nats.
      beta: reward scale.
      desirable_weight, undesirable_weight: of the two kinds, to balance their counts.

    Returns:
      float32[B].

    Raises:
      AssertionError: a rank, shape or dtype is wrong.
    """
    h, desirable = _log_ratio(logps, ref_logps, desirable)
    kl = as_float(0, kl=kl)
    gain = desirable_weight * jax.nn.sigmoid(-beta * (h - kl))
    return jnp.where(desirable, gain, undesirable_weight * jax.nn.sigmoid(-beta * (kl - h)))


def kto_kl(
    logps: jax.Array, ref_logps: jax.Array, mask: jax.Array | None = None, *, axis_name: str | None = None
) -> jax.Array:
    """KTO's baseline z_0 = max(0, mean_i log pi(y_j|x_i) - log pi_ref(y_j|x_i)) over mismatched pairs, stopped.

    Args:
      logps: float[B], log-probability of another prompt's answer, in nats.
      ref_logps: float[B], under the reference.
      mask: [B], rows that count; None: all.
      axis_name: mapped axis over which the batch is split; the mean is then over all devices.

    Returns:
      float32[], in nats.
    """
    logps, ref_logps = as_logps(1, logps=logps, ref_logps=ref_logps)
    mask = jnp.ones(logps.shape, bool) if mask is None else mask
    return jax.lax.stop_gradient(jnp.maximum(masked_mean(logps - ref_logps, mask, axis_name=axis_name), 0.0))


def bco_loss(
    logps: jax.Array, ref_logps: jax.Array, desirable: jax.Array, shift: jax.Array | float, *, beta: float = 0.1
) -> jax.Array:
    """BCO: -log s(beta h - shift) where desirable, else -log s(-(beta h - shift)) (arXiv 2404.04656).

    Args:
      logps, ref_logps, desirable: as `kto_loss`.
      shift: float[], the reward shift delta, in reward units (after beta), see `bco_shift`.
      beta: reward scale.

    Returns:
      float32[B].

    Raises:
      AssertionError: a rank, shape or dtype is wrong.
    """
    h, desirable = _log_ratio(logps, ref_logps, desirable)
    reward = beta * h - as_float(0, shift=shift)
    return -jax.nn.log_sigmoid(jnp.where(desirable, reward, -reward))


def nca_unpaired_loss(logps: jax.Array, ref_logps: jax.Array, desirable: jax.Array, *, beta: float = 0.1) -> jax.Array:
    """NCA on single answers: -log s(beta h) [desirable] - 1/2 log s(-beta h) (arXiv 2402.05369, equation 11 of K = 2).

    The losses of both sides of a pair add up to `preference.nca_loss`.

    Args:
      logps, ref_logps, desirable: as `kto_loss`.
      beta: reward scale.

    Returns:
      float32[B].

    Raises:
      AssertionError: a rank, shape or dtype is wrong.
    """
    h, desirable = _log_ratio(logps, ref_logps, desirable)
    return -jnp.where(desirable, jax.nn.log_sigmoid(beta * h), 0.0) - 0.5 * jax.nn.log_sigmoid(-beta * h)


def apo_zero_unpaired_loss(
    logps: jax.Array, ref_logps: jax.Array, desirable: jax.Array, *, beta: float = 0.1
) -> jax.Array:
    """APO-zero on single answers: 1 - s(beta h) where desirable, else s(beta h) (arXiv 2408.06266; `kto_loss`, kl = 0).

    Args:
      logps, ref_logps, desirable: as `kto_loss`.
      beta: reward scale.

    Returns:
      float32[B], in [0, 1].

    Raises:
      AssertionError: a rank, shape or dtype is wrong.
    """
    h, desirable = _log_ratio(logps, ref_logps, desirable)
    return jax.nn.sigmoid(jnp.where(desirable, -beta * h, beta * h))


def bco_shift(
    logps: jax.Array, ref_logps: jax.Array, desirable: jax.Array, *, beta: float = 0.1, axis_name: str | None = None
) -> jax.Array:
    """BCO's shift of one batch: half the mean reward of desirable plus half that of undesirable answers, stopped.

    The paper and TRL keep a moving average of it (0.9 and 0.5), which is the script's state.

    Args:
      logps, ref_logps, desirable, beta: as `bco_loss`.
      axis_name: mapped axis over which the batch is split.

    Returns:
      float32[], in reward units.
    """
    h, desirable = _log_ratio(logps, ref_logps, desirable)
    means = [masked_mean(beta * h, kind, axis_name=axis_name) for kind in (desirable, ~desirable)]
    return jax.lax.stop_gradient(0.5 * (means[0] + means[1]))


def _log_ratio(logps: jax.Array, ref_logps: jax.Array, desirable: jax.Array) -> tuple[jax.Array, jax.Array]:
    logps, ref_logps = as_logps(1, logps=logps, ref_logps=ref_logps)
    return logps - ref_logps, as_mask(logps.shape, desirable=desirable)
