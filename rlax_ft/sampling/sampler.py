"""The plain sampler: one prefill, then one token at a time for all rows, until every row has ended.

Leaves out the draw itself (draw.py), and refilling the rows that have ended (engine.py).
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from rlax_ft.parallel.constrain import active_mesh
from rlax_ft.parallel.mesh import batch_devices
from rlax_ft.sampling.draw import draw, row_words
from rlax_ft.types import ApplyFn, Rollout

# Columns of prompts that are read at a time.
PREFILL = 1024


def generate(
    apply: ApplyFn,
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
    group_size: int = 1,
) -> Rollout:
    """Samples a completion of each prompt, y_t ~ softmax(logits_t / temperature), with a key-value cache.

    The log-probabilities are those of softmax(logits / temperature) before any truncation by top_k, top_p or min_p,
    so that they equal what the trainer computes at the same temperature.

    Args:
      apply: `Transformer.apply`, or any function of the same shape.
      variables: its variables.
      prompts: int32[B, P], left-padded.
      prompt_mask: bool[B, P], False on padding.
      key: random key, or a key for each row; what a row draws depends on the key and its place alone, not on the
        other rows.
      max_new_tokens: N, the most tokens to sample.
      temperature: > 0; 0 decodes greedily, with log-probabilities at temperature 1.
      top_k: keep the k likeliest tokens; None keeps all.
      top_p: keep the smallest set of likeliest tokens whose probability reaches top_p (arXiv 1904.09751).
      min_p: keep tokens of at least min_p times the probability of the likeliest (arXiv 2407.01082).
      eos_ids: tokens that end a row; empty samples N tokens from every row.
      pad_id: what fills a row after its end.
      group_size: so many adjacent rows have the same prompt. It is read once for all of them, and their queries look at
        it together (arXiv 2402.05099); a mesh that cannot split the groups reads every row's.

    Returns:
      Rollout with completions [B, N].
    """
    chex.assert_rank([prompts, prompt_mask], 2, custom_message='prompts and prompt_mask')
    chex.assert_equal_shape([prompts, prompt_mask], custom_message='prompts and prompt_mask')
    batch, prompt_mask = len(prompts), prompt_mask.astype(bool)
    lengths = prompt_mask.sum(axis=1)
    hidden, cache = _prefill(apply, variables, prompts, prompt_mask, max_new_tokens, shared_group(batch, group_size))
    words = row_words(key, batch, max_new_tokens)
    how = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)

    def unfinished(carry):
        step, done = carry[0], carry[1]
        return (step < max_new_tokens) & ~jnp.all(done)

    def decode(carry):
        step, done, last_hidden, cache, tokens, mask, logps = carry
        token, logp = draw(apply(variables, last_hidden, method='unembed'), words[:, step], **how)
        token = jnp.where(done, pad_id, token)
        tokens = tokens.at[:, step].set(token)
        mask = mask.at[:, step].set(~done)
        logps = logps.at[:, step].set(jnp.where(done, 0.0, logp))
        done = done | is_end(token, eos_ids)
        hidden, cache = apply(
            variables, token[:, None], (lengths + step)[:, None], jnp.ones((batch, 1), jnp.int32), cache
        )
        return step + 1, done, hidden[:, 0], cache, tokens, mask, logps

    start = (jnp.zeros((), jnp.int32), jnp.zeros(batch, bool), hidden, cache)
    *_, tokens, mask, logps = jax.lax.while_loop(unfinished, decode, (*start, *blank(batch, max_new_tokens, pad_id)))
    return Rollout(prompts=prompts, prompt_mask=prompt_mask, tokens=tokens, mask=mask, logps=logps)


def shared_group(rows: int, group_size: int) -> int:
    """How many rows share one reading of their prompt: the group, or 1 where a mesh cannot split the groups."""
    mesh = active_mesh()
    return group_size if mesh is None or rows // group_size % batch_devices(mesh) == 0 else 1


def _prefill(apply, variables, prompts, prompt_mask, room, group_size):
    """(last hidden states [B, D], a cache with room for so many tokens of each row behind its prompt)."""
    batch, length = prompts.shape
    positions = jnp.maximum(jnp.cumsum(prompt_mask, axis=1) - 1, 0)
    once = slice(None, None, group_size)
    read = prompts[once], positions[once], prompt_mask.astype(jnp.int32)[once]
    slots = length if group_size > 1 else length + room
    cache = apply(variables, batch // group_size, slots, method='init_cache')
    hidden, cache = read_prompts(apply, variables, *read, cache=cache)
    if group_size == 1:
        return hidden, cache
    own = apply(variables, batch, room, method='init_cache')
    return jnp.repeat(hidden, group_size, axis=0), own.replace(shared=cache, empty=False)


def read_prompts(apply: ApplyFn, variables, tokens, positions, segment_ids, cache, *, chunk: int = PREFILL):
    """Reads prompts into an empty cache, `chunk` columns at a time, so that memory does not grow with their length.

    Args:
      apply, variables: as `generate`.
      tokens, positions, segment_ids: int32[B, P].
      cache: an empty one with room for P tokens.
      chunk: columns; the first piece takes what does not divide.

    Returns:
      (last hidden state [B, D], the cache).
    """
    first = (tokens.shape[1] - 1) % chunk + 1
    hidden, cache = apply(variables, tokens[:, :first], positions[:, :first], segment_ids[:, :first], cache)
    if first == tokens.shape[1]:
        return hidden[:, -1], cache

    def read(carry, part):
        hidden, cache = apply(variables, *part, carry[1])
        return (hidden[:, -1], cache), None

    rest = [x[:, first:].reshape(x.shape[0], -1, chunk).swapaxes(0, 1) for x in (tokens, positions, segment_ids)]
    (hidden, cache), _ = jax.lax.scan(read, (hidden[:, -1], cache), tuple(rest))
    return hidden, cache


def blank(rows: int, count: int, pad_id: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens, mask and log-probabilities of completions before the first token, each [rows, count]."""
    return jnp.full((rows, count), pad_id, jnp.int32), jnp.zeros((rows, count), bool), jnp.zeros((rows, count))


def is_end(token: jax.Array, eos_ids: Sequence[int]) -> jax.Array:
    """Whether each token ends its row, bool[B]."""
    return jnp.isin(token, jnp.asarray(list(eos_ids), jnp.int32))
