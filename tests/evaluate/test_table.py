"""The tabular policy: a distribution over all completions, sampled as it says, its optimum within its reach."""

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.evaluate import table
from rlax_ft.tasks import exact


def test_completions_rewards_and_places_are_the_tasks():
    texts = [' '.join(exact.LETTERS[i] for i in row) for row in table.ALL[[0, 1, 777, 1295]]]
    assert [exact.completions()[i] for i in (0, 1, 777, 1295)] == texts
    np.testing.assert_array_equal(table.places(table.ALL), np.arange(6**4))
    assert float(table.rewards()[2, 777]) == np.float32(exact.reward('south', texts[2]))


def test_it_samples_what_it_says():
    pi = table.log_pi(table.reference())
    logps = table.distribution(pi)
    np.testing.assert_allclose(jax.nn.logsumexp(logps, axis=1), 0.0, atol=1e-4)
    prompt = jnp.full(20_000, 3)
    letters = table.sample(pi, prompt, jax.random.key(0))
    counts = np.bincount(np.asarray(table.places(letters)), minlength=6**4) / 20_000
    expected = np.exp(np.asarray(logps[3]))
    assert np.abs(counts - expected).sum() < 0.2  # the mean of |p_hat - p| over 1,296 completions
    # The first letter is the authors': from letter 0 on.
    np.testing.assert_allclose(np.bincount(letters[:, 0]) / 20_000, exact.HABIT[3, 0], atol=0.02)
