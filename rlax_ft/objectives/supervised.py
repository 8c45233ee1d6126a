"""Supervised fine-tuning: the mean of a per-token loss over what the demonstrations say.

Leaves out formulas (losses/supervised.py).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_ft.losses.supervised import nll_loss
from rlax_ft.models.scoring import token_logps
from rlax_ft.ops.reduce import aggregate
from rlax_ft.types import ApplyFn, LossFn, Params, TokenBatch


def sft_objective(apply: ApplyFn, loss: Callable = nll_loss) -> LossFn:
    """Mean of a per-token loss over the response tokens of the whole batch.

    Args:
      apply: the policy's `Transformer.apply`.
      loss: `f(logps, mask) -> float[B, T]`.

    Returns:
      loss_fn; its batch is (TokenBatch [B, T], number of counted tokens in the whole batch).
    """

    def loss_fn(params: Params, batch: tuple[TokenBatch, jax.Array], key: jax.Array):
        tokens, total = batch
        logps = token_logps(apply, {'params': params}, tokens)
        return aggregate(loss(logps, tokens.mask), tokens.mask, 'token_mean', denominator=total), {
            'num_tokens': jnp.sum(tokens.mask)
        }

    return loss_fn
