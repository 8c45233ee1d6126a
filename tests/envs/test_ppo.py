"""GAE and the update of PPO for environments against plain numpy, minibatch by minibatch; the shared loss."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from rlax_ft.envs import rollout
from rlax_ft.envs.agent import NetworkConfig, make_agent
from rlax_ft.envs.device import DeviceEnvironments
from rlax_ft.envs.distributions import Categorical
from rlax_ft.envs.environment import Box, Discrete, Environment, Step
from rlax_ft.envs.ppo import (
    assess,
    estimate,
    init_ppo,
    log_ratios,
    make_batch,
    minibatch_rows,
    ppo_objective,
    update,
)
from rlax_ft.envs.rollout import collect, split_key
from rlax_ft.envs.wrappers import episode_statistics
from rlax_ft.harness.env_setup import EnvSettings, agent_for, make_envs
from rlax_ft.losses.policy_gradient import cispo_loss, ppo_clip_loss, sapo_loss
from rlax_ft.models.config import embedded_config
from rlax_ft.models.scoring import token_logps
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.ops.reduce import aggregate
from rlax_ft.training.step import make_train_step
from rlax_ft.types import TokenBatch

GAMMA, LAM, RATE, CLIP, VALUE, ENTROPY = 0.97, 0.9, 1e-2, 0.2, 0.5, 0.01


def recorded(num_steps=24, num_envs=4, **settings):
    """(agent, state, actors afterwards, frames) of CartPole cut after 7 steps, so that both ends occur."""
    settings = EnvSettings(layers='8', num_envs=num_envs, num_steps=num_steps, **{'time_limit': 7} | settings)
    envs = make_envs(settings)
    agent = agent_for(settings, envs)
    optimizer = optax.inject_hyperparams(optax.sgd)(RATE)
    state = init_ppo(agent, optimizer, jax.random.key(3), reset=envs.reset, num_envs=num_envs)
    _, key, _ = split_key(state.train.key)
    # A step that hits the pole hard enough for terminations: larger weights in the policy's head.
    params = agent.tree(state.train.params)
    params['policy_head']['kernel'] *= 200.0
    state = state.replace(train=state.train.replace(params=ravel_pytree(params)[0]))
    actors, frames = jax.jit(lambda s, k: collect(envs.env, agent, s, k, num_steps=num_steps))(state, key)
    return agent, optimizer, state, actors, frames


def network(params, x):
    """Logits and value in numpy."""
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
    out = []
    for name in ('policy', 'value'):
        body, head = p[f'{name}_body']['dense_0'], p[f'{name}_head']
        h = np.tanh(x @ body['kernel'] + body['bias'])
        out.append((h, h @ head['kernel'] + head['bias']))
    return out


def numpy_gae(values, final_values, rewards, terminated, truncated):
    """One environment at a time, from the text of the estimator."""
    steps, envs = rewards.shape
    advantages = np.zeros((steps, envs))
    for n in range(envs):
        following = 0.0
        for t in reversed(range(steps)):
            if terminated[t, n]:
                delta, following = rewards[t, n] - values[t, n], 0.0
            elif truncated[t, n]:
                delta, following = rewards[t, n] + GAMMA * final_values[t, n] - values[t, n], 0.0
            else:
                delta = rewards[t, n] + GAMMA * values[t + 1, n] - values[t, n]
            following = delta + GAMMA * LAM * following
            advantages[t, n] = following
    return advantages


def numpy_step(params, obs, action, old_logp, old_value, advantage, target):
    """Parameters after one SGD step on PPO's loss, its gradient written out by hand."""
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
    (hp, logits), (hv, value) = network(params, obs)
    value, size = value[:, 0], len(obs)
    logp_all = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    prob, one = np.exp(logp_all), np.eye(2)[action]
    ratio = np.exp((logp_all * one).sum(1) - old_logp)
    a = (advantage - advantage.mean()) / np.sqrt(advantage.var(ddof=1) + 1e-8)
    active = ratio * a <= np.clip(ratio, 1 - CLIP, 1 + CLIP) * a
    d_logp = np.where(active, -a * ratio, 0.0) / size
    entropy = -(prob * logp_all).sum(1, keepdims=True)
    d_logits = d_logp[:, None] * (one - prob) + ENTROPY / size * prob * (logp_all + entropy)
    bounded = old_value + np.clip(value - old_value, -CLIP, CLIP)
    plain = (value - target) ** 2 >= (bounded - target) ** 2
    inside = np.abs(value - old_value) < CLIP
    d_value = np.where(plain, value - target, np.where(inside, bounded - target, 0.0)) * VALUE / size
    for name, h, d_out in (('policy', hp, d_logits), ('value', hv, d_value[:, None])):
        d_h = d_out @ p[f'{name}_head']['kernel'].T * (1 - h**2)
        p[f'{name}_head']['kernel'] -= RATE * h.T @ d_out
        p[f'{name}_head']['bias'] -= RATE * d_out.sum(0)
        p[f'{name}_body']['dense_0']['kernel'] -= RATE * obs.T @ d_h
        p[f'{name}_body']['dense_0']['bias'] -= RATE * d_h.sum(0)
    return p


