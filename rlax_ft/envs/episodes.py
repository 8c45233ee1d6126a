"""Whole episodes of a trained policy, apart from training, and the learning curve.

Statistics of observations are frozen here. Leaves out where the policy comes from.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from rlax_ft.envs.agent import Agent
from rlax_ft.envs.environment import Environment
from rlax_ft.envs.ppo import act
from rlax_ft.envs.state import Actors
from rlax_ft.envs.statistics import RunningStats

matplotlib.use('Agg')
import matplotlib.pyplot as plt


def play_episodes(
    env: Environment,
    agent: Agent,
    params,
    stats: RunningStats | None,
    key: jax.Array,
    *,
    episodes: int,
    greedy: bool = True,
    max_steps: int = 100_000,
) -> tuple[jax.Array, jax.Array]:
    """(undiscounted returns float32[episodes], lengths int32[episodes]) of episodes played side by side.

    Args:
      env: with episode statistics.
      agent: the policy.
      params: its parameters.
      stats: of observations, frozen; None.
      key: of these episodes.
      episodes: how many.
      greedy: the distribution's mode, or its samples.
      max_steps: an episode that does not end is left there.
    """
    reset_key, key = jax.random.split(key)
    states, observation = jax.vmap(env.reset)(jax.random.split(reset_key, episodes))
    zeros, params = jnp.zeros(episodes), agent.tree(params)
    actors = Actors(states, observation, agent.initial_hidden(episodes), jnp.ones(episodes, bool), zeros)

    def going(carry):
        _, done, time, *_ = carry
        return ~jnp.all(done) & (time < max_steps)

    def step(carry):
        actors, done, time, returns, lengths = carry
        noise_key, step_key = jax.random.split(jax.random.fold_in(key, time))
        action, outputs, _, hidden = act(agent, params, stats, actors, agent.distribution.noise(noise_key, (episodes,)))
        action = agent.distribution.to_env(agent.distribution.mode(outputs) if greedy else action)
        states, answer = jax.vmap(env.step)(jax.random.split(step_key, episodes), actors.env, action)
        returns = jnp.where(done, returns, states.episode_return)
        lengths = jnp.where(done, lengths, states.episode_length)
        done |= answer.terminated | answer.truncated
        actors = Actors(states, answer.observation, hidden, jnp.zeros(episodes, bool), zeros)
        return actors, done, time + 1, returns, lengths

    carry = (actors, jnp.zeros(episodes, bool), jnp.zeros((), jnp.int32), zeros, jnp.zeros(episodes, jnp.int32))
    return jax.lax.while_loop(going, step, carry)[3:]


def draw_episode(
    env: Environment, agent: Agent, params, stats, key: jax.Array, path: str | Path, *, max_steps: int = 500
) -> None:
    """Plays one greedy episode and draws it as a GIF."""
    state, observation = env.reset(key)
    hidden, first, states, rewards = agent.initial_hidden(1), True, [], []
    step = jax.jit(env.step)
    decide = jax.jit(lambda actors: act(agent, params, stats, actors, agent.distribution.noise(key, (1,))))
    for time in range(max_steps):
        states.append(jax.device_get(state))
        _, outputs, _, hidden = decide(Actors(None, observation[None], hidden, jnp.asarray([first]), jnp.zeros(1)))
        action = agent.distribution.to_env(agent.distribution.mode(outputs))[0]
        state, answer = step(jax.random.fold_in(key, time), state, action)
        observation, first = answer.observation, False
        rewards.append(float(answer.reward))
        if answer.terminated | answer.truncated:
            break
    env.draw(states, rewards, path)


def plot_learning_curve(path: str | Path, steps, returns, *, title: str) -> None:
    """Episode return against environment steps: each seed thin, their mean thick, a band of one deviation.

    Args:
      path: the PNG to write.
      steps: [records].
      returns: [records, seeds]; NaN where no episode ended.
      title: of the figure.
    """
    steps, returns = np.asarray(steps, float), np.asarray(returns, float)
    seen = np.isfinite(returns).any(axis=1)
    steps, returns = steps[seen], returns[seen]
    with plt.rc_context({'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False}):
        figure, axes = plt.subplots(figsize=(6.4, 4.0), layout='constrained')
        if len(steps):
            mean, spread = np.nanmean(returns, axis=1), np.nanstd(returns, axis=1)
            axes.plot(steps, returns, color='#0072B2', lw=0.6, alpha=0.3)
            axes.fill_between(steps, mean - spread, mean + spread, color='#0072B2', alpha=0.2, lw=0)
            axes.plot(steps, mean, color='#0072B2', lw=1.8)
        seeds = returns.shape[1]
        axes.set_title(title if seeds == 1 else f'{title}: mean of {seeds} runs, band of one deviation', fontsize=10)
        axes.set_xlabel('environment steps')
        axes.set_ylabel('episode return in training')
        axes.grid(alpha=0.2, lw=0.6)
        temporary = Path(path).with_suffix('.tmp.png')
        figure.savefig(temporary, dpi=160)
        plt.close(figure)
    temporary.replace(path)
