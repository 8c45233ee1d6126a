"""Policies' distributions against scipy-free numbers: sums over actions, histograms, quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.envs.distributions import Categorical, MultiCategorical, Normal, TanhNormal, make_distribution
from rlax_ft.envs.environment import Box, Discrete, MultiDiscrete
from rlax_ft.errors import InputError

BOX = Box.of((2,), [-2.0, 0.0], [2.0, 3.0])
LOGITS = jnp.asarray([0.3, -1.0, 2.0])
OTHER = jnp.asarray([0.0, 0.5, 0.1])


def test_categorical():
    policy = Categorical(3)
    p, q = (np.exp(x) / np.exp(x).sum() for x in (np.asarray(LOGITS, float), np.asarray(OTHER, float)))
    np.testing.assert_allclose([policy.log_prob(LOGITS, jnp.asarray(a)) for a in range(3)], np.log(p), rtol=1e-5)
    np.testing.assert_allclose(policy.entropy(LOGITS), -(p * np.log(p)).sum(), rtol=1e-5)
    np.testing.assert_allclose(policy.kl(LOGITS, OTHER), (p * np.log(p / q)).sum(), rtol=1e-5)
    draws = policy.sample(LOGITS, policy.noise(jax.random.key(0), (40_000,)))
    np.testing.assert_allclose(np.bincount(draws, minlength=3) / 40_000, p, atol=0.01)
    assert int(policy.mode(LOGITS)) == 2


def test_multi_categorical_is_independent():
    policy = MultiCategorical((3, 2))
    outputs = jnp.concatenate([LOGITS, jnp.asarray([1.0, 0.0])])
    total = sum(np.exp(float(policy.log_prob(outputs, jnp.asarray([a, b])))) for a in range(3) for b in range(2))
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)
    parts = Categorical(3).entropy(LOGITS) + Categorical(2).entropy(outputs[3:])
    np.testing.assert_allclose(policy.entropy(outputs), parts, rtol=1e-5)
    np.testing.assert_array_equal(policy.mode(outputs), [2, 0])
    assert policy.sample(outputs, policy.noise(jax.random.key(0), (7,))).shape == (7, 2)
    assert float(policy.kl(outputs, outputs)) == 0.0


@pytest.mark.parametrize('policy', [Normal(BOX), TanhNormal(BOX)])
def test_densities_and_entropies(policy):
    outputs = jnp.asarray([0.4, -0.3, -0.2, 0.1])
    draws = policy.sample(outputs, policy.noise(jax.random.key(0), (200_000,)))
    logps = policy.log_prob(outputs, draws)
    np.testing.assert_allclose(policy.entropy(outputs), -np.mean(logps), atol=0.01)
    other = jnp.asarray([0.1, 0.2, 0.3, -0.4])
    ratio = np.mean(logps - policy.log_prob(other, draws))
    np.testing.assert_allclose(policy.kl(outputs, other), ratio, atol=0.02)
    actions = np.asarray(policy.to_env(draws))
    assert (actions >= BOX.low).all() and (actions <= BOX.high).all()


def test_squashed_density_is_that_of_the_action():
    """On a grid of actions, exp(log_prob) is the histogram's limit: it sums to 1 over the box."""
    policy = TanhNormal(Box.of((1,), -2.0, 3.0))
    outputs = jnp.asarray([0.3, -0.5])
    actions = np.linspace(-2.0, 3.0, 20_001)[1:-1]
    u = np.arctanh((actions + 2.0) / 2.5 - 1.0)
    density = np.exp(np.asarray(policy.log_prob(outputs, jnp.asarray(u, jnp.float32)[:, None])))
    np.testing.assert_allclose(density.sum() * (actions[1] - actions[0]), 1.0, atol=1e-3)


def test_squashed_density_is_finite_at_the_edge():
    policy = TanhNormal(BOX)
    grad = jax.grad(lambda o: policy.log_prob(o, jnp.asarray([30.0, -30.0])))(jnp.asarray([0.0, 0.0, 1.0, 1.0]))
    assert np.isfinite(grad).all()


def test_a_clipped_action_is_scored_as_drawn():
    policy = Normal(Box.of((1,), -1.0, 1.0))
    outputs, drawn = jnp.asarray([0.0, 0.0]), jnp.asarray([3.0])
    assert float(policy.to_env(drawn)[0]) == 1.0
    np.testing.assert_allclose(policy.log_prob(outputs, drawn), -4.5 - 0.5 * np.log(2 * np.pi), rtol=1e-6)


@pytest.mark.parametrize(
    ('space', 'kind', 'message'),
    [
        (Discrete(3), 'normal', 'discrete, 1 of 3; give categorical'),
        (MultiDiscrete((2, 2)), 'tanh_normal', 'discrete, 2 at once'),
        (BOX, 'categorical', 'give normal or tanh_normal'),
        (Box.of((1,)), 'tanh_normal', 'squashing needs finite bounds'),
    ],
)
def test_what_does_not_fit_is_refused(space, kind, message):
    with pytest.raises(InputError, match=message):
        make_distribution(space, kind)
