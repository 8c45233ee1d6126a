"""The plain sampler: one prefill, then one token at a time for all rows, until every row has ended.

Leaves out refilling of finished rows.
"""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from rlax_ft.types import Rollout


def generate(
    apply: Callable,
    variables,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    key: jax.Array,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    eos_ids: Sequence[int] = (),
    pad_id: int = 0,
) -> Rollout:
    """Samples a completion of each prompt, y_t ~ softmax(logits_t / temperature), with a key-value cache.

    The log-probabilities are those of softmax(logits / temperature) before any truncation by top_k, top_p or min_p,
    so that they equal what the trainer computes at the same temperature.

    Args:
      apply: `Transformer.apply`, or any function of the same shape.
      variables: its variables.
      prompts: int32[B, P], left-padded.
      prompt_mask: bool[B, P], False on padding.
      key: random key; the same key gives the same samples.
      max_new_tokens: N, the most tokens to sample.
      temperature: > 0; 0 decodes greedily, with log-probabilities at temperature 1.
      top_k: keep the k likeliest tokens; None keeps all.
      top_p: keep the smallest set of likeliest tokens whose probability reaches top_p (arXiv 1904.09751).
      min_p: keep tokens of at least min_p times the probability of the likeliest (arXiv 2407.01082).
      eos_ids: tokens that end a row; empty samples N tokens from every row.
      pad_id: what fills a row after its end.

    Returns:
      Rollout with completions [B, N].
    """
    chex.assert_rank([prompts, prompt_mask], 2, custom_message='prompts and prompt_mask')
    chex.assert_equal_shape([prompts, prompt_mask], custom_message='prompts and prompt_mask')
    batch, prompt_length = prompts.shape
    prompt_mask = prompt_mask.astype(bool)
    cache = apply(variables, batch, prompt_length + max_new_tokens, method='init_cache')
    lengths = prompt_mask.sum(axis=1)
    positions = jnp.maximum(jnp.cumsum(prompt_mask, axis=1) - 1, 0)
    hidden, cache = apply(variables, prompts, positions, prompt_mask.astype(jnp.int32), cache)
    # One uniform number per row and token, all drawn ahead.
    uniforms = jax.random.uniform(key, (max_new_tokens, batch))

    def draw(last_hidden, step):
        logits = apply(variables, last_hidden, method='unembed').astype(jnp.float32)
        logps = jax.nn.log_softmax(logits / temperature if temperature > 0 else logits)
        if temperature > 0:
            token = inverse_cdf(truncate(logps, top_k=top_k, top_p=top_p, min_p=min_p), uniforms[step])
        else:
            token = jnp.argmax(logps, axis=-1)
        return token.astype(jnp.int32), jnp.take_along_axis(logps, token[:, None], axis=-1)[:, 0]

    def unfinished(carry):
        step, done = carry[0], carry[1]
        return (step < max_new_tokens) & ~jnp.all(done)

    def decode(carry):
        step, done, last_hidden, cache, tokens, mask, logps = carry
        token, logp = draw(last_hidden, step)
        token = jnp.where(done, pad_id, token)
        tokens = tokens.at[:, step].set(token)
        mask = mask.at[:, step].set(~done)
        logps = logps.at[:, step].set(jnp.where(done, 0.0, logp))
        done = done | jnp.isin(token, jnp.asarray(list(eos_ids), jnp.int32))
        hidden, cache = apply(
            variables, token[:, None], (lengths + step)[:, None], jnp.ones((batch, 1), jnp.int32), cache
        )
        return step + 1, done, hidden[:, 0], cache, tokens, mask, logps

    shape = (batch, max_new_tokens)
    carry = (
        jnp.zeros((), jnp.int32),
        jnp.zeros(batch, bool),
        hidden[:, -1],
        cache,
        jnp.full(shape, pad_id, jnp.int32),
        jnp.zeros(shape, bool),
        jnp.zeros(shape, jnp.float32),
    )
    *_, tokens, mask, logps = jax.lax.while_loop(unfinished, decode, carry)
    return Rollout(prompts=prompts, prompt_mask=prompt_mask, tokens=tokens, mask=mask, logps=logps)


def inverse_cdf(logps: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first token whose cumulative probability exceeds u: an exact draw from one uniform number per row.

    Args:
      logps: float[B, V], log-probabilities up to a constant; -inf is never drawn.
      uniform: float[B] in [0, 1).

    Returns:
      int32[B].
    """
    cdf = jnp.cumsum(jnp.exp(logps), axis=-1)
    return jnp.sum(cdf <= uniform[:, None] * cdf[:, -1:], axis=-1)


def truncate(logps: jax.Array, *, top_k: int | None, top_p: float, min_p: float) -> jax.Array:
    """Sets to -inf what top-k, top-p and min-p leave out; each filter reads the whole distribution.

    Args:
      logps: float[B, V], normalised.
      top_k: number of tokens kept, or None.
      top_p: probability kept, 1 keeps all.
      min_p: share of the largest probability below which a token goes, 0 keeps all.

    Returns:
      float[B, V], not normalised; the likeliest token always stays.
    """
    keep = jnp.ones_like(logps, bool)
    if min_p > 0:
        keep &= logps >= jnp.max(logps, axis=-1, keepdims=True) + jnp.log(min_p)
    if top_p < 1 or (top_k is not None and top_k < logps.shape[-1]):
        ordered = jnp.flip(jnp.sort(logps, axis=-1), axis=-1)
        if top_k is not None and top_k < logps.shape[-1]:
            keep &= logps >= ordered[:, top_k - 1 : top_k]
        if top_p < 1:
            before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
            count = jnp.maximum(jnp.sum(before < top_p, axis=-1, keepdims=True), 1)
            keep &= logps >= jnp.take_along_axis(ordered, count - 1, axis=-1)
    return jnp.where(keep, logps, -jnp.inf)
