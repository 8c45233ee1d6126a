"""The tabular policy: a distribution over all texts, sampled as it says, whatever it remembers of the letters."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.evaluate.tables import TablePolicy
from rlax_ft.harness.loading import load_script
from rlax_ft.models.scoring import candidate_logps
from rlax_ft.tasks import exact

optimum = load_script(Path(__file__).parents[2] / 'experiments/benchmarks/which_find_optimum.py')


def test_completions_and_rewards_are_the_tasks():
    table = optimum.TABLE
    texts = [' '.join(exact.LETTERS[i] for i in row) for row in table.texts[[0, 1, 777, 1295]]]
    assert [exact.completions()[i] for i in (0, 1, 777, 1295)] == texts
    np.testing.assert_array_equal(table.number(table.texts), np.arange(6**4))
    assert float(optimum.REWARDS[2, 777]) == np.float32(exact.reward('south', texts[2]))


@pytest.mark.parametrize(('markov', 'by_hand'), [(True, [0, 3 + 2, 6 + 1]), (False, [0, 3, 3 * 3 + 2])])
def test_contexts_by_hand(markov, by_hand):
    table = TablePolicy(2, 3, 3, markov=markov)
    np.testing.assert_array_equal(table.contexts(np.asarray([2, 1, 0])), by_hand)
    assert table.contexts(table.texts).max() == table.rows - 1


@pytest.mark.parametrize('markov', [True, False])
def test_a_model_of_it_says_the_same(markov):
    table = TablePolicy(2, 3, 3, markov=markov)
    params, prompt = table.init(jax.random.key(0), 1.0), jnp.asarray([1, 0])
    index = jnp.asarray([[5, 26], [0, 13]])
    score = jax.jit(lambda params: candidate_logps(table.apply, {'params': params}, table.batch(prompt, index)))
    np.testing.assert_allclose(score(params), table.logps(params)[prompt[:, None], index], atol=1e-5)


def test_it_samples_what_it_says():
    table, pi = optimum.TABLE, jax.nn.log_softmax(optimum.reference())
    logps = table.logps({'table': optimum.reference()})
    np.testing.assert_allclose(jax.nn.logsumexp(logps, axis=1), 0.0, atol=1e-4)
    prompt = jnp.full(20_000, 3)
    letters = table.sample(pi, prompt, jax.random.key(0))
    counts = np.bincount(np.asarray(table.number(letters)), minlength=6**4) / 20_000
    expected = np.exp(np.asarray(logps[3]))
    assert np.abs(counts - expected).sum() < 0.2  # the mean of |p_hat - p| over 1,296 completions
    # The first letter is the authors': from letter 0 on.
    np.testing.assert_allclose(np.bincount(letters[:, 0]) / 20_000, exact.HABIT[3, 0], atol=0.02)
