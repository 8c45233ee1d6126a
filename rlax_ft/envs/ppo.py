"""PPO for environments as pure pieces: track, assess, estimate, rows and minibatches, the objective, update.

Arrays are time-major [T, N] until they become rows [R, L] for the losses, which are those of language: a row is one
sequence and an action one token. Without memory L is 1 and a row is one decision; a recurrent policy's rows are
stretches of L steps of one environment, with the hidden state that they began with.

Every function is for one run; programs.py puts `jax.vmap` around them. `axis_name` is the mapped axis over which the
environments are split, if any. `collect` is in rollout.py, the order of the calls in experiments/ppo_env.py.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_ft.envs.agent import Agent
from rlax_ft.envs.state import Actors, Frames, PPOBatch, PPOState
from rlax_ft.envs.statistics import RunningStats, discounted_sums, init_stats, normalize, update_stats
from rlax_ft.losses.clipping import outside_bounds
from rlax_ft.losses.policy_gradient import ppo_clip_loss
from rlax_ft.losses.value import clipped_value_loss
from rlax_ft.ops.reduce import aggregate, masked_var, masked_whiten
from rlax_ft.ops.returns import gae, vtrace
from rlax_ft.training.step import init_state
from rlax_ft.types import LossFn, TrainState, Transition


def init_ppo(
    agent: Agent,
    optimizer,
    key: jax.Array,
    *,
    reset: Callable,
    num_envs: int,
    normalize_observations: bool = False,
    scale_rewards: bool = False,
    kl_coef: float = 0.0,
) -> PPOState:
    """The state before the first update.

    Args:
      agent: whose parameters are drawn.
      optimizer: of the train step.
      key: of this seed.
      reset: (key, N) -> (states, observations [N, ...]), of DeviceEnvironments or HostEnvironments.
      num_envs: N.
      normalize_observations: keep statistics of observations.
      scale_rewards: keep statistics of discounted sums of rewards.
      kl_coef: the first weight of the KL penalty.
    """
    init_key, reset_key, key = jax.random.split(key, 3)
    states, observation = reset(reset_key, num_envs)
    return PPOState(
        train=init_state(agent.init(init_key), optimizer, key),
        actors=Actors(
            env=states,
            observation=observation,
            hidden=agent.initial_hidden(num_envs),
            first=jnp.ones(num_envs, bool),
            discounted=jnp.zeros(num_envs),
        ),
        observation_stats=init_stats(agent.observation_shape) if normalize_observations else None,
        return_stats=init_stats() if scale_rewards else None,
        kl_coef=jnp.asarray(kl_coef, jnp.float32),
    )


def assess(agent: Agent, params, stats: RunningStats | None, actors: Actors, frames: Frames) -> Transition:
    """Normalised observations, log-probabilities and values of a rollout: Transition [T, N].

    `next_value` is the critic's at the state that the action led to; where an episode ended that is its final
    observation, not the first one of the next.

    Args:
      agent: policy and critic.
      params: of both.
      stats: those that the policy acted with.
      actors: after the rollout.
      frames: [T, N].
    """
    seen = jax.tree.map(
        lambda x, last: jnp.concatenate([x, last[None]]),
        (frames.observation, frames.hidden, frames.first),
        (actors.observation, actors.hidden, actors.first),
    )
    hidden = jax.tree.map(lambda h: jnp.where(seen[2][..., None], 0.0, h), seen[1])
    values = agent.value(params, hidden, normalize(stats, seen[0]))

    def final_values():
        after = jax.tree.map(lambda h, last: jnp.concatenate([h[1:], last[None]]), frames.hidden, actors.hidden)
        return agent.value(params, after, normalize(stats, frames.final_observation))

    # Only a truncated step needs the value of a final observation: nothing follows a terminated one.
    next_value = jax.lax.cond(jnp.any(frames.truncated), final_values, lambda: values[1:])
    return Transition(
        observation=normalize(stats, frames.observation),
        action=frames.action,
        logp=agent.distribution.log_prob(frames.outputs, frames.action),
        value=values[:-1],
        reward=frames.reward,
        next_value=jnp.where(frames.truncated, next_value, values[1:]),
        terminated=frames.terminated,
        truncated=frames.truncated,
    )


def estimate(
    transition: Transition,
    *,
    gamma: float,
    lam: float,
    truncation: str = 'bootstrap',
    log_rhos: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(advantages, targets), each float32[T, N], with termination and truncation apart.

    Args:
      transition: [T, N].
      gamma: discount.
      lam: lambda of GAE, or of V-trace.
      truncation: `bootstrap` from the final observation; `terminate` counts 0 after it, as many programs do.
      log_rhos: float32[T, N], log pi - log mu for V-trace; None for GAE.
    """
    ended = transition.terminated | transition.truncated
    absorbed = ended if truncation == 'terminate' else transition.terminated
    arrays = (
        transition.reward,
        transition.value,
        transition.next_value,
        gamma * (1.0 - absorbed),
        1.0 - ended,
    )
    return gae(*arrays, lam=lam) if log_rhos is None else vtrace(*arrays, log_rhos, lam=lam)


