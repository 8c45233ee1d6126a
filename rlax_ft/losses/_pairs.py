"""What every preference loss does with a PairLogps before its formula: check, promote, subtract the reference.

Leaves out the formulas, which are in `preference`.
"""

import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_float, as_logps, as_per_example
from rlax_ft.types import PairLogps


def policy_logps(pair: PairLogps) -> tuple[jax.Array, jax.Array]:
    """(chosen, rejected) under the policy, each float32[B]."""
    return as_logps(1, chosen=pair.chosen, rejected=pair.rejected)


def log_ratios(pair: PairLogps) -> tuple[jax.Array, jax.Array]:
    """(log pi/pi_ref of chosen, of rejected), each float32[B].

    Raises:
      ValueError: the pair carries no reference log-probabilities.
    """
    chosen, rejected = policy_logps(pair)
    ref_chosen, ref_rejected = ref_logps(pair)
    return chosen - ref_chosen, rejected - ref_rejected


def ref_logps(pair: PairLogps) -> tuple[jax.Array, jax.Array]:
    """(chosen, rejected) under the reference, each float32[B]; ValueError when the pair has none."""
    for name in ('ref_chosen', 'ref_rejected'):
        if getattr(pair, name) is None:
            raise ValueError(f'this loss compares with a reference: PairLogps.{name} is None')
    _, ref_chosen, ref_rejected = as_logps(
        1, chosen=pair.chosen, ref_chosen=pair.ref_chosen, ref_rejected=pair.ref_rejected
    )
    return ref_chosen, ref_rejected


def per_token(pair: PairLogps, chosen: jax.Array, rejected: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Divides by the response lengths, of which an empty one counts 1; ValueError when the pair has no lengths."""
    for name in ('chosen_len', 'rejected_len'):
        if getattr(pair, name) is None:
            raise ValueError(f'this loss averages over tokens: PairLogps.{name} is None')
    _, chosen_len, rejected_len = as_float(1, chosen=chosen, chosen_len=pair.chosen_len, rejected_len=pair.rejected_len)
    return chosen / jnp.maximum(chosen_len, 1.0), rejected / jnp.maximum(rejected_len, 1.0)


def smoothed_sigmoid(logits: jax.Array, label_smoothing: jax.Array | float) -> jax.Array:
    """-(1 - eps) log sigmoid(z) - eps log sigmoid(-z): cross-entropy against the label 1 - eps."""
    label_smoothing = as_per_example(logits, label_smoothing=label_smoothing)
    return -(1.0 - label_smoothing) * jax.nn.log_sigmoid(logits) - label_smoothing * jax.nn.log_sigmoid(-logits)
