"""Advantages without a critic by hand, the loss of groups as a function of arrays, and its split into parts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.losses import policy_gradient as pg
from rlax_ft.models.config import embedded_config
from rlax_ft.models.scoring import rollout_batch, rollout_branches
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.objectives.policy import Credit, PolicyBatch, estimate, policy_loss, token_advantages
from rlax_ft.objectives.ppo import minibatch
from rlax_ft.ops.groups import optimal_token_advantages
from rlax_ft.ops.reduce import MODES, denominator
from rlax_ft.sampling.sampler import generate
from rlax_ft.types import BranchBatch, TokenBatch

MASK = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], np.float32)
SCORES = np.array([1.0, 3.0, 2.0, 2.0])
KL = np.array([[0.1, 0.2, 0.3], [0.4, 9.0, 9.0], [0.1, 0.1, 9.0], [0.0, 0.0, 0.3]])


def of(**how):
    greedy = how.pop('greedy', None)
    return np.asarray(token_advantages(Credit(2, **how), SCORES, {}, MASK, KL, greedy=greedy))


def test_advantages_of_groups_by_hand(x64):
    two = np.sqrt(2)
    np.testing.assert_allclose(of(), MASK * np.array([[-1 / (two + 1e-4)], [1 / (two + 1e-4)], [0], [0]]), rtol=1e-9)
    # 1 - 0.6 b and 3 - 0.4 b with b = 0.5: 0.7 and 2.8; the others 1.9 and 1.85.
    loo = of(baseline='leave_one_out', scale='none', kl_coef=0.5)
    np.testing.assert_allclose(loo, MASK * np.array([[-2.1], [2.1], [0.05], [-0.05]]), atol=1e-12)
    remax = of(baseline='greedy', scale='none', greedy=np.array([1.0, 1.0, 2.5, 2.5]))
    np.testing.assert_allclose(remax, MASK * np.array([[0], [2], [-0.5], [-0.5]]), atol=1e-12)


def test_credit_by_token_is_what_follows(x64):
    ours = of(baseline='none', scale='none', by_token=True, kl_coef=1.0, gamma=0.5)
    last = 1 - 0.3
    expected = [[-0.1 + 0.5 * (-0.2 + 0.5 * last), -0.2 + 0.5 * last, last], [3 - 0.4, 0, 0]]
    np.testing.assert_allclose(ours[:2], expected, rtol=1e-9)


@pytest.mark.parametrize(('whiten', 'ddof'), [('unbiased', 1), ('biased', 0)])
def test_whitening_is_over_all_tokens(whiten, ddof, x64):
    plain, white = of(scale='none'), of(scale='none', whiten=whiten)
    real = plain[MASK > 0]
    np.testing.assert_allclose(white[MASK > 0], (real - real.mean()) / real.std(ddof=ddof), rtol=1e-6)
    assert not np.any(white[MASK == 0])


def make_batch(seed=0, groups=4, size=2, length=5):
    """A PolicyBatch of ragged rows, and log-probabilities to be trained."""
    rng = np.random.default_rng(seed)
    rows = groups * size
    lengths = rng.integers(1, length + 1, rows)
    mask = (np.arange(length) < lengths[:, None]).astype(np.float32)
    shape = (groups, size, length)
    ids = np.zeros(shape, np.int32)
    responses = TokenBatch(ids, mask.reshape(shape), ids, mask.reshape(shape).astype(np.int32))
    blank = np.zeros((groups, 2), np.int32)
    old = -rng.random((rows, length)) - 0.1
    data = PolicyBatch(
        BranchBatch(TokenBatch(blank, np.zeros((groups, 2)), blank, blank + 1), responses),
        sampled=old + 0.01 * rng.normal(size=old.shape),
        old=old,
        advantages=rng.normal(size=(rows, 1)) * mask,
        weights=rng.random(old.shape) * mask,
        ref=old - 0.2 * rng.random(old.shape),
    )
    return jax.tree.map(jnp.asarray, data), jnp.asarray(old + 0.3 * rng.normal(size=old.shape))


@pytest.mark.parametrize('mode', MODES)
def test_minibatches_in_parts_give_the_whole(mode, x64):
    """A minibatch in micro-batches, with the minibatch's denominators, has the same loss, metrics and gradient."""
    data, logps = make_batch()
    how = dict(mode=mode, kl_coef=0.3, kl_weighted=True, entropy_coef=0.1, off_policy_threshold=0.1)
    part, *totals = minibatch(data, jax.random.key(0), 0, 0, count=1, mode=mode, max_len=7)
    order = jax.random.permutation(jax.random.fold_in(jax.random.key(0), 0), 4)
    logps = logps.reshape(4, 2, -1)[order].reshape(logps.shape)
    assert float(totals[0]) == float(data.tokens.mask.sum())
    np.testing.assert_allclose(totals[-1], denominator(part.tokens.mask, mode, max_len=7))

    def loss(x, rows, data):
        return policy_loss(x[rows], data, totals[0], totals[-1], **how)

    both = jax.jit(jax.value_and_grad(loss, has_aux=True))
    whole, gradient = both(logps, np.arange(8), part)
    halves = []
    for half in (0, 1):
        rows = np.arange(4 * half, 4 * half + 4)
        pick = lambda leaf, half=half: leaf.reshape(2, leaf.shape[0] // 2, *leaf.shape[1:])[half]  # noqa: E731
        halves.append(both(logps, rows, jax.tree.map(pick, part)))
    summed = jax.tree.map(lambda a, b: a + b, *halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), summed, (whole, gradient))


