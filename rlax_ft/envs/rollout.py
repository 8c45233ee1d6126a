"""Decisions and rollouts of one run in environments that are pure functions.

Environments that step on the host are played in host.py.
"""

import jax
import jax.numpy as jnp

from rlax_ft.envs.agent import Agent
from rlax_ft.envs.environment import Environment
from rlax_ft.envs.state import Actors, Frames, PPOState
from rlax_ft.envs.statistics import RunningStats, normalize
from rlax_ft.envs.wrappers import continue_from


def split_key(key: jax.Array, *, axis_name: str | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(the key of the next update, a key of this one's rollout, one of its shuffles); others on each device."""
    key, mine = jax.random.split(key)
    if axis_name is not None:
        mine = jax.random.fold_in(mine, jax.lax.axis_index(axis_name))
    return key, *jax.random.split(mine)


def act(agent: Agent, params, stats: RunningStats | None, actors: Actors, noise: jax.Array):
    """One decision of each environment: (action, outputs, hidden state after it)."""
    hidden = jax.tree.map(lambda h: jnp.where(actors.first[:, None], 0.0, h), actors.hidden)
    outputs, after = agent.act(params, hidden, normalize(stats, actors.observation))
    return agent.distribution.sample(outputs, noise), outputs, after


def collect(env: Environment, agent: Agent, state: PPOState, key: jax.Array, *, num_steps: int):
    """`num_steps` steps of every environment: (Actors afterwards, Frames [T, N]).

    All that is random (the policy's noise, the environments' keys, small states after auto-reset) is drawn before the
    loop: on a CPU the loop's cost is its number of small operations.

    Args:
      env: with episode statistics.
      agent: the policy.
      state: whose parameters act.
      key: of this rollout.
      num_steps: T.
    """
    shape = (num_steps, state.actors.first.shape[0])
    noise_key, step_key, reset_key = jax.random.split(key, 3)
    noise = agent.distribution.noise(noise_key, shape)
    step_keys = jax.random.split(step_key, shape)
    restarts, restart = _restarts(env, jax.random.split(reset_key, shape))
    params = agent.tree(state.train.params)

    def step(actors, at):
        noise, keys, restarts = at
        action, outputs, after = act(agent, params, state.observation_stats, actors, noise)
        states, answer = jax.vmap(env.step)(keys, actors.env, agent.distribution.to_env(action))
        done = answer.terminated | answer.truncated
        following = restart(done, restarts, (states, answer.observation))
        frame = Frames(
            observation=actors.observation,
            hidden=actors.hidden,
            first=actors.first,
            action=action,
            outputs=outputs,
            reward=answer.reward,
            terminated=answer.terminated,
            truncated=answer.truncated,
            final_observation=answer.observation,
            episode_return=states.episode_return,
            episode_length=states.episode_length,
        )
        return Actors(*following, hidden=after, first=done, discounted=actors.discounted), frame

    # Not unrolled: XLA would fuse across steps, and compute a MinAtar screen again for each pixel of the next.
    return jax.lax.scan(step, state.actors, (noise, step_keys, restarts))


def drawn_ahead(state, observation) -> bool:
    """Whether states after auto-reset are drawn before the loop: small beside the observations that are kept anyway."""
    return _size(state) <= 2 * _size(observation) + 256


def _restarts(env, keys):
    """(what the loop reads [T, N, ...], `(done, what it read, (states, observations)) -> (states, observations)`).

    Small states are drawn before the loop, one a step, 32 steps at a time: XLA would share out a longer draw among
    threads, and waking them costs more than such a draw. A state much larger than the observations, which are kept
    anyway, would fill the memory: it is drawn within the loop, when an episode ends. The keys and so the numbers are
    the same.
    """
    reset = jax.vmap(env.reset)
    state, observation = jax.eval_shape(env.reset, keys[0, 0])
    if drawn_ahead(state, observation):
        return jax.lax.map(reset, keys, batch_size=32), continue_from

    def restart(done, keys, current):
        return jax.lax.cond(jnp.any(done), lambda: continue_from(done, reset(keys), current), lambda: current)

    return keys, restart


def _size(tree):
    """Bytes of a tree of shapes; a random key counts as two words."""
    leaf = lambda x: x.size * (8 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize)  # noqa: E731
    return sum(leaf(x) for x in jax.tree.leaves(tree))
