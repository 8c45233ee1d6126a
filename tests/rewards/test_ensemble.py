"""Ensembles of reward models: each member is what it would be alone, kept as it was trained, and reduced by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.data.codec import Codec
from rlax_ft.data.rows import preference_rows
from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.harness.learner import Learner
from rlax_ft.harness.reward_data import votes
from rlax_ft.harness.rewards import make_reward
from rlax_ft.models.config import LoRAConfig, embedded_config
from rlax_ft.models.ensemble import member
from rlax_ft.models.heads import least_step_scores
from rlax_ft.models.lora import Adapter, adapter_objective
from rlax_ft.models.scoring import candidate_rows
from rlax_ft.models.transformer import init_params
from rlax_ft.objectives.reward import ensemble_objective, reward_objective
from rlax_ft.rewards.ensemble import disagreement, reduce_scores, save_ensemble, split_reduction
from rlax_ft.rewards.learned import RewardModel, load_reward_model, save_reward_model
from rlax_ft.types import TokenBatch

CONFIG = embedded_config('tiny', vocab_size=8, max_length=12)
CODEC = Codec(word_tokenizer('abcde'), 4, 6)
PAIRS = [
    {'prompt': 'a', 'chosen': 'b c', 'rejected': 'd'},
    {'prompt': 'a b', 'chosen': 'e', 'rejected': 'c c c'},
    {'prompt': 'e', 'chosen': 'a b c', 'rejected': 'b'},
]
ROWS = preference_rows(CODEC, PAIRS)


@pytest.fixture(scope='module', params=[0, 2], ids=['heads', 'adapters'])
def learner(request):
    lora = LoRAConfig(request.param) if request.param else None
    config = CONFIG if lora is None else CONFIG.__class__(**{**vars(CONFIG), 'lora': lora})
    return Learner(config, init_params(CONFIG, jax.random.key(0)), seed=3)


def trained(learner):
    """Members that differ in all that is theirs: B of an adapter starts at 0."""
    params = learner.start_ensemble(3)
    keys = iter(jax.random.split(jax.random.key(5), 100))
    nudge = lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape)  # noqa: E731
    if isinstance(params, Adapter):
        return jax.tree.map(nudge, params)
    return {k: jax.tree.map(nudge, v) if k == 'head' else v for k, v in params.items()}


def test_an_ensemble_is_its_members(learner):
    params = trained(learner)
    drawn = np.asarray([[1, 0, 2], [1, 1, 0], [0, 3, 1]], np.float32)
    objective, total = reward_objective(learner.scalar_apply, center_coef=0.1), np.float32(3)
    together = ensemble_objective(objective)
    alone = objective
    if learner.base is not None:
        together, alone = (partial(adapter_objective(f), base=learner.base) for f in (together, alone))
    value = jax.jit(jax.value_and_grad(lambda p: together(p, ((ROWS, drawn), total), None)[0]))
    loss, gradients = value(params)
    one = jax.jit(jax.value_and_grad(lambda p, w: alone(p, (ROWS.replace(weight=w), total), None)[0]))
    each = [one(member(params, i), drawn[:, i]) for i in range(3)]
    np.testing.assert_allclose(loss, np.mean([own for own, _ in each]), rtol=1e-5)
    for i, (_, own) in enumerate(each):  # what is a member's own has a third of the gradient that it has alone
        ours, theirs = member(gradients, i), jax.tree.map(lambda g: g / 3, own)
        if not isinstance(own, Adapter):
            ours, theirs = ours['head'], theirs['head']
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), ours, theirs)
    if not isinstance(params, Adapter):
        summed = jax.tree.map(lambda *g: sum(g) / 3, *(own['backbone'] for _, own in each))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradients['backbone'], summed)


def test_what_is_kept_scores_as_what_was_trained(learner, tmp_path):
    params = trained(learner)
    rows = jax.tree.map(jnp.asarray, candidate_rows(ROWS.candidates))
    score = jax.jit(lambda model, rows: model(rows))
    alone = [RewardModel(CONFIG, learner.merged(member(params, i))) for i in range(3)]
    expected = np.stack([score(model, rows) for model in alone])  # [E, B]
    ensemble = learner.ensemble(params)
    members = jax.jit(lambda model, rows: model.member_scores(rows))
    np.testing.assert_allclose(members(ensemble, rows), expected, rtol=1e-3, atol=1e-4)
    ensemble = ensemble.normalized(expected, scale=True)
    centred = (expected - expected.mean(axis=1, keepdims=True)) / expected.std(axis=1, keepdims=True)
    save_ensemble(tmp_path, ensemble, CODEC.tokenizer)
    loaded, _ = load_reward_model(tmp_path, reduction='lcb=0.5')
    numbers = centred.mean(axis=0) - 0.5 * centred.std(axis=0)
    np.testing.assert_allclose(score(loaded, rows), numbers, rtol=1e-3, atol=1e-3)
    # By --reward, with the disagreement beside it.
    name = f'{tmp_path}:min'
    reward = make_reward(f'{name}*2', None, CODEC)
    total, parts = reward(rows, None, None)
    assert reward.weights == {name: 2.0, f'{tmp_path}/disagreement': 0.0} and parts.keys() == reward.weights.keys()
    np.testing.assert_allclose(total, 2 * centred.min(axis=0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(parts[f'{tmp_path}/disagreement'], centred.std(axis=0), rtol=1e-3, atol=1e-3)
    # The folder alone is the first member, for whoever opens it as a classifier.
    (tmp_path / 'ensemble.safetensors').unlink()
    first, _ = load_reward_model(tmp_path)
    np.testing.assert_allclose(score(first, rows), centred[0], rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match=r'a single reward model, which has nothing to reduce by .min.'):
        load_reward_model(tmp_path, reduction='min')


def test_reductions_by_hand():
    scores = jnp.asarray([[1.0, 4.0], [3.0, 4.0], [2.0, 1.0]])
    np.testing.assert_allclose(reduce_scores(scores), [2.0, 3.0])
    np.testing.assert_allclose(reduce_scores(scores, 'min'), [1.0, 1.0])
    np.testing.assert_allclose(disagreement(scores), [np.sqrt(2 / 3), np.sqrt(2)], rtol=1e-6)
    np.testing.assert_allclose(reduce_scores(scores, 'lcb'), [2 - np.sqrt(2 / 3), 3 - np.sqrt(2)], rtol=1e-6)
    with pytest.raises(ValueError, match='unknown reduction'):
        reduce_scores(scores, 'most')
    assert split_reduction('runs/rm:lcb=0.5') == ('runs/rm', 'lcb=0.5')
    assert split_reduction('my.py:right') == ('my.py:right', '')


def test_a_bootstrap_is_drawn_once_for_each_member():
    drawn = votes(4000, 3, bootstrap=True, seed=1)
    np.testing.assert_array_equal(drawn, votes(4000, 3, bootstrap=True, seed=1))
    np.testing.assert_allclose(drawn.mean(axis=0), 1.0, atol=0.06)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.06
    assert (votes(5, 2, bootstrap=False, seed=0) == 1).all()


def test_a_solution_is_worth_its_worst_step(tmp_path):
    values = jnp.asarray([[9.0, 1.0, -2.0, 3.0, 0.5], [9.0, 1.0, -2.0, 3.0, 0.5]])
    tokens = jnp.asarray([[5, 4, 7, 6, 4], [5, 4, 7, 4, 6]])
    mask = jnp.asarray([[0, 1, 1, 1, 1], [0, 1, 1, 1, 0]], jnp.float32)
    batch = TokenBatch(tokens, mask, tokens, jnp.ones_like(tokens))
    apply = lambda variables, *_: values  # noqa: E731
    # A step ends at token 4 or where the row does: (1, 0.5) and (1, 3).
    np.testing.assert_allclose(least_step_scores(apply, None, batch, (4,)), [0.5, 1.0])
    model = RewardModel(CONFIG, Learner(CONFIG, init_params(CONFIG, jax.random.key(0))).start_reward(), step_ends=(4,))
    save_reward_model(tmp_path, model, CODEC.tokenizer)
    assert load_reward_model(tmp_path)[0].step_ends == (4,)