def test_the_share_of_held_tokens_is_by_the_losss_own_bounds():
    data, _ = make_batch()
    data = data.replace(weights=None, advantages=jnp.ones_like(data.advantages) * data.tokens.mask)
    logps, total = data.old + jnp.log(1.3), data.tokens.mask.sum()
    share = lambda loss: policy_loss(logps, data, total, total, loss=loss)[1].get('policy/clipfrac_avg')  # noqa: E731
    assert share(pg.ppo_clip_loss) == pytest.approx(1.0)
    assert share(partial(pg.ppo_clip_loss, clip_high=0.4)) == 0.0 == share(pg.cispo_loss)
    assert share(partial(pg.cispo_loss, clip_high=0.1)) == pytest.approx(1.0)
    # GMPO's bounds are on log-ratios: log 1.3 is 0.26.
    assert share(partial(pg.gmpo_loss, clip_high=0.28)) == 0.0 and share(partial(pg.gmpo_loss, clip_high=0.25)) > 0.99
    assert share(pg.reinforce_loss) is None


def test_weights_and_kl_enter_as_they_should(x64):
    data, logps = make_batch()
    total = data.tokens.mask.sum()
    plain = policy_loss(logps, data.replace(weights=None), total, total)[0]
    losses = pg.ppo_clip_loss(logps, data.old, data.advantages, data.tokens.mask)
    np.testing.assert_allclose(plain, losses.sum() / total, rtol=1e-12)
    weighted = policy_loss(logps, data, total, total)[0]
    np.testing.assert_allclose(weighted, (losses * data.weights).sum() / total, rtol=1e-12)
    d = np.asarray(logps - data.ref)
    k3 = (np.exp(-d) - 1 + d) * np.asarray(data.tokens.mask)
    with_kl = policy_loss(logps, data, total, total, kl_coef=0.5)[0]
    np.testing.assert_allclose(with_kl - weighted, 0.5 * k3.sum() / total, rtol=1e-9)


def test_credit_by_turn_and_by_step():
    mask = jnp.asarray([[1, 1, 0, 1], [1, 0, 1, 0]])
    turns = jnp.asarray([[1.0, 0, 0, 2], [0.5, 0, 0.5, 0]])
    scores, kl, parts = jnp.asarray([3.0, 1.0]), jnp.zeros((2, 4)), {}
    # Rewards of 3 and 1 less their mean, and less what the turns before a token gave.
    credit = Credit(2, scale='none', by_token=True)
    found = token_advantages(credit, scores, parts, mask, kl, turns=turns)
    np.testing.assert_allclose(found, [[1, 0, 0, 0], [-1, 0, -1.5, 0]], atol=1e-6)
    # Steps of rewards 0, 3 and 6, 3: less the mean of 3, from each token on, with weight 0.5.
    steps = jnp.asarray([[0.0, 0, 0, 3], [6, 0, 3, 0]]), jnp.asarray([[1, 0, 0, 1], [1, 0, 1, 0]])
    credit = Credit(2, scale='none', step_weight=0.5)
    found = token_advantages(credit, scores, parts, mask, kl, steps=steps)
    np.testing.assert_allclose(found, [[1 - 1.5, 1, 0, 1], [-1 + 1.5, 0, -1, 0]], atol=1e-6)


def test_estimates_of_a_model_by_its_logits():
    """KL, importance weights and squared probabilities against softmax over whole logits."""
    config = embedded_config('tiny', vocab_size=9, max_length=16)
    apply = Transformer(config).apply
    ref = init_params(config, jax.random.key(0))
    policy = jax.tree.map(lambda x: 2 * x, ref)
    prompts = jnp.asarray([[0, 1, 5], [1, 3, 4]]).repeat(2, axis=0)
    sample = jax.jit(partial(generate, apply, max_new_tokens=4, eos_ids=(2,)))
    rollout = sample({'params': policy}, prompts, prompts > 0, jax.random.key(4))
    tokens, mask = rollout_branches(rollout, 2), np.asarray(rollout.mask)
    sampled = rollout.logps - 0.1 * rollout.mask  # a sampler whose numbers are off
    credit = Credit(2, baseline='token', scale='none', kl_coef=0.3)
    how = dict(credit=credit, kl_kind='k1', correction=dict(level='token', mode='truncate', cap=3.0))
    scores = jnp.asarray([1.0, 0.0, 0.5, 2.0])
    data, metrics = jax.jit(partial(estimate, apply, **how))(policy, ref, tokens, sampled, scores, {})

    rows = rollout_batch(rollout)

    @jax.jit
    def log_p(params):
        hidden, _ = apply({'params': params}, rows.tokens, rows.positions, rows.segment_ids)
        return jax.nn.log_softmax(apply({'params': params}, hidden, method='unembed'))[:, 2:-1]

    of_policy, of_ref = log_p(policy), log_p(ref)
    chosen = lambda x: np.take_along_axis(np.asarray(x), np.asarray(rollout.tokens)[..., None], 2)[..., 0] * mask  # noqa: E731
    np.testing.assert_allclose(data.old, chosen(of_policy), atol=1e-4)
    np.testing.assert_allclose(data.weights, np.exp(0.1) * mask, rtol=1e-3)
    assert float(metrics['sampling/sampling_logp_difference/max']) == pytest.approx(0.1, abs=1e-4)
    kl = chosen(of_policy) - chosen(of_ref)
    np.testing.assert_allclose(metrics['objective/kl'], kl.sum(1).mean(), rtol=1e-3)
    squares = np.exp(2 * np.asarray(of_policy)).sum(axis=2) * mask
    last = (np.cumsum(mask, 1) == mask.sum(1, keepdims=True)) * mask
    rewards = last * np.asarray(scores)[:, None] - 0.3 * kl
    expected = optimal_token_advantages(rewards, np.asarray(data.old), squares, mask, 2)
    np.testing.assert_allclose(data.advantages, expected, atol=1e-3)
