"""KL estimators by hand and in expectation, the exact KL, the coefficient's control."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.ops import kl

LOGPS, REFS = np.array([-1.0, -2.0]), np.array([-1.5, -1.0])  # d = 0.5 and -1


def test_estimates_by_hand(x64):
    expected = {
        'k1': [0.5, -1.0],
        'k2': [0.125, 0.5],
        'k3': [np.exp(-0.5) - 0.5, np.exp(1.0) - 2.0],
        'abs': [0.5, 1.0],
        'k3_straight': [np.exp(-0.5) - 0.5, np.exp(1.0) - 2.0],
    }
    assert set(expected) == set(kl.KINDS)
    for kind, numbers in expected.items():
        np.testing.assert_allclose(kl.kl_estimate(LOGPS, REFS, kind), numbers, rtol=1e-12)
    with pytest.raises(ValueError, match='k4'):
        kl.kl_estimate(LOGPS, REFS, 'k4')
    with pytest.raises(AssertionError, match='ref_logps'):
        kl.kl_estimate(LOGPS, REFS[:1], 'k1')


def test_expectations_over_all_outcomes(x64):
    """k1 and k3 have the KL's value; of the gradients only k2's (and k3_straight's) is the KL's."""
    rng = np.random.default_rng(0)
    theta, reference = rng.normal(size=(2, 5))
    log_q = jax.nn.log_softmax(reference)

    def exact(theta):
        return kl.kl_from_logits(theta, reference)

    def estimate(theta, kind):
        p = jax.lax.stop_gradient(jax.nn.softmax(theta))
        return jnp.sum(p * kl.kl_estimate(jax.nn.log_softmax(theta), log_q, kind))

    for kind in ('k1', 'k3', 'k3_straight'):
        np.testing.assert_allclose(estimate(theta, kind), exact(theta), rtol=1e-12)
    truth = jax.grad(exact)(theta)
    assert np.abs(truth).max() > 1e-2
    for kind in ('k2', 'k3_straight'):
        np.testing.assert_allclose(jax.grad(estimate)(theta, kind), truth, rtol=1e-10, atol=1e-14)
    assert np.abs(jax.grad(estimate)(theta, 'k3') - truth).max() > 1e-2


@pytest.mark.parametrize('kind', kl.KINDS)
def test_any_log_ratio_is_finite(kind):
    logps = jnp.array([-1e4, 0.0, -5.0])
    refs = jnp.array([0.0, -1e4, -5.0])
    value, gradient = jax.value_and_grad(lambda x: kl.kl_estimate(x, refs, kind).sum())(logps)
    assert jnp.isfinite(value) and jnp.all(jnp.isfinite(gradient))
    if kind != 'k1':
        assert jnp.all(kl.kl_estimate(logps, refs, kind) >= 0)


def test_exact_kl_by_hand(x64):
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.5, 0.25])
    with np.errstate(divide='ignore'):
        value = kl.kl_from_logits(np.log(p), np.log(q))
        np.testing.assert_allclose(value, 0.5 * np.log(2), rtol=1e-12)
        assert np.isinf(kl.kl_from_logits(np.log(q), np.log(p)))
        gradient = jax.grad(lambda x: kl.kl_from_logits(x, np.log(q)))(np.log(p))
    assert np.all(np.isfinite(gradient))


def test_the_coefficient_follows_the_kl_within_its_bounds():
    settings = {'target': 6.0, 'horizon': 1000.0, 'n_steps': 100.0}
    np.testing.assert_allclose(kl.adaptive_coef(0.2, 6.6, **settings), 0.2 * (1 + 0.1 * 0.1), rtol=1e-6)
    np.testing.assert_allclose(kl.adaptive_coef(0.2, 600.0, **settings), 0.2 * (1 + 0.2 * 0.1), rtol=1e-6)
    np.testing.assert_allclose(kl.adaptive_coef(0.2, 0.0, **settings), 0.2 * (1 - 0.2 * 0.1), rtol=1e-6)
    np.testing.assert_allclose(kl.fixed_coef(0.2, 600.0), 0.2, rtol=1e-6)
