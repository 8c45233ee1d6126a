"""Scalar heads on the transformer: the value function and the reward model.

Leaves out losses, and what a score means.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from rlax_ft.models.config import ModelConfig
from rlax_ft.models.scoring import at_each_token, candidate_count, candidate_rows, read
from rlax_ft.models.transformer import Transformer
from rlax_ft.types import ApplyFn, BranchBatch, Params, TokenBatch


class ScalarModel(nn.Module):
    """A transformer with one number per token.

    `apply({'params': p}, tokens, positions, segment_ids) -> float32[B, T]`; parameters are `backbone` (those of
    `Transformer`) and `head` (`kernel` [D, 1]).
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens, positions=None, segment_ids=None, branches=None):
        """int32[B, T] -> float32[B, T]; `branches` as in `Transformer`."""
        # An LM head of its own would be parameters that nothing reads.
        config = dataclasses.replace(self.config, tied=True)
        hidden, _ = Transformer(config, name='backbone')(tokens, positions, segment_ids, branches=branches)
        return nn.Dense(1, use_bias=False, name='head')(hidden.astype(jnp.float32))[..., 0]


def value_params(backbone: Params) -> Params:
    """Parameters of a value function on a copy of `backbone`; its head is 0, so that every value starts at 0."""
    return {'backbone': _copy(backbone), 'head': {'kernel': jnp.zeros((_width(backbone), 1))}}


def reward_params(backbone: Params, key: jax.Array) -> Params:
    """Parameters of a reward model on a copy of `backbone`, head drawn from N(0, 1 / (D + 1)) (arXiv 2009.01325)."""
    return {'backbone': _copy(backbone), 'head': reward_head(backbone, key)}


def reward_head(backbone: Params, key: jax.Array) -> Params:
    """The head alone."""
    width = _width(backbone)
    return {'kernel': jax.random.normal(key, (width, 1)) / jnp.sqrt(width + 1.0)}


def score_last_token(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The value at each row's last token that counts.

    Args:
      values: float[B, T].
      mask: float[B, T]; a row without a counted token gets the value at position 0.

    Returns:
      float[B].
    """
    last = jnp.max(jnp.where(mask > 0, jnp.arange(mask.shape[-1]), 0), axis=-1)
    return jnp.take_along_axis(values, last[:, None], axis=-1)[:, 0]


def sequence_scores(apply: ApplyFn, params, batch: TokenBatch | BranchBatch) -> jax.Array:
    """A reward model's score of each row or response, read at its last token: float32[B], or [B * K] of branches."""
    values = read(apply, {'params': params}, batch)
    if isinstance(batch, BranchBatch):
        values = at_each_token(values, batch)
    return score_last_token(values, batch.mask)


def least_step_scores(apply: ApplyFn, params, batch: TokenBatch | BranchBatch, ends: tuple[int, ...]) -> jax.Array:
    """A process reward model's score of each row or response: the least logit at the end of a step (arXiv 2312.08935).

    Args:
      apply, params, batch, ends: as in `step_scores`.

    Returns:
      float32[B], or [B * K] of branches.
    """
    values, is_end = step_scores(apply, params, batch, ends)
    return jnp.min(jnp.where(is_end, values, jnp.inf), axis=-1)


def step_scores(
    apply: ApplyFn, params, batch: TokenBatch | BranchBatch, ends: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """A process reward model's logits on all tokens, and where steps end.

    Args:
      apply, params, batch: as in `sequence_scores`.
      ends: tokens that end a step; a row's last token that counts does, too.

    Returns:
      (logits float32[B, T], ends bool[B, T]), or [B * K, R] of branches.
    """
    values = read(apply, {'params': params}, batch)
    if isinstance(batch, BranchBatch):
        values, tokens = at_each_token(values, batch), batch.responses.tokens.reshape(batch.mask.shape)
    else:
        tokens = batch.tokens
    last = jnp.max(jnp.where(batch.mask > 0, jnp.arange(batch.mask.shape[-1]), 0), axis=-1)
    is_end = (batch.mask > 0) & jnp.isin(tokens, jnp.asarray(ends, jnp.int32))
    return values, is_end | (jnp.arange(batch.mask.shape[-1]) == last[:, None])


def candidate_scores(apply: ApplyFn, params, candidates: TokenBatch | BranchBatch) -> jax.Array:
    """The scores of K candidates a prompt, float32[B, K], from a TokenBatch [B, K, T] or a BranchBatch."""
    return sequence_scores(apply, params, candidate_rows(candidates)).reshape(-1, candidate_count(candidates))


def _copy(params):
    # The train step donates its state, so no two states may share a buffer.
    # An LM head stays behind.
    return jax.tree.map(jnp.copy, {name: leaf for name, leaf in params.items() if name != 'head'})


def _width(backbone):
    return backbone['embed']['embedding'].shape[1]
