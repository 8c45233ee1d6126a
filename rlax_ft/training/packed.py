"""Objectives on packed pairs: the same losses and denominators as in objectives.py, read by segment.

Each side of a row holds up to S examples; segment s + 1 of both sides is pair s. Leaves out formulas (losses/) and
packing (data/packing.py).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_ft.losses.preference import implicit_rewards
from rlax_ft.losses.reward_model import bradley_terry_loss
from rlax_ft.models.scoring import token_logps
from rlax_ft.ops.segments import segment_exists, segment_last, segment_sums
from rlax_ft.training.objectives import reward_metrics, soft_label_loss
from rlax_ft.types import PairLogps, PreferenceBatch, TokenBatch


def segment_logps(apply: Callable, variables, rows: TokenBatch, count: int) -> jax.Array:
    """log pi(y | x) of each segment: `sequence_logps` for packed rows, float32[R, count] in nats."""
    return segment_sums(token_logps(apply, variables, rows), rows.segment_ids, count)


def packed_preference_objective(apply: Callable, loss: Callable, *, beta: float) -> Callable:
    """`preference_objective` on packed pairs.

    Args:
      apply: the policy's `Transformer.apply`.
      loss: `f(pair: PairLogps) -> float[B]`, one that looks at each pair alone.
      beta: for the implicit rewards in the metrics only.

    Returns:
      loss_fn; its batch is (PreferenceBatch of `pack_pairs`, number of pairs in the whole batch).
    """

    def loss_fn(params, batch: tuple[PreferenceBatch, jax.Array], key):
        pairs, total = batch
        count = pairs.label.shape[1]
        both = _both_sides(pairs)
        sides = lambda x: tuple(half.reshape(-1) for half in jnp.split(x, 2))  # noqa: E731
        flat = lambda x: None if x is None else x.reshape(-1)  # noqa: E731
        chosen, rejected = sides(segment_logps(apply, {'params': params}, both, count))
        # A length of 1 where there is no pair keeps length-averaged losses, and their gradients, finite.
        lengths = sides(jnp.maximum(segment_sums(both.mask, both.segment_ids, count), 1.0))
        pair = PairLogps(chosen, rejected, flat(pairs.ref_chosen), flat(pairs.ref_rejected), *lengths)
        rewards = (beta * chosen, beta * rejected) if pair.ref_chosen is None else implicit_rewards(pair, beta)
        metrics = {'logps/chosen': chosen, 'logps/rejected': rejected, **reward_metrics(*rewards)}
        value = soft_label_loss(loss, pair, flat(pairs.label))
        return _mean(value, metrics, _exists(pairs), total)

    return loss_fn


def packed_reward_objective(apply: Callable, *, center_coef: float = 0.0) -> Callable:
    """`reward_objective` on packed pairs; arguments as there.

    Returns:
      loss_fn; its batch is (PreferenceBatch of `pack_pairs`, number of pairs in the whole batch).
    """

    def loss_fn(params, batch: tuple[PreferenceBatch, jax.Array], key):
        pairs, total = batch
        both = _both_sides(pairs)
        values = apply({'params': params}, both.tokens, both.positions, both.segment_ids)
        scores = segment_last(values, both.mask, both.segment_ids, pairs.label.shape[1])
        chosen, rejected = (half.reshape(-1) for half in jnp.split(scores, 2))
        value = bradley_terry_loss(chosen, rejected, label=pairs.label.reshape(-1), center_coef=center_coef)
        return _mean(value, reward_metrics(chosen, rejected), _exists(pairs), total)

    return loss_fn


def _both_sides(pairs):
    return jax.tree.map(lambda *sides: jnp.concatenate(sides), pairs.chosen, pairs.rejected)


def _exists(pairs):
    return segment_exists(pairs.chosen.segment_ids, pairs.label.shape[1]).reshape(-1)


def _mean(value, metrics, exists, total):
    share = lambda x: jnp.sum(jnp.where(exists, x, 0.0)) / total  # noqa: E731
    return share(value), {name: share(metric) for name, metric in metrics.items()}
