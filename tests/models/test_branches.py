"""Prompts that are shared give the numbers of rows that repeat them: log-probabilities, scores, values, gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.data.rows import share_prompts, shared
from rlax_ft.losses.preference import dpo_loss
from rlax_ft.models.config import embedded_config
from rlax_ft.models.heads import ScalarModel, candidate_scores, reward_params
from rlax_ft.models.scoring import candidate_logps, rollout_batch, rollout_branches, token_logps
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.objectives.ppo import token_values
from rlax_ft.objectives.preference import preference_objective, ranking_objective
from rlax_ft.types import BranchBatch, PreferenceBatch, RankingBatch, Rollout, TokenBatch

CONFIG = embedded_config('tiny', vocab_size=50, max_length=96)
APPLY = Transformer(CONFIG).apply


@pytest.fixture(scope='module')
def params():
    return init_params(CONFIG, jax.random.key(0))


def candidates(count=3, groups=3, prompt=20, response=12, seed=0):
    """Ragged prompts and responses, as the data side lays them out."""
    rng = np.random.default_rng(seed)
    shape = (count, groups, prompt + response)
    tokens, mask, segments = np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    for i in range(count):
        start = rng.integers(2, prompt + 1)
        shared_tokens = rng.integers(3, 50, start)
        for k in range(groups):
            end = start + rng.integers(1, response + 1)
            tokens[i, k, :end] = np.concatenate([shared_tokens, rng.integers(3, 50, end - start)])
            mask[i, k, start:end], segments[i, k, :end] = 1.0, 1
    return TokenBatch(tokens, mask, np.broadcast_to(np.arange(shape[2], dtype=np.int32), shape), segments)


def close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5), a, b)


def compiled(objective):
    return jax.jit(jax.value_and_grad(objective, has_aux=True))


def test_log_probabilities_scores_and_gradients(params):
    rows = candidates()
    branches = shared(rows)
    assert isinstance(branches, BranchBatch)
    scalar = ScalarModel(CONFIG)
    reward = reward_params(params, jax.random.key(1))
    for function, p in (
        (lambda p, x: candidate_logps(APPLY, {'params': p}, x), params),
        (lambda p, x: candidate_scores(scalar.apply, p, x), reward),
    ):

        def loss(p, x, f=function):
            numbers = f(p, x)
            return jnp.mean(jnp.square(numbers)), numbers

        both = jax.jit(jax.grad(loss, has_aux=True))
        (gradient, numbers), (by_branches, the_same) = both(p, rows), both(p, branches)
        close(numbers, the_same)
        close(gradient, by_branches, atol=2e-4)


def test_a_response_does_not_see_another(params):
    branches = shared(candidates(groups=2))
    score = jax.jit(lambda branches: candidate_logps(APPLY, {'params': params}, branches))
    before = score(branches)
    other = branches.responses.tokens.copy()
    other[:, 0] = (other[:, 0] + 1) % 50
    changed = branches.replace(responses=branches.responses.replace(tokens=other))
    after = score(changed)
    np.testing.assert_array_equal(before[:, 1], after[:, 1])
    assert np.abs(before[:, 0] - after[:, 0]).min() > 1e-3


def test_objectives_on_pairs_and_rankings(params):
    rows = candidates(groups=2)
    pairs = PreferenceBatch(rows, np.ones(3, np.float32), ref_logps=np.asarray([[-1.0, 0.0]] * 3))
    objective = compiled(preference_objective(APPLY, partial(dpo_loss, beta=0.3), beta=0.3))
    assert isinstance(share_prompts(pairs).candidates, BranchBatch)
    close(objective(params, (pairs, 3.0), None), objective(params, (share_prompts(pairs), 3.0), None), atol=2e-5)
    assert isinstance(share_prompts(share_prompts(pairs)).candidates, BranchBatch)
    rows = candidates(groups=4)
    ranking = RankingBatch(rows, np.tile(np.arange(4), (3, 1)), np.ones((3, 4), bool), np.zeros((3, 4)))
    objective = compiled(ranking_objective(APPLY, beta=0.3))
    close(objective(params, (ranking, 3.0), None), objective(params, (share_prompts(ranking), 3.0), None), atol=2e-5)


def test_what_would_save_nothing_or_is_not_shared_stays_as_it_is():
    short = candidates(prompt=2, response=20)
    assert shared(short) is None
    rows = candidates()
    rows.tokens[0, 1, 0] += 1
    assert shared(rows) is None
    packed = candidates()
    packed.segment_ids[0, :, -1] = 2
    assert shared(packed) is None


@pytest.mark.parametrize('group', [1, 4])
def test_rollouts_as_branches(params, group):
    rng = np.random.default_rng(0)
    prompts = np.repeat(rng.integers(3, 50, (2, 6)), group, axis=0)
    prompt_mask = np.repeat(np.asarray([[0, 0, 1, 1, 1, 1], [1] * 6], bool), group, axis=0)
    lengths = rng.integers(1, 6, 2 * group)
    mask = np.arange(5) < lengths[:, None]
    tokens = np.where(mask, rng.integers(3, 50, mask.shape), 0)
    rollout = Rollout(*map(jnp.asarray, (prompts, prompt_mask, tokens, mask, np.zeros(mask.shape))))
    rows, branches = rollout_batch(rollout), rollout_branches(rollout, group)
    np.testing.assert_array_equal(branches.mask, mask)
    score = jax.jit(lambda x: token_logps(APPLY, {'params': params}, x))
    close(score(rows)[:, 6:], score(branches))
    value = reward_params(params, jax.random.key(1))
    judge = jax.jit(lambda x: token_values(ScalarModel(CONFIG).apply, value, x))
    close(judge(rows)[:, 6:], judge(branches))
