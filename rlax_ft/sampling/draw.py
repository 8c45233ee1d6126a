"""Drawing one token a row: truncation of the distribution, and an exact draw from one uniform number.

Leaves out the model and the loop. Nothing here sorts: on a vocabulary of any size a draw is a few passes over it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_BLOCK = 128


def row_uniforms(key: jax.Array, rows: int, count: int) -> jax.Array:
    """The numbers that rows draw with, float32[rows, count] in [0, 1): row i's depend on `key` and i alone.

    Args:
      key: one key, or an array of a key for each row.
      rows: number of rows.
      count: draws of each row.
    """
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # A key of the old kind, whose numbers would look like two rows' keys.
    keys = key if key.ndim else jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(rows))
    return jax.vmap(lambda k: jax.random.uniform(k, (count,)))(keys)


def draw(
    logits: jax.Array, uniform: jax.Array, *, temperature: float, top_k: int | None, top_p: float, min_p: float
) -> tuple[jax.Array, jax.Array]:
    """A token of each row, and its log-probability under softmax(logits / temperature) before truncation.

    Args:
      logits: float[B, V].
      uniform: float[B] in [0, 1).
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
        token = inverse_cdf(kept, uniform)
    else:
        token = jnp.argmax(logits, axis=-1)
    token = token.astype(jnp.int32)
    return token, jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - log_total


def inverse_cdf(logps: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first token whose cumulative probability exceeds u: an exact draw from one uniform number per row.

    The block of tokens is found first, then the token in it, so that nothing of the vocabulary's length is accumulated.

    Args:
      logps: float[B, V], log-probabilities up to a constant, the largest near 0; -inf is never drawn.
      uniform: float[B] in [0, 1).

    Returns:
      int32[B].
    """
    padded = jnp.pad(logps, ((0, 0), (0, -logps.shape[-1] % _BLOCK)), constant_values=-jnp.inf)
    weights = jnp.exp(padded).reshape(logps.shape[0], -1, _BLOCK)
    sums = jnp.sum(weights, axis=-1)
    ends = jnp.cumsum(sums, axis=-1)
    target = uniform * ends[:, -1]
    block = _first_above(ends, sums, target)
    inside = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
    before = jnp.take_along_axis(ends - sums, block[:, None], axis=1)
    return block * _BLOCK + _first_above(before + jnp.cumsum(inside, axis=-1), inside, target)


def _first_above(ends, weights, target):
    """Index of the first end above the target; rounding never leads past the last positive weight."""
    last = jnp.max(jnp.where(weights > 0, jnp.arange(weights.shape[-1]), 0), axis=-1)
    return jnp.minimum(jnp.sum(ends <= target[:, None], axis=-1), last)


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
