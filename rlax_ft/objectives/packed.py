"""Objectives on packed pairs: the same losses and denominators as on pairs that are not, read by segment.

Leaves out formulas (losses/) and packing (data/packing.py).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_ft.losses.reward_model import bradley_terry_loss
from rlax_ft.models.scoring import token_logps
from rlax_ft.objectives.preference import chosen_nll, make_pair, pair_loss, pair_metrics
from rlax_ft.objectives.reward import reward_metrics
from rlax_ft.ops.segments import segment_last, segment_sums
from rlax_ft.types import ApplyFn, LossFn, PackedPairs, Params, TokenBatch


def segment_logps(apply: ApplyFn, variables: Params, rows: TokenBatch, count: int) -> jax.Array:
    """log pi(y | x) of each segment: `sequence_logps` for packed rows, float32[R, count] in nats."""
    return segment_sums(token_logps(apply, variables, rows), rows.segment_ids, count)


def packed_preference_objective(apply: ApplyFn, loss: Callable, *, beta: float, nll_coef: float = 0.0) -> LossFn:
    """`preference_objective` on packed pairs.

    Args:
      apply: the policy's `Transformer.apply`.
      loss: `f(pair: PairLogps) -> float[B]`, one that looks at each pair alone.
      beta: for the implicit rewards in the metrics only.
      nll_coef: weight of the NLL of y_w.

    Returns:
      loss_fn; its batch is (PackedPairs [R, S], number of pairs in the whole batch).
    """

    def loss_fn(params: Params, batch: tuple[PackedPairs, jax.Array], key: jax.Array):
        pairs, total = batch
        both, count = _both_sides(pairs), pairs.label.shape[1]  # [2 R, T]
        logps = _by_pair(segment_logps(apply, {'params': params}, both, count))  # [R S, 2]
        # A length of 1 where there is no pair keeps length-averaged losses, and their gradients, finite.
        lengths = _by_pair(jnp.maximum(segment_sums(both.mask, both.segment_ids, count), 1.0))  # [R S, 2]
        ref_logps = None if pairs.ref_logps is None else pairs.ref_logps.reshape(-1, 2)  # [R S, 2]
        pair = make_pair(logps, ref_logps, lengths)
        value = pair_loss(loss, pair, *_flat(pairs.label, pairs.margin)) + nll_coef * chosen_nll(pair)  # [R S]
        return _mean(value, pair_metrics(pair, beta), pairs, total)

    return loss_fn


def packed_reward_objective(apply: ApplyFn, *, center_coef: float = 0.0) -> LossFn:
    """`reward_objective` on packed pairs; arguments as there.

    Returns:
      loss_fn; its batch is (PackedPairs [R, S], number of pairs in the whole batch).
    """

    def loss_fn(params: Params, batch: tuple[PackedPairs, jax.Array], key: jax.Array):
        pairs, total = batch
        both = _both_sides(pairs)  # [2 R, T]
        values = apply({'params': params}, both.tokens, both.positions, both.segment_ids)  # [2 R, T]
        chosen, rejected = _by_pair(segment_last(values, both.mask, both.segment_ids, pairs.label.shape[1])).T
        label, margin = _flat(pairs.label, pairs.margin)
        margin = 0.0 if margin is None else margin
        value = bradley_terry_loss(chosen, rejected, margin=margin, label=label, center_coef=center_coef)  # [R S]
        return _mean(value, reward_metrics(chosen, rejected), pairs, total)

    return loss_fn


def _both_sides(pairs: PackedPairs):
    return jax.tree.map(lambda *sides: jnp.concatenate(sides), pairs.chosen, pairs.rejected)


def _by_pair(x: jax.Array):
    """[2 R, S], chosen sides before rejected ones -> [R S, 2]."""
    return jnp.stack([half.reshape(-1) for half in jnp.split(x, 2)], axis=-1)


def _flat(*values: jax.Array):
    return tuple(None if x is None else x.reshape(-1) for x in values)


def _mean(value: jax.Array, metrics: dict[str, jax.Array], pairs: PackedPairs, total: jax.Array):
    exists, weight = _flat(pairs.exists, pairs.weight)
    share = lambda x: jnp.sum(jnp.where(exists, x, 0.0)) / total  # noqa: E731
    return share(value if weight is None else weight * value), {name: share(x) for name, x in metrics.items()}
