"""PPO's estimates by hand, its minibatches, and the objective at ratio 1."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.losses.policy_gradient import gspo_loss
from rlax_ft.models.config import embedded_config
from rlax_ft.models.heads import ScalarModel, reward_params, score_last_token, value_params
from rlax_ft.models.scoring import rollout_batch, token_logps
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.objectives.ppo import end_scores, ended, estimate, minibatch, ppo_objective
from rlax_ft.sampling.sampler import generate
from rlax_ft.sampling.text import rollout_logps
from rlax_ft.types import TokenBatch

CONFIG = embedded_config('tiny', vocab_size=9, max_length=16)
POLICY, VALUE = Transformer(CONFIG).apply, ScalarModel(CONFIG).apply
EOS = 2


@pytest.fixture(scope='module')
def setting():
    ref = init_params(CONFIG, jax.random.key(0))
    policy = jax.tree.map(lambda x: x * 2, init_params(CONFIG, jax.random.key(1)))
    params = {'policy': policy, 'value': reward_params(init_params(CONFIG, jax.random.key(2)), jax.random.key(3))}
    prompts = jnp.asarray([[0, 1, 5], [1, 3, 4]] * 8)
    rollout = generate(
        POLICY, {'params': policy}, prompts, prompts > 0, jax.random.key(4), max_new_tokens=6, eos_ids=(EOS,)
    )
    return ref, params, rollout


def test_a_missing_eos_and_an_integer_score():
    scores = end_scores(jnp.asarray([1, 0]), jnp.asarray([True, False]), 0.5)
    assert scores.dtype == jnp.float32 and scores.tolist() == [1.0, -0.5]


def test_ended_reads_real_tokens_only(setting):
    rollout = setting[2]
    has_eos = [(row[mask] == EOS).any() for row, mask in zip(np.asarray(rollout.tokens), np.asarray(rollout.mask))]
    np.testing.assert_array_equal(ended(rollout, (EOS,)), has_eos)
    assert np.asarray(ended(rollout, ())).all()


def test_estimates_by_plain_loops(setting):
    ref, params, rollout = setting
    batch, coef, lam = rollout_batch(rollout), 0.3, 0.9
    logps = rollout_logps(rollout)
    scores = jnp.linspace(-1, 1, 16)
    data, metrics = estimate(POLICY, VALUE, params, ref, batch, logps, scores, coef, lam=lam)
    ref_hidden, _ = POLICY({'params': ref}, batch.tokens, batch.positions, batch.segment_ids)
    ref_logits = POLICY({'params': ref}, ref_hidden, method='unembed')
    ref_logps = jax.nn.log_softmax(ref_logits)
    values = np.asarray(VALUE({'params': params['value']}, batch.tokens, batch.positions, batch.segment_ids))
    advantages, kls = np.zeros(batch.mask.shape), []
    for row in range(16):
        at = np.flatnonzero(np.asarray(batch.mask[row]))
        kl = [float(logps[row, t] - ref_logps[row, t - 1, batch.tokens[row, t]]) for t in at]
        rewards = [-coef * k for k in kl]
        rewards[-1] += float(scores[row])
        kls.append(sum(kl))
        v = [values[row, t - 1] for t in at] + [0.0]
        running = 0.0
        for i in reversed(range(len(at))):
            running = rewards[i] + v[i + 1] - v[i] + lam * running
            advantages[row, at[i]] = running
            np.testing.assert_allclose(data.returns[row, at[i]], running + v[i], rtol=1e-3, atol=1e-4)
    real = np.asarray(batch.mask) > 0
    whitened = (advantages - advantages[real].mean()) / np.sqrt(advantages[real].var(ddof=1) + 1e-8)
    np.testing.assert_allclose(data.advantages, np.where(real, whitened, 0), atol=1e-3)
    np.testing.assert_allclose(metrics['objective/kl'], np.mean(kls), rtol=1e-3)
    np.testing.assert_allclose(metrics['objective/rlhf_reward'], np.mean(scores) - coef * np.mean(kls), rtol=1e-3)


def test_the_first_step_is_at_ratio_one(setting):
    ref, params, rollout = setting
    data, _ = estimate(
        POLICY, VALUE, params, ref, rollout_batch(rollout), rollout_logps(rollout), jnp.arange(16.0), 0.1
    )
    loss = ppo_objective(POLICY, VALUE)
    _, metrics = loss(params, (data, data.tokens.mask.sum()), None)
    assert float(metrics['val/ratio']) == pytest.approx(1.0, abs=1e-5)
    assert float(metrics['policy/approxkl_avg']) < 1e-9 and float(metrics['policy/clipfrac_avg']) == 0.0
    # Whitened advantages have mean 0, so the policy loss at ratio 1 is 0.
    assert float(metrics['loss/policy_avg']) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize('mode', ['seq_mean_token_mean', 'seq_mean_token_sum', 'constant'])
def test_the_policy_loss_is_aggregated_as_asked(setting, mode):
    ref, params, rollout = setting
    tokens = rollout_batch(rollout)
    data, _ = estimate(POLICY, VALUE, params, ref, tokens, rollout_logps(rollout), jnp.arange(16.0), 0.1)
    moved = {'policy': jax.tree.map(lambda x: 1.1 * x, params['policy']), 'value': params['value']}
    batch = minibatch(data, jax.random.key(0), 0, 0, count=1, mode=mode, max_len=6)
    loss = partial(gspo_loss, clip_low=0.9, clip_high=9.0)
    _, metrics = ppo_objective(POLICY, VALUE, loss=loss, mode=mode)(moved, batch, None)
    rows, mask = batch[0], np.asarray(batch[0].tokens.mask)
    logps = token_logps(POLICY, {'params': moved['policy']}, rows.tokens)
    losses = np.asarray(loss(logps, rows.logps, rows.advantages, rows.tokens.mask))
    by_hand = {
        'seq_mean_token_mean': np.mean((losses * mask).sum(1) / mask.sum(1)),
        'seq_mean_token_sum': (losses * mask).sum() / 16,
        'constant': (losses * mask).sum() / (16 * 6),
    }
    assert float(metrics['loss/policy_avg']) == pytest.approx(by_hand[mode], rel=1e-4, abs=1e-6)
    assert by_hand[mode] != pytest.approx((losses * mask).sum() / mask.sum(), rel=1e-2)


def test_minibatches_cover_the_batch_in_a_fresh_order_each_epoch_and_update(setting):
    ref, params, rollout = setting
    data, _ = estimate(
        POLICY, VALUE, params, ref, rollout_batch(rollout), rollout_logps(rollout), jnp.arange(16.0), 0.1
    )
    data = data.replace(returns=jnp.arange(16.0)[:, None] * jnp.ones_like(data.returns))

    def order(key, epoch):
        parts = [minibatch(data, key, epoch, i, count=4) for i in range(4)]
        assert all(float(total) == float(part.tokens.mask.sum()) for part, total in parts)
        return [int(r) for part, _ in parts for r in part.returns[:, 0]]

    first = order(jax.random.key(0), 0)
    assert sorted(first) == list(range(16))
    assert first != order(jax.random.key(0), 1) != order(jax.random.key(1), 1)


def test_values_start_at_zero_and_read_one_token_early(setting):
    ref, params, rollout = setting
    fresh = {'policy': params['policy'], 'value': value_params(ref)}
    batch = rollout_batch(rollout)
    data, _ = estimate(POLICY, VALUE, fresh, ref, batch, rollout_logps(rollout), jnp.ones(16), 0.0)
    assert float(jnp.abs(data.values).max()) == 0.0
    changed = batch.replace(tokens=batch.tokens.at[:, -1].set(7))
    a, _ = estimate(POLICY, VALUE, params, ref, batch, rollout_logps(rollout), jnp.ones(16), 0.0)
    b, _ = estimate(POLICY, VALUE, params, ref, changed, rollout_logps(rollout), jnp.ones(16), 0.0)
    np.testing.assert_array_equal(a.values, b.values)  # the last token is no input of its own value


def test_reward_heads_and_the_last_counted_token():
    width = 400
    backbone = {'embed': {'embedding': jnp.zeros((2, width))}}
    kernel = np.asarray(reward_params(backbone, jax.random.key(0))['head']['kernel'])
    assert kernel.std() == pytest.approx(1 / np.sqrt(width + 1), rel=0.1)
    mask = jnp.asarray([[0, 1, 1, 0], [0, 0, 1, 1]], jnp.float32)
    batch = TokenBatch(tokens=mask, mask=mask, positions=mask, segment_ids=mask)
    assert score_last_token(jnp.asarray([[1.0, 2, 3, 4], [5, 6, 7, 8]]), batch.mask).tolist() == [3.0, 8.0]
