"""What holds for every loss: exact gradients, jit and vmap, bfloat16, extreme inputs, masks, independence of rows."""

import functools
import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import ALL, TOKENS, B

every = pytest.mark.parametrize('case', ALL, ids=lambda case: case.name)


@functools.cache
def compiled(name):
    """(floats, fixed, weights) -> (total, (losses, gradients)) of a case, compiled once for all tests."""
    (case,) = (c for c in ALL if c.name == name)

    def total(floats, fixed, weights):
        losses = case.call(floats, fixed)
        return jnp.sum(weights * losses), losses

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def value_and_gradients(case, floats, fixed, weights=1.0):
    (total, losses), gradients = compiled(case.name)(floats, fixed, weights)
    return total, losses, gradients


def weights_for(case):
    shape = jax.eval_shape(case.call, case.floats, case.fixed).shape
    return np.random.default_rng(7).uniform(0.5, 1.5, shape)


@pytest.mark.parametrize('case', [c for c in ALL if not c.stops], ids=lambda case: case.name)
def test_gradient_is_that_of_finite_differences(case, x64):
    weights = weights_for(case)
    _, _, gradients = value_and_gradients(case, case.floats, case.fixed, weights)
    flat, unravel = jax.flatten_util.ravel_pytree(case.floats)
    steps = 1e-5 * jnp.eye(flat.size)
    totals = jax.jit(jax.vmap(lambda step: jnp.sum(weights * case.call(unravel(flat + step), case.fixed))))
    slopes = np.asarray(totals(jnp.concatenate([steps, -steps]))).reshape(2, -1)
    slopes = (slopes[0] - slopes[1]) / 2e-5
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(gradients)[0], slopes, rtol=1e-6, atol=1e-8)
    assert np.abs(slopes).max() > 1e-3


@every
def test_jit_and_vmap_change_nothing(case, x64):
    plain = case.call(case.floats, case.fixed)
    np.testing.assert_allclose(value_and_gradients(case, case.floats, case.fixed)[1], plain, rtol=1e-12)
    floats, fixed = jax.tree.map(lambda x: np.stack([x, x[::-1]]), (case.floats, case.fixed))
    mapped = jax.vmap(case.call)(floats, fixed)
    flipped = jax.tree.map(lambda x: x[::-1], (case.floats, case.fixed))
    np.testing.assert_allclose(mapped[0], plain, rtol=1e-12)
    np.testing.assert_allclose(mapped[1], value_and_gradients(case, *flipped)[1], rtol=1e-12)


@pytest.mark.parametrize('case', [c for c in ALL if not c.whole_batch], ids=lambda case: case.name)
def test_rows_do_not_see_each_other(case, x64):
    plain = value_and_gradients(case, case.floats, case.fixed)[1]
    order = np.array([2, 0, 1])
    moved = value_and_gradients(case, *jax.tree.map(lambda x: x[order], (case.floats, case.fixed)))[1]
    np.testing.assert_allclose(moved, plain[order], rtol=1e-12)
    one = case.call(*jax.tree.map(lambda x: x[1:2], (case.floats, case.fixed)))
    np.testing.assert_allclose(one, plain[1:2], rtol=1e-12)


@every
def test_bfloat16_comes_in_and_float32_goes_on(case):
    narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), case.floats)
    _, losses, gradients = value_and_gradients(case, narrow, case.fixed)
    assert losses.dtype == jnp.float32
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    np.testing.assert_allclose(losses, value_and_gradients(case, wide, case.fixed)[1], rtol=1e-6)
    assert all(g.dtype == jnp.bfloat16 for g in jax.tree.leaves(gradients))


@every
def test_extreme_inputs_stay_finite(case):
    for name, size in itertools.product(case.floats, (1e4, -1e4, 0.0)):
        floats = {k: np.asarray(v, np.float32) for k, v in case.floats.items()}
        floats[name] = np.full_like(floats[name], size)
        floats[name][..., 0] = -size
        _, losses, gradients = value_and_gradients(case, floats, case.fixed)
        assert jnp.all(jnp.isfinite(losses)), name
        assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(gradients)), name


masked_cases = pytest.mark.parametrize('case', [c for c in ALL if c.masked], ids=lambda case: case.name)


@masked_cases
@pytest.mark.parametrize('poison', [np.nan, np.inf])
def test_masked_positions_are_exactly_zero_whatever_they_hold(case, poison, x64):
    mask = case.fixed['mask']
    weights = weights_for(case)
    clean = value_and_gradients(case, case.floats, case.fixed, weights)

    def spoil(x):
        if x.dtype == bool:
            return x
        return np.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, poison)

    spoilt = jax.tree.map(spoil, (case.floats, case.fixed))
    dirty = value_and_gradients(case, *spoilt, weights)
    np.testing.assert_allclose(dirty[0], clean[0], rtol=1e-12)
    for name in case.floats:
        np.testing.assert_allclose(dirty[2][name], clean[2][name], rtol=1e-12)
        np.testing.assert_array_equal(dirty[2][name][~mask], 0.0)
    np.testing.assert_array_equal(dirty[1][~mask], 0.0)


@masked_cases
def test_nothing_unmasked_and_one_token(case):
    empty = case.fixed | {'mask': np.zeros_like(case.fixed['mask'])}
    _, losses, gradients = value_and_gradients(case, case.floats, empty)
    assert not np.any(losses)
    assert all(not np.any(g) for g in jax.tree.leaves(gradients))
    short_floats, short_fixed = jax.tree.map(lambda x: x[:1, :1], (case.floats, case.fixed))
    single = case.call(short_floats, short_fixed)
    assert single.shape == (1, 1) and jnp.isfinite(single[0, 0])


@pytest.mark.parametrize('case', TOKENS, ids=lambda case: case.name)
def test_padding_columns_change_nothing(case, x64):
    def widen(x):
        return np.pad(x, ((0, 0), (2, 3)), constant_values=0 if x.dtype == bool else -5.0)

    wide = case.call(*jax.tree.map(widen, (case.floats, case.fixed)))
    np.testing.assert_allclose(wide[:, 2:-3], value_and_gradients(case, case.floats, case.fixed)[1], rtol=1e-12)
    np.testing.assert_array_equal(wide[:, :2], 0.0)


@every
def test_a_wrong_shape_is_an_error_that_names_the_argument(case):
    name = next(iter(case.floats))
    wrong = case.floats | {name: np.ones((B + 1, 2, 2, 2, 2))}
    with pytest.raises(AssertionError, match=r'`\w+`.* must'):
        jax.eval_shape(case.call, wrong, case.fixed)


@every
def test_complex_numbers_are_refused(case):
    wrong = {k: v.astype(np.complex64) for k, v in case.floats.items()}
    with pytest.raises(AssertionError, match=r'real|floating'):
        case.call(wrong, case.fixed)
