"""The rollout engine: rows that have ended are refilled with waiting prompts inside the compiled loop.

No row idles until the longest completion is done, as the plain sampler's do where lengths differ. The samples are the
plain sampler's: a prompt's completion depends on its key, not on its neighbours. Leaves out the draw (draw.py).
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from rlax_ft.models.cache import KVCache
from rlax_ft.sampling.draw import draw, row_words
from rlax_ft.sampling.sampler import blank, is_end, read_prompts
from rlax_ft.types import ApplyFn, Rollout


@struct.dataclass
class _Slots:
    """The rows under way.

    Attributes:
      cache: of S = P + N slots a row: the prompt's, then a ring that all rows write at the same place. A row's own
        segment ids say which slots are its own, and attention needs no order among them.
      turn: int32[], decode steps done, which gives the place in the ring.
      waiting: int32[], the first prompt that has no row yet.
      prompt: int32[B], which prompt a row works on; N_prompts for an idle row.
      step: int32[B], tokens that the row has drawn.
      hidden: [B, D], last hidden state.
      tokens, mask, logps: the completions of all prompts, with one row more for what idle rows draw.
    """

    cache: KVCache
    turn: jax.Array
    waiting: jax.Array
    prompt: jax.Array
    step: jax.Array
    hidden: jax.Array
    tokens: jax.Array
    mask: jax.Array
    logps: jax.Array


def generate_many(
    apply: ApplyFn,
    variables,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    key: jax.Array,
    *,
    rows: int,
    max_new_tokens: int,
    refill: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    eos_ids: Sequence[int] = (),
    pad_id: int = 0,
) -> Rollout:
    """What `sampler.generate` gives for all prompts, with `rows` of them under way at a time.

    Args:
      apply, variables, prompts, prompt_mask, key, max_new_tokens, temperature, top_k, top_p, min_p, eos_ids, pad_id: as
        `sampler.generate`.
      rows: completions under way at once.
      refill: how many rows must have ended before waiting prompts are read into them; an eighth when absent.

    Returns:
      Rollout with completions [N_prompts, max_new_tokens], in the prompts' order.
    """
    count, length = prompts.shape
    rows = min(rows, count)
    refill = min(refill or max(rows // 8, 1), rows)
    prompt_mask = prompt_mask.astype(bool)
    words = jnp.pad(row_words(key, count, max_new_tokens), ((0, 1), (0, 0), (0, 0)))
    # A refill always reads `refill` prompts: behind the last there is room for it.
    waiting_tokens, waiting_mask = (jnp.pad(x, ((0, refill), (0, 0))) for x in (prompts, prompt_mask))
    lengths = jnp.sum(waiting_mask, axis=1)
    pick = partial(draw, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)

    def read_waiting(s: _Slots) -> _Slots:
        """Reads the next prompts, and puts them into rows that are idle."""
        first = jnp.minimum(s.waiting, count)
        tokens, real = (jax.lax.dynamic_slice_in_dim(x, first, refill) for x in (waiting_tokens, waiting_mask))
        positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
        fresh = apply(variables, refill, length, method='init_cache')
        hidden, fresh = read_prompts(apply, variables, tokens, positions, real.astype(jnp.int32), fresh)
        new, idle = first + jnp.arange(refill), s.prompt == count
        row = jnp.argsort(~idle, stable=True)[:refill]
        row = jnp.where(idle[row] & (new < count), row, rows)  # A row out of range is dropped.
        put = lambda old, value: old.at[row].set(value, mode='drop')  # noqa: E731
        return dataclasses.replace(
            s,
            cache=s.cache.with_rows(row, fresh),
            waiting=first + jnp.sum(row < rows),
            prompt=put(s.prompt, new),
            step=put(s.step, 0),
            hidden=put(s.hidden, hidden),
        )

    def decode(s: _Slots) -> _Slots:
        """One token of every row."""
        token, logp = pick(apply(variables, s.hidden, method='unembed'), words[s.prompt, s.step])
        ended = is_end(token, eos_ids) | (s.step == max_new_tokens - 1)
        cache = dataclasses.replace(s.cache, index=length + s.turn % max_new_tokens)
        position = lengths[s.prompt] + s.step
        hidden, cache = apply(variables, token[:, None], position[:, None], jnp.ones((rows, 1), jnp.int32), cache)
        at = (s.prompt, s.step)
        return dataclasses.replace(
            s,
            cache=cache,
            turn=s.turn + 1,
            prompt=jnp.where(ended, count, s.prompt),
            step=jnp.where(ended, 0, s.step + 1),
            hidden=hidden[:, 0],
            tokens=s.tokens.at[at].set(token),
            mask=s.mask.at[at].set(True),
            logps=s.logps.at[at].set(logp),
        )

    def busy(s: _Slots) -> jax.Array:
        """Whether to decode on: somebody is under way, and no refill is due."""
        idle = jnp.sum(s.prompt == count)
        return (idle < rows) & ((idle < refill) | (s.waiting >= count))

    start = _idle(apply, variables, prompts, rows, max_new_tokens, pad_id)
    end = jax.lax.while_loop(
        lambda s: (s.waiting < count) | jnp.any(s.prompt < count),
        lambda s: jax.lax.while_loop(busy, decode, read_waiting(s)),
        start,
    )
    tokens, mask, logps = (x[:count] for x in (end.tokens, end.mask, end.logps))
    return Rollout(prompts=prompts, prompt_mask=prompt_mask, tokens=tokens, mask=mask, logps=logps)


def _idle(apply, variables, prompts, rows, max_new_tokens, pad_id):
    """No row has a prompt yet."""
    count, length = prompts.shape
    hidden = jax.eval_shape(lambda: apply(variables, prompts[:1], None, None)[0])
    tokens, mask, logps = blank(count + 1, max_new_tokens, pad_id)
    return _Slots(
        cache=apply(variables, rows, length + max_new_tokens, method='init_cache').replace(empty=False),
        turn=jnp.zeros((), jnp.int32),
        waiting=jnp.zeros((), jnp.int32),
        prompt=jnp.full(rows, count, jnp.int32),
        step=jnp.zeros(rows, jnp.int32),
        hidden=jnp.zeros((rows, hidden.shape[-1]), hidden.dtype),
        tokens=tokens,
        mask=mask,
        logps=logps,
    )
