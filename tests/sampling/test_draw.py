"""Drawing a token: its probability, read off the draw itself by enumeration, is softmax's however small that is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.sampling.draw import choose, draw, fractions, halvings, row_words

ONE = int(np.float32(1.0).view(np.int32))
choose_jit = jax.jit(choose)


def enumerated(logps, paths):
    """(tokens, their probabilities) of random ways through the numbers of a draw, found by halving float32 itself.

    With the numbers after it at 0, what is drawn depends on number k by one threshold: the share of numbers below it is
    the probability of what a 0 gives. A path takes one side of each threshold; the product is its token's probability.
    """
    rng = np.random.default_rng(0)
    count = halvings(len(logps))
    rows = jnp.tile(jnp.asarray(logps, jnp.float32), (paths, 1))
    numbers, product = np.zeros((paths, count), np.float32), np.ones(paths)
    for k in range(count):
        at = lambda x: np.asarray(choose_jit(rows, jnp.asarray(np.where(np.arange(count) == k, x[:, None], numbers))))  # noqa: B023, E731
        zero, one = at(np.zeros(paths, np.float32)), at(np.ones(paths, np.float32))
        low, high = np.zeros(paths, np.int32), np.full(paths, ONE, np.int32)
        for _ in range(31):  # low gives what 0 gives, high does not.
            middle = (low + high) // 2
            same = at(middle.view(np.float32)) == zero
            low, high = np.where(same, middle, low), np.where(same, high, middle)
        threshold = high.view(np.float32).astype(np.float64)
        forced = zero == one
        below = forced | (rng.random(paths) < 0.5)
        numbers[:, k] = np.where(below, 0.0, 1.0)
        product *= np.where(forced, 1.0, np.where(below, threshold, 1.0 - threshold))
    return np.asarray(choose_jit(rows, jnp.asarray(numbers))), product


def check(logps, paths):
    tokens, probabilities = enumerated(logps, paths)
    weights = np.exp(np.asarray(logps, np.float64))
    np.testing.assert_allclose(probabilities, (weights / weights.sum())[tokens], rtol=1e-5)
    return tokens


@pytest.mark.parametrize('size', [1, 2, 5, 128, 300])
def test_every_probability_is_softmaxs(size):
    rng = np.random.default_rng(size)
    logps = np.log(rng.random(size)) - rng.integers(0, 25, size) * (rng.random(size) < 0.5)
    logps = (logps - logps.max()).astype(np.float32)
    tokens = check(logps, 2048)
    assert len(set(tokens.tolist())) > 0.9 * size or size > 128


def test_a_tail_of_many_small_tokens_is_drawn_at_its_probability():
    """65,000 tokens that share 1.1e-3, which no uniform number of 2^23 values can tell apart, and far smaller ones."""
    size = 151_936
    logps = np.full(size, -40.0, np.float32)
    logps[3] = 0.0
    tail = np.random.default_rng(1).permutation(np.arange(4, size))[:65_000]
    logps[tail] = np.log(1.1e-3 / 65_000)
    tokens = check(logps, 6)
    assert (logps[tokens] < -10).any()
    # The same as a count: 4 of 4,096 draws from the tail's mass of 1.1e-3 on average, all at tokens of the tail.
    words = jax.random.bits(jax.random.key(0), (4096, 2))
    drawn = np.concatenate(
        [choose_jit(jnp.tile(logps, (8, 1)), fractions(part, halvings(size))) for part in words[:256].reshape(32, 8, 2)]
    )
    assert set(drawn.tolist()) <= {3, *tail.tolist()}


def test_numbers_are_uniform_and_fine_near_zero():
    numbers = np.asarray(fractions(jax.random.bits(jax.random.key(0), (4096, 2)), 18), np.float64)
    assert numbers.min() >= 0 and numbers.max() <= 1
    np.testing.assert_allclose(numbers.mean(axis=0), 0.5, atol=0.03)  # 6 standard errors
    np.testing.assert_allclose(np.corrcoef(numbers.T), np.eye(18), atol=0.1)
    least = np.sort(numbers.ravel())[:4]
    assert (least * 2**23 % 1 != 0).any()  # not on the grid of float32's own uniforms
    shares = [(numbers < p).mean() for p in (1e-2, 1e-3)]
    np.testing.assert_allclose(shares, [1e-2, 1e-3], rtol=0.4)


def test_what_was_left_out_is_never_drawn():
    logps = jnp.full((3, 300), -jnp.inf).at[:, 130].set(0.0)
    numbers = jnp.asarray([[0.0], [0.5], [1.0]]) * jnp.ones(halvings(300))
    assert choose(logps, numbers).tolist() == [130] * 3


def test_a_rows_words_are_its_own():
    many, few = row_words(jax.random.key(0), 5, 3), row_words(jax.random.key(0), 2, 3)
    np.testing.assert_array_equal(many[:2], few)
    assert len(np.unique(many.reshape(-1, 2), axis=0)) == 15


def test_draws_at_a_temperature_follow_its_distribution():
    logits = jnp.asarray([0.0, 1.0, -2.0, 3.0, 0.5])
    words = jax.random.bits(jax.random.key(1), (20_000, 2))
    how = dict(temperature=0.7, top_k=None, top_p=1.0, min_p=0.0)
    tokens, logps = jax.jit(lambda w: draw(jnp.tile(logits, (20_000, 1)), w, **how))(words)
    expected = np.asarray(jax.nn.softmax(logits / 0.7))
    counts = np.bincount(tokens, minlength=5)
    assert ((counts - 20_000 * expected) ** 2 / (20_000 * expected)).sum() < 18.5  # 0.1 % point, 4 degrees of freedom
    np.testing.assert_allclose(np.exp(logps), expected[np.asarray(tokens)], rtol=1e-5)
