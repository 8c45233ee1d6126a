"""Whole episodes of a trained policy, apart from training; statistics of observations are frozen in them."""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import struct

from rlax_ft.envs.agent import Agent
from rlax_ft.envs.environment import Environment
from rlax_ft.envs.rollout import act
from rlax_ft.envs.state import Actors
from rlax_ft.envs.statistics import RunningStats
from rlax_ft.types import Array


@struct.dataclass
class Played:
    """Episodes.

    Attributes:
      returns: float32[..., episodes], undiscounted; of an episode that did not end, so far.
      lengths: int32[..., episodes].
      ended: bool[..., episodes]; False where the episode was left after as many steps as an evaluation has.
    """

    returns: Array
    lengths: Array
    ended: Array


def play_episodes(
    env: Environment,
    agent: Agent,
    params,
    stats: RunningStats | None,
    key: jax.Array,
    *,
    episodes: int,
    greedy: bool = True,
    max_steps: int = 10_000,
) -> Played:
    """Episodes of one policy, side by side.

    Args:
      env: with episode statistics.
      agent: the policy.
      params: its parameters.
      stats: of observations, frozen; None.
      key: of these episodes.
      episodes: how many.
      greedy: the distribution's mode, or its samples.
      max_steps: an episode that has not ended is left there.
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
        action, outputs, hidden = act(agent, params, stats, actors, agent.distribution.noise(noise_key, (episodes,)))
        action = agent.distribution.to_env(agent.distribution.mode(outputs) if greedy else action)
        states, answer = jax.vmap(env.step)(jax.random.split(step_key, episodes), actors.env, action)
        returns = jnp.where(done, returns, states.episode_return)
        lengths = jnp.where(done, lengths, states.episode_length)
        done |= answer.terminated | answer.truncated
        actors = Actors(states, answer.observation, hidden, jnp.zeros(episodes, bool), zeros)
        return actors, done, time + 1, returns, lengths

    carry = (actors, jnp.zeros(episodes, bool), jnp.zeros((), jnp.int32), zeros, jnp.zeros(episodes, jnp.int32))
    _, ended, _, returns, lengths = jax.lax.while_loop(going, step, carry)
    return Played(returns, lengths, ended)


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
        _, outputs, hidden = decide(Actors(None, observation[None], hidden, jnp.asarray([first]), jnp.zeros(1)))
        action = agent.distribution.to_env(agent.distribution.mode(outputs))[0]
        state, answer = step(jax.random.fold_in(key, time), state, action)
        observation, first = answer.observation, False
        rewards.append(float(answer.reward))
        if answer.terminated | answer.truncated:
            break
    env.draw(states, rewards, path)
