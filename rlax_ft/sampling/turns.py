"""Sampling turn by turn: what has been read stays in the key-value cache while a conversation goes on.

Rows read only what is new to them (an environment's answer), then all that are under way speak until each has ended its
turn. Token in, token out: what a row drew is in its cache as it was drawn. Leaves out whose turn it is
(harness/conversations.py).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import struct

from rlax_ft.models.cache import KVCache
from rlax_ft.sampling.draw import draw, row_words
from rlax_ft.sampling.layout import laid_out
from rlax_ft.sampling.sampler import blank, is_end


@struct.dataclass
class Talk:
    """Conversations under way.

    Attributes:
      cache: what has been read and said.
      lengths: int32[B], tokens of each row in the cache.
    """

    cache: KVCache
    lengths: jax.Array


def begin_talk(apply: Callable, params, rows: int, slots: int) -> Talk:
    """No row has read anything; there is room for `slots` tokens, the padding between turns included."""
    cache = apply({'params': params}, rows, slots, method='init_cache')
    return Talk(cache, jnp.zeros(rows, jnp.int32))


def take_turn(
    apply: Callable,
    params,
    talk: Talk,
    tokens: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    eos_ids: Sequence[int] = (),
    pad_id: int = 0,
) -> tuple[Talk, jax.Array, jax.Array, jax.Array]:
    """Every row reads its new tokens and draws its next turn, y_t ~ softmax(logits_t / temperature).

    Args:
      apply: `Transformer.apply`, or any function of the same shape.
      params: its parameters, in the layout for decoding.
      talk: with room for what is read and said.
      tokens: int32[B, R], left-padded; a row without a new token is out of the conversation and says nothing.
      mask: bool[B, R].
      key: what a row draws depends on it and the row's place alone, or an array of a key for each row.
      max_new_tokens: N, of a turn.
      temperature: > 0; 0 decodes greedily, with log-probabilities at temperature 1.
      eos_ids: tokens that end a turn.
      pad_id: what fills a row after its end.

    Returns:
      (the talk afterwards, tokens int32[B, N], mask bool[B, N], log-probabilities float32[B, N]).
    """
    variables, rows = {'params': params}, tokens.shape[0]
    mask = mask.astype(bool)
    under_way = jnp.any(mask, axis=1)
    positions = talk.lengths[:, None] + jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    hidden, cache = apply(variables, tokens, positions, mask.astype(jnp.int32), talk.cache)
    lengths = talk.lengths + jnp.sum(mask, axis=1)
    words = row_words(key, rows, max_new_tokens)
    how = dict(temperature=temperature, top_k=None, top_p=1.0, min_p=0.0)

    def unfinished(carry):
        step, done = carry[0], carry[1]
        return (step < max_new_tokens) & ~jnp.all(done)

    def decode(carry):
        step, done, last, cache, drawn, kept, logps = carry
        token, logp = draw(apply(variables, last, method='unembed'), words[:, step], **how)
        token = jnp.where(done, pad_id, token)
        drawn = drawn.at[:, step].set(token)
        kept = kept.at[:, step].set(~done)
        logps = logps.at[:, step].set(jnp.where(done, 0.0, logp))
        # Behind its end a row has nothing to remember: what is written there is padding.
        place, said = (lengths + step)[:, None], (~done).astype(jnp.int32)[:, None]
        hidden, cache = apply(variables, token[:, None], place, said, cache)
        return step + 1, done | is_end(token, eos_ids), hidden[:, 0], cache, drawn, kept, logps

    start = (jnp.zeros((), jnp.int32), ~under_way, hidden[:, -1], cache.replace(empty=False))
    *_, cache, drawn, kept, logps = jax.lax.while_loop(
        unfinished, decode, (*start, *blank(rows, max_new_tokens, pad_id))
    )
    return Talk(cache, lengths + jnp.sum(kept, axis=1)), drawn, kept, logps


def make_turns(apply: Callable, **how) -> tuple[Callable, Callable]:
    """Compiled (`begin(params, rows, slots) -> Talk`, `turn(params, talk, tokens, mask, key)` as `take_turn`).

    Args:
      apply: of the policy.
      **how: max_new_tokens, temperature, eos_ids, pad_id.
    """

    def turn(params, talk, tokens, mask, key):
        return take_turn(apply, params, talk, tokens, mask, key, **how)

    def begin(params, rows, slots):
        return begin_talk(apply, params, rows, slots)

    # A first turn on an empty cache compiles apart from the others; later caches are written in place.
    begin, turn = jax.jit(begin, static_argnums=(1, 2)), jax.jit(turn, donate_argnums=1)
    return (
        lambda params, *rest: begin(laid_out(apply, params), *rest),
        lambda params, *rest: turn(laid_out(apply, params), *rest),
    )
