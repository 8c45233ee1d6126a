"""Plackett-Luce by enumeration, K = 2 as Bradley-Terry and DPO, ties, masks, partial rankings."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.losses import preference, ranking, reward_model
from rlax_ft.types import PairLogps


def probability(scores, order):
    """Plackett-Luce: draw the best, then the best of those left, and so on."""
    result, left = 1.0, list(order)
    while left:
        result *= np.exp(scores[left[0]]) / np.sum(np.exp(scores[left]))
        left.pop(0)
    return result


def ranks_of(order):
    return np.argsort(order)


@pytest.mark.parametrize('k', [2, 3, 4])
def test_each_permutation_has_its_probability_and_all_sum_to_one(k, x64):
    scores = np.random.default_rng(k).normal(size=k)
    orders = list(itertools.permutations(range(k)))
    ranks = np.stack([ranks_of(order) for order in orders])
    losses = ranking.plackett_luce_loss(np.tile(scores, (len(orders), 1)), ranks)
    expected = [probability(scores, order) for order in orders]
    np.testing.assert_allclose(np.exp(-losses), expected, rtol=1e-12)
    np.testing.assert_allclose(np.exp(-losses).sum(), 1.0, rtol=1e-12)


def test_two_candidates_are_bradley_terry_and_dpo_to_the_last_bit():
    rng = np.random.default_rng(0)
    logps, refs = (jnp.asarray(rng.normal(size=(200, 2)) * 8, jnp.float32) for _ in range(2))
    ranks = jnp.tile(jnp.array([0, 1]), (200, 1))
    np.testing.assert_array_equal(
        ranking.plackett_luce_loss(logps, ranks), reward_model.bradley_terry_loss(logps[:, 0], logps[:, 1])
    )
    np.testing.assert_array_equal(
        ranking.plackett_luce_dpo_loss(logps, refs, ranks, beta=0.3),
        preference.dpo_loss(PairLogps(logps[:, 0], logps[:, 1], refs[:, 0], refs[:, 1]), beta=0.3),
    )


def test_dpo_form_is_the_loss_of_implicit_rewards(x64):
    rng = np.random.default_rng(1)
    logps, refs = rng.normal(size=(2, 5, 4))
    ranks = np.argsort(rng.random((5, 4)))
    ours = ranking.plackett_luce_dpo_loss(logps, refs, ranks, beta=0.7)
    np.testing.assert_allclose(ours, ranking.plackett_luce_loss(0.7 * (logps - refs), ranks), rtol=1e-12)


def test_masked_candidates_do_not_exist(x64):
    scores = np.array([[0.3, np.nan, -1.0, 0.8], [0.1, 0.2, np.nan, np.nan]])
    ranks = np.array([[1, 0, 2, 0], [1, 0, 0, 0]])
    mask = np.array([[True, False, True, True], [True, True, False, False]])
    losses = ranking.plackett_luce_loss(scores, ranks, mask)
    kept = np.array([0.3, -1.0, 0.8])
    np.testing.assert_allclose(losses[0], -np.log(probability(kept, [2, 0, 1])), rtol=1e-12)
    np.testing.assert_allclose(losses[1], -np.log(probability(scores[1], [1, 0])), rtol=1e-12)
    gradient = jax.grad(lambda s: ranking.plackett_luce_loss(s, ranks, mask).sum())(scores)
    np.testing.assert_array_equal(gradient[~mask], 0.0)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize('count', [0, 1])
def test_under_two_candidates_there_is_nothing_to_learn(count):
    mask = np.arange(3)[None] < count
    value, gradient = jax.value_and_grad(lambda s: ranking.plackett_luce_loss(s, np.arange(3)[None], mask).sum())(
        jnp.array([[1.0, jnp.nan, jnp.nan]])
    )
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_ties_are_breslows(x64):
    a, b, c = 0.7, -0.4, 0.2
    loss = ranking.plackett_luce_loss(np.array([[a, b, c]]), np.array([[0, 0, 1]]))
    everyone = np.log(np.exp(a) + np.exp(b) + np.exp(c))
    np.testing.assert_allclose(loss, [2 * everyone - a - b], rtol=1e-12)


def test_tied_candidates_are_exchangeable_and_pulled_together(x64):
    scores, ranks = np.array([[0.9, -0.3, 0.1]]), np.array([[1, 1, 0]])
    loss = ranking.plackett_luce_loss(scores, ranks)
    np.testing.assert_allclose(ranking.plackett_luce_loss(scores[:, [1, 0, 2]], ranks), loss, rtol=1e-12)
    gradient = jax.grad(lambda s: ranking.plackett_luce_loss(s, ranks).sum())(scores)[0]
    assert gradient[0] > gradient[1]  # descent lowers the higher of the two more
    level = jax.grad(lambda s: ranking.plackett_luce_loss(s, ranks).sum())(np.array([[0.3, 0.3, 0.1]]))[0]
    np.testing.assert_allclose(level[0], level[1], rtol=1e-12)


def test_only_the_order_of_ranks_matters(x64):
    scores = np.random.default_rng(3).normal(size=(2, 4))
    ranks = np.array([[0, 1, 2, 3], [1, 0, 1, 2]])
    np.testing.assert_array_equal(
        ranking.plackett_luce_loss(scores, ranks), ranking.plackett_luce_loss(scores, ranks * 10 - 7)
    )


def test_order_of_candidates_does_not_matter(x64):
    rng = np.random.default_rng(4)
    scores, ranks = rng.normal(size=(3, 4)), np.array([[0, 1, 2, 3], [1, 0, 1, 2], [0, 0, 0, 0]])
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(
        ranking.plackett_luce_loss(scores[:, order], ranks[:, order]),
        ranking.plackett_luce_loss(scores, ranks),
        rtol=1e-12,
    )


def test_top_counts_first_places_only(x64):
    scores = np.array([0.5, -0.2, 1.1, 0.0])
    choice = ranking.plackett_luce_loss(scores[None], np.array([[1, 1, 0, 1]]), top=1)
    np.testing.assert_allclose(choice, -jax.nn.log_softmax(scores)[2:3], rtol=1e-12)
    # The marginal of the first two places is the sum over the orders of the others.
    pair = ranking.plackett_luce_loss(scores[None], np.array([[2, 1, 0, 2]]), top=2)
    total = sum(probability(scores, [2, 1, *rest]) for rest in itertools.permutations([0, 3]))
    np.testing.assert_allclose(np.exp(-pair), [total], rtol=1e-12)


def test_ranks_and_masks_of_a_wrong_shape_are_named():
    scores = jnp.zeros((2, 3))
    with pytest.raises(AssertionError, match='ranks'):
        ranking.plackett_luce_loss(scores, jnp.zeros((2, 2), int))
    with pytest.raises(AssertionError, match='mask'):
        ranking.plackett_luce_loss(scores, jnp.zeros((2, 3), int), jnp.ones((3,), bool))
    with pytest.raises(AssertionError, match='ref_logps'):
        ranking.plackett_luce_dpo_loss(scores, jnp.zeros((3, 3)), jnp.zeros((2, 3), int))
