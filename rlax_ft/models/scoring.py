"""Log-probabilities of given text under a model: the one way from tokens to what language losses read.

Leaves out gradients and reduction.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_ft.ops.logprobs import chunked_token_logprobs
from rlax_ft.types import Rollout, TokenBatch


def token_logps(apply: Callable, variables, batch: TokenBatch, *, temperature: float = 1.0) -> jax.Array:
    """log pi(token_t | tokens before t) of every token, without ever holding [B, T, V].

    Args:
      apply: `Transformer.apply`, or any function of the same shape.
      variables: its variables.
      batch: TokenBatch [B, T].
      temperature: what the logits are divided by, as in sampling.

    Returns:
      float32[B, T] in nats, aligned with `batch.tokens`; 0 at the first position and where `batch.mask` is 0.
    """
    hidden, _ = apply(variables, batch.tokens, batch.positions, batch.segment_ids)
    head = apply(variables, method='unembed_matrix')
    logps = chunked_token_logprobs(
        hidden[:, :-1],
        head,
        batch.tokens[:, 1:],
        chunk=None,
        temperature=temperature,
        mask=batch.mask[:, 1:],
        soft_cap=apply(variables, method='unembed_soft_cap'),
    )
    return jnp.pad(logps, ((0, 0), (1, 0)))


def sequence_logps(apply: Callable, variables, batch: TokenBatch) -> jax.Array:
    """log pi(y | x) = sum over counted tokens, float32[B] in nats; arguments as in `token_logps`."""
    return jnp.sum(token_logps(apply, variables, batch), axis=-1)


def rollout_batch(rollout: Rollout) -> TokenBatch:
    """Prompts and completions as one TokenBatch [B, P + N], for scoring what was sampled.

    Returns:
      A TokenBatch whose positions count real tokens, so that left padding changes nothing.
    """
    real = jnp.concatenate([rollout.prompt_mask, rollout.mask], axis=1)
    return TokenBatch(
        tokens=jnp.concatenate([rollout.prompts, rollout.tokens], axis=1),
        mask=jnp.concatenate([jnp.zeros_like(rollout.prompt_mask), rollout.mask], axis=1).astype(jnp.float32),
        positions=jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0),
        segment_ids=real.astype(jnp.int32),
    )