def test_estimates_and_updates_are_numpys_minibatch_by_minibatch():
    agent, optimizer, state, actors, frames = recorded()
    params = agent.tree(state.train.params)
    f = jax.tree.map(np.asarray, frames)
    assert f.truncated.sum() >= 4 and not (f.truncated & f.terminated).any()
    observations = np.concatenate([f.observation, np.asarray(actors.observation)[None]])
    values = network(params, observations)[1][1][..., 0]
    final_values = network(params, f.final_observation)[1][1][..., 0]
    wanted = numpy_gae(values, final_values, f.reward, f.terminated, f.truncated)

    transition = assess(agent, params, None, actors, frames)
    advantages, returns = estimate(transition, gamma=GAMMA, lam=LAM)
    np.testing.assert_allclose(advantages, wanted, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(returns, wanted + values[:-1], rtol=2e-4, atol=2e-4)

    batch = make_batch(frames, transition, advantages, returns, length=1)
    step = jax.jit(make_train_step(ppo_objective(agent, entropy_coef=ENTROPY, value_coef=VALUE), optimizer))
    key, train = jax.random.key(5), state.train
    flat = [
        np.asarray(x, np.float64).reshape(96, -1)
        for x in (batch.observation, batch.logps, batch.values, batch.advantages, batch.returns)
    ]
    action, mine = np.asarray(batch.action).reshape(-1), params
    order = [minibatch_rows(k, 96, minibatches=4) for k in jax.random.split(key, 3)]
    for rows in np.concatenate(order):
        obs, logp, value, advantage, target = (x[rows] for x in flat)
        mine = numpy_step(mine, obs, action[rows], logp[:, 0], value[:, 0], advantage[:, 0], target[:, 0])
        train, _ = step(train, jax.tree.map(lambda x, rows=rows: x[rows], batch))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), agent.tree(train.params), mine
        )
    whole, _ = update(step, state.train, batch, key, epochs=3, minibatches=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole.params, train.params)


def test_terminate_is_another_number():
    agent, _, state, actors, frames = recorded()
    transition = assess(agent, state.train.params, None, actors, frames)
    right, wrong = (estimate(transition, gamma=GAMMA, lam=LAM, truncation=t)[0] for t in ('bootstrap', 'terminate'))
    differs = np.abs(np.asarray(right - wrong)) > 1e-4
    assert differs[np.asarray(frames.truncated)].all()


def test_minibatches_are_permutations():
    draw = lambda seed, epochs, rows, parts: np.asarray(  # noqa: E731
        jax.vmap(lambda k: minibatch_rows(k, rows, minibatches=parts))(jax.random.split(jax.random.key(seed), epochs))
    )
    rows = draw(0, 50, 96, 4)
    assert rows.shape == (50, 4, 24)
    np.testing.assert_array_equal(np.sort(rows.reshape(50, 96), axis=1), np.tile(np.arange(96), (50, 1)))
    assert len({tuple(r) for r in rows.reshape(50, 96).tolist()}) == 50
    # No row is drawn to any place: its mean place over many epochs is the middle.
    places = np.argsort(draw(1, 20_000, 16, 1)[:, 0], axis=1)
    np.testing.assert_allclose(places.mean(axis=0), 7.5, atol=0.2)


@pytest.mark.parametrize('length', [6, 24])
def test_recurrent_rows_repeat_the_rollout(length):
    agent, _, state, actors, frames = recorded(gru=8, observe='0,2')
    transition = assess(agent, state.train.params, None, actors, frames)
    batch = make_batch(frames, transition, transition.reward, transition.reward, length=length)
    assert batch.first.any()
    outputs, values = agent.evaluate(state.train.params, batch.hidden, batch.observation, batch.first)
    np.testing.assert_allclose(outputs, batch.outputs, atol=1e-5)
    np.testing.assert_allclose(values, batch.values, atol=1e-5)
    np.testing.assert_allclose(log_ratios(agent, state.train.params, frames, transition), 0.0, atol=1e-5)


def test_a_truncated_steps_final_observation_is_valued_with_the_carried_memory():
    agent, _, state, actors, frames = recorded(gru=8, observe='0,2')
    transition = assess(agent, state.train.params, None, actors, frames)
    truncated = np.argwhere(np.asarray(frames.truncated))
    assert len(truncated) >= 4
    for t, n in truncated:
        # The whole episode and its final observation as one row, from hidden state 0.
        start = t + 1 - int(frames.episode_length[t, n])
        row = jnp.concatenate([frames.observation[start : t + 1, n], frames.final_observation[t, n][None]])
        first = jnp.arange(len(row)) == 0
        _, values = agent.evaluate(state.train.params, agent.initial_hidden(1), row[None], first[None])
        np.testing.assert_allclose(transition.next_value[t, n], values[0, -1], atol=1e-5)
        # The mistake would be visible: with hidden state 0 the value is another.
        wrong = agent.value(state.train.params, agent.initial_hidden(1), row[None, -1])
        assert abs(float(wrong[0] - values[0, -1])) > 1e-3


