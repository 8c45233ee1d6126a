"""Reduction by hand: each mode's denominator, masked statistics, nothing unmasked; splits are in `losses/`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.ops import reduce

X = np.array([[1.0, 2.0, 3.0], [4.0, np.nan, np.nan], [np.nan, np.nan, np.nan]])
MASK = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
EXPECTED = {
    'token_mean': (10 / 4, 4),
    'seq_mean_token_mean': ((2 + 4) / 2, 2),
    'seq_mean_token_sum': ((6 + 4) / 2, 2),
    'constant': (10 / (3 * 5), 15),
}


@pytest.mark.parametrize('mode', reduce.MODES)
@pytest.mark.parametrize('dtype', [bool, int, np.float32])
def test_each_mode_by_hand(mode, dtype):
    value, denominator = EXPECTED[mode]
    mask = MASK.astype(dtype)
    np.testing.assert_allclose(reduce.aggregate(X, mask, mode, max_len=5), value, rtol=1e-6)
    assert reduce.denominator(mask, mode, max_len=5) == denominator
    np.testing.assert_allclose(reduce.aggregate(X, mask, mode, denominator=denominator * 2), value / 2, rtol=1e-6)
    gradient = jax.grad(lambda x: reduce.aggregate(x, mask, mode, max_len=5))(X)
    np.testing.assert_array_equal(gradient[MASK == 0], 0.0)
    assert np.all(np.isfinite(gradient)) and np.any(gradient)


@pytest.mark.parametrize('mode', reduce.MODES)
def test_nothing_unmasked_gives_zero_and_no_gradient(mode):
    value, gradient = jax.value_and_grad(lambda x: reduce.aggregate(x, 0 * MASK, mode, max_len=5))(X)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_per_example_losses_have_no_token_axis():
    x, mask = np.array([1.0, 3.0, np.nan]), np.array([1, 1, 0])
    for mode in ('token_mean', 'seq_mean_token_mean', 'seq_mean_token_sum'):
        np.testing.assert_allclose(reduce.aggregate(x, mask, mode), 2.0)


def test_weights_between_0_and_1_weigh():
    np.testing.assert_allclose(reduce.aggregate(np.array([[1.0, 4.0]]), np.array([[1.0, 0.5]]), 'token_mean'), 2.0)


def test_wrong_modes_and_shapes_are_named():
    for call in (reduce.aggregate, lambda x, *rest: reduce.denominator(*rest)):
        with pytest.raises(ValueError, match='token_median'):
            call(X, MASK, 'token_median')
        with pytest.raises(ValueError, match='max_len'):
            call(X, MASK, 'constant')
    with pytest.raises(AssertionError, match='mask'):
        reduce.aggregate(X, MASK[:, :1], 'token_mean')


def test_padding_does_not_count_in_means():
    """Padding counted in metrics was a fault."""
    np.testing.assert_allclose(reduce.masked_mean(X, MASK), 2.5)
    assert reduce.masked_mean(X, 0 * MASK) == 0.0


def test_variance_is_unbiased_and_zero_below_two_entries():
    np.testing.assert_allclose(reduce.masked_var(X, MASK), np.var([1, 2, 3, 4], ddof=1), rtol=1e-6)
    one = np.array([[0, 0, 1], [0, 0, 0], [0, 0, 0]])
    assert reduce.masked_var(X, one) == 0.0
    assert reduce.masked_var(X, 0 * one) == 0.0
    far = 1e4 + np.arange(4.0)[None]
    np.testing.assert_allclose(reduce.masked_var(far, np.ones((1, 4))), 5 / 3, rtol=1e-4)


def test_whitened_means_centred_as_well_as_scaled():
    """Advantages "whitened" but not centred were a fault."""
    white = np.asarray(reduce.masked_whiten(X, MASK))
    kept = white[MASK == 1]
    np.testing.assert_allclose(kept.mean(), 0.0, atol=1e-6)
    np.testing.assert_allclose(kept.std(ddof=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(white[MASK == 0], 0.0)
    uncentred = np.asarray(reduce.masked_whiten(X, MASK, shift_mean=False))
    np.testing.assert_allclose(uncentred[MASK == 1], kept + 2.5, rtol=1e-5)
    same = reduce.masked_whiten(np.full((2, 2), 3.0), np.ones((2, 2)))
    np.testing.assert_array_equal(same, 0.0)


def test_quantile_is_of_unmasked_entries():
    kept = reduce.above_quantile(np.array([[1.0, 2.0, 3.0, 4.0, 99.0]]), np.array([[1, 1, 1, 1, 0]]), 0.5)
    np.testing.assert_array_equal(kept, [[False, False, True, True, False]])


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.int32])
def test_sums_are_float32_whatever_comes_in(dtype):
    x = jnp.ones((1, 4096), dtype)  # 4096 is past where bfloat16 and float16 count by ones
    total = reduce.aggregate(x, x > 0, 'seq_mean_token_sum')
    assert total.dtype == jnp.float32 and total == 4096.0


def test_float64_stays_float64(x64):
    assert reduce.aggregate(X, MASK, 'token_mean').dtype == jnp.float64
    assert reduce.masked_whiten(X, MASK).dtype == jnp.float64
