"""Drawing one token a row: truncation of the distribution, and a draw that is exact to float32.

Leaves out the model and the loop. Nothing here sorts: on a vocabulary of any size a draw is a few passes over it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_BLOCK = 128


def row_words(key: jax.Array, rows: int, count: int) -> jax.Array:
    """What rows draw with, random uint32[rows, count, 2]: row i's words depend on `key` and i alone.

    Args:
      key: one key, or an array of a key for each row.
      rows: number of rows.
      count: draws of each row.
    """
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # A key of the old kind, whose numbers would look like two rows' keys.
    keys = key if key.ndim else jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(rows))
    return jax.vmap(lambda k: jax.random.bits(k, (count, 2)))(keys)


def draw(
    logits: jax.Array, words: jax.Array, *, temperature: float, top_k: int | None, top_p: float, min_p: float
) -> tuple[jax.Array, jax.Array]:
    """A token of each row, and its log-probability under softmax(logits / temperature) before truncation.

    Args:
      logits: float[B, V].
      words: uint32[B, 2], random, of `row_words`.
      temperature: > 0; 0 takes the likeliest, with log-probabilities at temperature 1.
      top_k, top_p, min_p: as `truncate`.

    Returns:
      (int32[B], float32[B]).
    """
    logits = logits.astype(jnp.float32)
    if temperature > 0:
        logits = logits / temperature
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    log_total = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
    if temperature > 0:
        kept = logits
        if top_k is not None or top_p < 1 or min_p > 0:
            kept = truncate(logits - log_total[:, None], top_k=top_k, top_p=top_p, min_p=min_p)
        token = choose(kept, fractions(words, halvings(logits.shape[-1])))
    else:
        token = jnp.argmax(logits, axis=-1)
    token = token.astype(jnp.int32)
    return token, jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - log_total


def halvings(size: int) -> int:
    """How many numbers `choose` takes to draw one of `size` tokens."""
    block, blocks = _blocks(size)
    return (blocks.bit_length() - 1) + (block.bit_length() - 1)


def choose(logps: jax.Array, numbers: jax.Array) -> jax.Array:
    """A token with probability softmax(logps), to float32's relative precision however unlikely the token is.

    One uniform number and a cumulative sum would not do: of float32 uniforms there are 2^23, and small terms vanish in
    a sum near 1. Here what is left of the vocabulary is halved again and again, and the lighter half is taken where a
    number of its own is below light / (light + heavy). Blocks are halved first, then the tokens of one block, so that
    the vocabulary is read once.

    Args:
      logps: float[B, V], log-probabilities up to a constant, the largest near 0; -inf is never drawn.
      numbers: float32[B, halvings(V)], of `fractions`.

    Returns:
      int32[B].
    """
    block, blocks = _blocks(logps.shape[-1])
    padded = jnp.pad(logps, ((0, 0), (0, -logps.shape[-1] % block)), constant_values=-jnp.inf)
    weights = jnp.exp(padded).reshape(logps.shape[0], -1, block)
    sums = jnp.pad(jnp.sum(weights, axis=-1), ((0, 0), (0, blocks - weights.shape[1])))
    outer = blocks.bit_length() - 1
    first = _halve(sums, numbers[:, :outer])
    inside = jnp.take_along_axis(weights, first[:, None, None], axis=1)[:, 0]
    return first * block + _halve(inside, numbers[:, outer:])


def fractions(words: jax.Array, count: int) -> jax.Array:
    """Uniform float32[B, count] in [0, 1] from words uint32[B, 2]; near 0 they are multiples of 2^-64, not of 2^-23."""
    keys = jax.random.wrap_key_data(words, impl='threefry2x32')
    high, low = jnp.unstack(jax.vmap(lambda k: jax.random.bits(k, (2, count)))(keys), axis=1)
    return high.astype(jnp.float32) * 2.0**-32 + low.astype(jnp.float32) * 2.0**-64


def _halve(weights, numbers):
    """An index of weights [B, 2^n] in proportion to them, by n numbers of each row."""
    levels = [weights]
    while levels[-1].shape[1] > 1:
        half = levels[-1].shape[1] // 2
        levels.append(levels[-1][:, :half] + levels[-1][:, half:])
    place = jnp.zeros(weights.shape[0], jnp.int32)
    for level, number in zip(levels[-2::-1], jnp.unstack(numbers, axis=1)):
        half = level.shape[1] // 2
        left, right = (jnp.take_along_axis(level, p[:, None], axis=1)[:, 0] for p in (place, place + half))
        lighter = number * (left + right) < jnp.minimum(left, right)
        # A half of weight 0 is never taken, and of equal halves the left one counts as the lighter.
        place = jnp.where(lighter == (left <= right), place, place + half)
    return place


def _blocks(size):
    """(tokens in a block, number of blocks), powers of two that together hold `size` tokens."""
    power = 1 << (size - 1).bit_length()
    return min(_BLOCK, power), max(power // _BLOCK, 1)


def truncate(logps: jax.Array, *, top_k: int | None, top_p: float, min_p: float) -> jax.Array:
    """Sets to -inf what top-k, top-p and min-p leave out; each filter reads the whole distribution.

    Args:
      logps: float[B, V], normalised.
      top_k: keep the k likeliest tokens, and what ties with the last of them; None keeps all.
      top_p: keep the smallest set of likeliest tokens whose probability reaches it (arXiv 1904.09751); 1 keeps all.
      min_p: keep tokens of at least min_p times the probability of the likeliest (arXiv 2407.01082); 0 keeps all.

    Returns:
      float[B, V], not normalised; the likeliest token always stays.
    """
    probabilities = jnp.exp(logps)
    least = jnp.zeros_like(logps[:, :1])
    if min_p > 0:
        least = jnp.maximum(least, min_p * jnp.max(probabilities, axis=-1, keepdims=True))
    if top_k is not None and top_k < logps.shape[-1]:
        least = jnp.maximum(least, _largest_floor(probabilities, lambda kept: jnp.sum(kept, axis=-1) >= top_k))
    if top_p < 1:
        mass = lambda kept: jnp.sum(jnp.where(kept, probabilities, 0.0), axis=-1)  # noqa: E731
        least = jnp.maximum(least, _largest_floor(probabilities, lambda kept: mass(kept) >= top_p))
    likeliest = jnp.max(probabilities, axis=-1, keepdims=True)
    return jnp.where(probabilities >= jnp.minimum(least, likeliest), logps, -jnp.inf)


def _largest_floor(probabilities: jax.Array, enough: Callable) -> jax.Array:
    """The largest float f such that `enough(probabilities >= f)`, [B, 1]; 0 where nothing is.

    Found by halving the range of its bit pattern, which orders floats in [0, 1] as it orders integers: 31 passes.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high + 1) // 2
        good = enough(probabilities >= jax.lax.bitcast_convert_type(middle, jnp.float32))[:, None]
        return jnp.where(good, middle, low), jnp.where(good, high, middle - 1)

    one = jax.lax.bitcast_convert_type(jnp.ones((probabilities.shape[0], 1), jnp.float32), jnp.int32)
    low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(one), one))
    return jax.lax.bitcast_convert_type(low, jnp.float32)