def track(state: PPOState, frames: Frames, *, gamma: float, axis_name: str | None = None):
    """(state with the statistics of this rollout in it, rewards scaled by what was known before)."""
    stats, returns, discounted = state.observation_stats, state.return_stats, state.actors.discounted
    if stats is not None:
        stats = update_stats(stats, frames.observation, axis_name=axis_name)
    reward = frames.reward
    if returns is not None:
        ended = frames.terminated | frames.truncated
        discounted, sums = discounted_sums(discounted, reward, ended, gamma=gamma)
        returns = update_stats(returns, sums, axis_name=axis_name)
        reward = jnp.clip(reward * jax.lax.rsqrt(returns.var + 1e-8), -10.0, 10.0)
    actors = dataclasses.replace(state.actors, discounted=discounted)
    return dataclasses.replace(state, observation_stats=stats, return_stats=returns, actors=actors), reward


def to_rows(x: jax.Array, length: int) -> jax.Array:
    """[T, N, ...] -> [N T / length, length, ...]: stretches of `length` steps of one environment."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, length, *x.shape[2:])


def make_batch(frames: Frames, transition: Transition, advantages, returns, *, length: int) -> PPOBatch:
    """Rows [R, L] of a rollout with its advantages and targets."""
    rows = lambda x: to_rows(x, length)  # noqa: E731
    return PPOBatch(
        observation=rows(transition.observation),
        hidden=jax.tree.map(lambda h: rows(h)[:, 0], frames.hidden),
        first=rows(frames.first),
        action=rows(transition.action),
        outputs=rows(frames.outputs),
        logps=rows(transition.logp),
        values=rows(transition.value),
        advantages=rows(advantages),
        returns=rows(returns),
    )


def minibatch_rows(key: jax.Array, rows: int, *, minibatches: int) -> jax.Array:
    """int32[minibatches, rows / minibatches]: the rows of an epoch in a random order.

    Each row number is put below random bits of its own and the words are sorted: five times faster on a CPU than
    sorting pairs. Rows whose bits agree (one pair of 512 rows in 64 epochs) stay in order.
    """
    low = (1 << (rows - 1).bit_length()) - 1
    words = (jax.random.bits(key, (rows,), jnp.uint32) & ~jnp.uint32(low)) | jnp.arange(rows, dtype=jnp.uint32)
    return (jnp.sort(words) & jnp.uint32(low)).astype(jnp.int32).reshape(minibatches, -1)


def ppo_objective(
    agent: Agent,
    *,
    entropy_coef: jax.Array | float,
    kl_coef: jax.Array | float | None = None,
    loss: Callable = ppo_clip_loss,
    value_clip: float | None = 0.2,
    value_coef: float = 0.5,
    whiten: bool = True,
    axis_name: str | None = None,
) -> LossFn:
    """policy loss + value_coef value loss - entropy_coef entropy (+ kl_coef KL(old || new)), each a mean over actions.

    Args:
      agent: policy and critic.
      entropy_coef: weight of the entropy bonus; may be traced.
      kl_coef: weight of the KL penalty, exact (arXiv 1707.06347, section 4); may be traced; None: no such term.
      loss: `f(logps, old_logps, advantages, mask) -> float[R, L]`, of rlax_ft.losses.policy_gradient.
      value_clip: how far a value may move from its old one; None does not clip.
      value_coef: weight of the value loss.
      whiten: centre and scale the advantages of each minibatch.
      axis_name: mapped axis over which environments are split.

    Returns:
      loss_fn(params, PPOBatch, key) -> (loss, metrics under TRL's names). `policy/clipfrac_avg` is the share of actions
      outside the loss's own bounds; a loss without any has no such metric.
    """
    policy = agent.distribution

    def loss_fn(params, batch: PPOBatch, key):
        del key
        outputs, values = agent.evaluate(params, batch.hidden, batch.observation, batch.first)
        logps = policy.log_prob(outputs, batch.action)
        mask = jnp.ones_like(logps)
        mean = lambda x: aggregate(x, mask, 'token_mean', axis_name=axis_name)  # noqa: E731
        advantages = masked_whiten(batch.advantages, mask, axis_name=axis_name) if whiten else batch.advantages
        policy_loss = mean(loss(logps, batch.logps, advantages, mask))
        value_loss = mean(clipped_value_loss(values, batch.values, batch.returns, clip=value_clip))
        entropy = mean(policy.entropy(outputs))
        total = policy_loss + value_coef * value_loss - entropy_coef * entropy
        log_ratio = logps - batch.logps
        metrics = {
            'loss/policy_avg': policy_loss,
            'loss/value_avg': value_loss,
            'policy/approxkl_avg': mean(0.5 * jnp.square(log_ratio)),
            'policy/entropy_avg': entropy,
        }
        outside = outside_bounds(loss, log_ratio, mask)
        if outside is not None:
            metrics['policy/clipfrac_avg'] = mean(outside)
        if kl_coef is not None:
            metrics['objective/kl'] = mean(policy.kl(batch.outputs, outputs))
            total += kl_coef * metrics['objective/kl']
        return total, metrics

    return loss_fn


def update(
    step: Callable,
    train: TrainState,
    batch: PPOBatch,
    key: jax.Array,
    *,
    epochs: int,
    minibatches: int,
    renew: Callable | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Epochs of reshuffled minibatches: (the state after, metrics averaged over all minibatches).

    Args:
      step: `(TrainState, PPOBatch) -> (TrainState, metrics)`, of `make_train_step`.
      train: the state before.
      batch: all rows.
      key: of this update's permutations.
      epochs: how often the rows are gone through.
      minibatches: parts of an epoch.
      renew: `params -> PPOBatch`: values, advantages and targets anew before each epoch; None: as they are.
    """

    def epoch(train, key):
        whole = batch if renew is None else renew(train.params)
        parts = minibatch_rows(key, batch.logps.shape[0], minibatches=minibatches)
        return jax.lax.scan(lambda s, part: step(s, jax.tree.map(lambda x: x[part], whole)), train, parts)

    train, metrics = jax.lax.scan(epoch, train, jax.random.split(key, epochs))
    return train, jax.tree.map(jnp.mean, metrics)


def episode_metrics(frames: Frames, batch: PPOBatch, *, axis_name: str | None = None):
    """Sums over the episodes that ended, how many they were, and how well the critic explains its targets."""
    ended = (frames.terminated | frames.truncated).astype(jnp.float32)
    sums = {
        'episodes': jnp.sum(ended),
        'episode_return': jnp.sum(ended * frames.episode_return),
        'episode_length': jnp.sum(ended * frames.episode_length),
        'rewards_not_finite': jnp.sum(~jnp.isfinite(frames.reward)).astype(jnp.float32),
    }
    mask = jnp.ones_like(batch.returns)
    unexplained = masked_var(batch.returns - batch.values, mask, axis_name=axis_name)
    explained = 1.0 - unexplained / (masked_var(batch.returns, mask, axis_name=axis_name) + 1e-8)
    sums = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    return {**sums, 'val/explained_variance': explained}


def log_ratios(agent: Agent, params, frames: Frames, transition: Transition) -> jax.Array:
    """log pi(a|s) under `params` minus that of the policy that acted: float32[T, N], for V-trace."""
    rows = lambda x: jnp.swapaxes(x, 0, 1)  # noqa: E731
    hidden = jax.tree.map(lambda h: h[0], frames.hidden)
    outputs, _ = agent.evaluate(params, hidden, rows(transition.observation), rows(frames.first))
    return agent.distribution.log_prob(rows(outputs), frames.action) - transition.logp


def mean_metrics(totals: dict[str, jax.Array], updates) -> dict[str, jax.Array]:
    """Sums of metrics over updates -> their means; those of episodes are means over the episodes that ended."""
    means = jax.tree.map(lambda x: x / updates, totals)
    return means | {name: totals[name] / totals['episodes'] for name in ('episode_return', 'episode_length')}