@pytest.mark.parametrize(
    ('loss', 'bounds'),
    [
        (ppo_clip_loss, (0.2, 0.2)),
        (partial(ppo_clip_loss, clip_low=0.1, clip_high=0.3), (0.1, 0.3)),
        (partial(cispo_loss, clip_high=0.4), (1.0, 0.4)),
        (sapo_loss, None),
    ],
)
def test_clipped_is_what_the_losss_own_bounds_clip(loss, bounds):
    agent, _, state, actors, frames = recorded()
    transition = assess(agent, state.train.params, None, actors, frames)
    batch = make_batch(frames, transition, transition.reward, transition.reward, length=1)
    ratio = np.random.default_rng(0).uniform(0.5, 1.6, batch.logps.shape).astype(np.float32)
    objective = ppo_objective(agent, entropy_coef=0.0, loss=loss)
    _, metrics = objective(state.train.params, batch.replace(logps=batch.logps - np.log(ratio)), jax.random.key(0))
    if bounds is None:
        assert 'policy/clipfrac_avg' not in metrics
    else:
        wanted = np.mean((ratio < 1 - bounds[0]) | (ratio > 1 + bounds[1]))
        np.testing.assert_allclose(metrics['policy/clipfrac_avg'], wanted, atol=1e-6)


def test_states_drawn_in_the_loop_are_those_drawn_ahead(monkeypatch):
    whole = {}
    for ahead in (True, False):
        monkeypatch.setattr(rollout, 'drawn_ahead', lambda *_, ahead=ahead: ahead)
        whole[ahead] = recorded()[3:]
    jax.tree.map(np.testing.assert_array_equal, whole[True], whole[False])


def test_memory_of_a_rollout_does_not_grow_with_the_states():
    """A state of 256 KiB, 8 environments, 256 steps: a state for every step would be half a GiB."""

    def step(key, board, action):
        done = board[0, 0] > 5
        no = jnp.zeros((), bool)
        return board + 1.0, Step(board[0, :2], jnp.ones(()), done, no)

    board = lambda key: jax.random.uniform(key, (256, 256))  # noqa: E731
    reset = lambda key: (board(key), jnp.zeros(2))  # noqa: E731
    env = episode_statistics(Environment('board', reset, step, Box.of((2,)), Discrete(2)))
    agent = make_agent(NetworkConfig(outputs=2, layers=(4,)), Categorical(2), (2,))
    envs = DeviceEnvironments(env)
    state = jax.eval_shape(
        lambda key: init_ppo(agent, optax.sgd(0.1), key, reset=envs.reset, num_envs=8), jax.random.key(0)
    )
    roll = jax.jit(lambda s, k: collect(env, agent, s, k, num_steps=256))
    used = roll.lower(state, jax.random.key(0)).compile().memory_analysis()
    assert used.temp_size_in_bytes < 32 * 2**20


def test_one_loss_object_trains_cartpole_and_a_language_model():
    """`ppo_clip_loss` itself, unwrapped, lowers its surrogate on decisions [R, 1] and on tokens [B, T]."""
    loss = ppo_clip_loss
    agent, optimizer, state, actors, frames = recorded()
    transition = assess(agent, state.train.params, None, actors, frames)
    batch = make_batch(frames, transition, *estimate(transition, gamma=GAMMA, lam=LAM), length=1)
    step = jax.jit(make_train_step(ppo_objective(agent, entropy_coef=0.0, value_coef=0.0, loss=loss), optimizer))
    train, losses = state.train, []
    for _ in range(20):
        train, metrics = step(train, batch)
        losses.append(float(metrics['loss/policy_avg']))
    assert losses[-1] < losses[0] - 1e-3

    config = embedded_config('tiny', vocab_size=11, max_length=8)
    tokens = jax.random.randint(jax.random.key(0), (4, 8), 0, 11)
    mask = jnp.ones((4, 8)).at[:, :3].set(0.0)
    rows = TokenBatch(tokens, mask, jnp.tile(jnp.arange(8), (4, 1)), jnp.ones((4, 8), jnp.int32))
    apply, advantages = Transformer(config).apply, jnp.asarray([[1.0], [-1.0], [1.0], [-1.0]]) * mask
    params = init_params(config, jax.random.key(1))
    old = token_logps(apply, {'params': params}, rows)

    def objective(params):
        logps = token_logps(apply, {'params': params}, rows)
        return aggregate(loss(logps, old, advantages, mask), mask, 'token_mean')

    before, grads = jax.value_and_grad(objective)(params)
    after = objective(jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
    assert float(after) < float(before) - 1e-3
