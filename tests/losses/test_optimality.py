"""Where the losses are stationary, on tabular policies of which every outcome is enumerated: nothing is trained."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.losses import policy_gradient, preference, ranking
from rlax_ft.ops import returns
from rlax_ft.types import PairLogps

BETA, OUTCOMES = 0.7, 4
RNG = np.random.default_rng(0)
REWARD = RNG.normal(size=OUTCOMES)
REF = np.log(RNG.dirichlet(np.ones(OUTCOMES)))  # in numpy, so in float64
OPTIMUM = REF + REWARD / BETA  # logits of pi_ref exp(r / beta) / Z


def log_pi(theta):
    return jax.nn.log_softmax(theta)


def regularised_objective(theta):
    """J = E[r] - beta KL(pi || pi_ref)."""
    p = jnp.exp(log_pi(theta))
    return jnp.sum(p * (REWARD - BETA * (log_pi(theta) - REF)))


def soft_label_dpo(theta):
    """All pairs, labelled with the Bradley-Terry probability of the true reward."""
    i, j = np.triu_indices(OUTCOMES, 1)
    pair = PairLogps(log_pi(theta)[i], log_pi(theta)[j], REF[i], REF[j])
    label = jax.nn.sigmoid(REWARD[i] - REWARD[j])
    return jnp.sum(preference.dpo_loss(pair, beta=BETA, label_smoothing=1 - label))


def plackett_luce_dpo(theta):
    """All rankings, with their Plackett-Luce probability under the true reward."""
    ranks = np.array(list(itertools.permutations(range(OUTCOMES))))
    weights = jnp.exp(-ranking.plackett_luce_loss(jnp.tile(REWARD, (len(ranks), 1)), ranks))
    rows = [jnp.tile(x, (len(ranks), 1)) for x in (log_pi(theta), REF)]
    return jnp.sum(weights * ranking.plackett_luce_dpo_loss(*rows, ranks, beta=BETA))


@pytest.mark.parametrize('objective', [regularised_objective, soft_label_dpo, plackett_luce_dpo])
def test_stationary_at_the_regularised_optimum_and_not_at_the_reference(objective, x64):
    gradient = jax.jit(jax.grad(objective))
    assert np.abs(gradient(OPTIMUM)).max() < 1e-8
    assert np.abs(gradient(REF)).max() > 1e-3


# Sequences of two tokens over three symbols: theta holds the first symbol's logits and, per first symbol, the second's.
SEQUENCES = np.array(list(itertools.product(range(3), repeat=2)))
SCORES = RNG.normal(size=len(SEQUENCES))
ONES = np.ones(SEQUENCES.shape)


def token_logps(theta):
    first = jax.nn.log_softmax(theta[0])[SEQUENCES[:, 0]]
    second = jax.nn.log_softmax(theta[1:], axis=1)[SEQUENCES[:, 0], SEQUENCES[:, 1]]
    return jnp.stack([first, second], axis=1)


def expected_score(theta):
    return jnp.sum(jnp.exp(token_logps(theta).sum(1)) * SCORES)


def weighted(theta, loss, advantages, probabilities):
    """E over outputs, at the sampling policy, of the summed token losses."""
    old = jax.lax.stop_gradient(token_logps(theta))
    advantages = jnp.broadcast_to(advantages[:, None], ONES.shape)
    return jnp.sum(probabilities[:, None] * loss(token_logps(theta), old, advantages, ONES))


@pytest.mark.parametrize('name', ['reinforce_loss', 'ppo_clip_loss', 'gspo_token_loss', 'cispo_loss', 'sapo_loss'])
def test_expected_gradient_at_ratio_one_is_that_of_the_expected_score(name, x64):
    theta = RNG.normal(size=(4, 3))
    probabilities = jnp.exp(token_logps(theta).sum(1))
    loss = getattr(policy_gradient, name)
    gradient = jax.grad(weighted)(theta, loss, jnp.asarray(SCORES), probabilities)
    truth = jax.grad(expected_score)(theta)
    assert np.abs(truth).max() > 1e-2
    np.testing.assert_allclose(gradient, -truth, atol=1e-12)


def test_expected_rloo_gradient_is_that_of_the_expected_score(x64):
    theta = RNG.normal(size=(4, 3))
    probabilities = np.exp(token_logps(theta).sum(1))
    pairs = np.array(list(itertools.product(range(len(SEQUENCES)), repeat=2)))
    advantages = returns.group_advantages(SCORES[pairs].reshape(-1), 2, baseline='leave_one_out', scale='none')
    # Over both draws of a pair: each output's share of probability times advantage.
    shares = np.prod(probabilities[pairs], axis=1)[:, None] * np.asarray(advantages).reshape(-1, 2) / 2
    per_output = np.zeros(len(SEQUENCES))
    np.add.at(per_output, pairs, shares)
    gradient = jax.grad(weighted)(
        theta, policy_gradient.reinforce_loss, jnp.asarray(per_output), np.ones(len(SEQUENCES))
    )
    np.testing.assert_allclose(gradient, -jax.grad(expected_score)(theta), atol=1e-12)


def test_token_gae_of_an_exact_critic_gives_the_true_gradient(x64):
    theta = RNG.normal(size=(4, 3))
    logps = token_logps(theta)
    probabilities = np.exp(logps.sum(1))
    second = np.exp(np.asarray(jax.nn.log_softmax(theta[1:], axis=1)))
    after_first = (second * SCORES.reshape(3, 3)).sum(1)[SEQUENCES[:, 0]]
    values = np.stack([np.full(9, probabilities @ SCORES), after_first], axis=1)
    rewards = returns.token_rewards(SCORES, ONES)
    for lam in (0.0, 0.6, 1.0):
        advantages, _ = returns.token_gae(rewards, values, ONES, gamma=1.0, lam=lam)

        def loss(theta, advantages=advantages):
            losses = policy_gradient.ppo_clip_loss(token_logps(theta), logps, advantages, ONES)
            return jnp.sum(probabilities[:, None] * losses)

        np.testing.assert_allclose(jax.grad(loss)(theta), -jax.grad(expected_score)(theta), atol=1e-12)
