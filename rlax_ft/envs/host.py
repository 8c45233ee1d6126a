"""Rollouts and evaluation with environments that step on the host (Gymnasium's).

The policy of all runs decides in one compiled call a step. Leaves out the update, which is that of control.py.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.envs.agent import Agent
from rlax_ft.envs.gymnasium import HostEnvironments
from rlax_ft.envs.ppo import act, split_key
from rlax_ft.envs.state import Actors, ControlState, Frames


def make_decider(agent: Agent, *, greedy: bool = False) -> Callable:
    """`decide(params, stats, actors, key, time) -> ((action, outputs, hidden before, hidden after), for the host)`.

    All have a leading axis of runs but `time`, which is folded into the keys.
    """

    def decide(params, stats, actors, key, time):
        noise = agent.distribution.noise(jax.random.fold_in(key, time), actors.first.shape)
        action, outputs, hidden, after = act(agent, params, stats, actors, noise)
        action = agent.distribution.mode(outputs) if greedy else action
        return (action, outputs, hidden, after), agent.distribution.to_env(action)

    return jax.jit(jax.vmap(decide, in_axes=(0, 0, 0, 0, None)))


def collect_on_host(env: HostEnvironments, decide: Callable, state: ControlState, num_steps: int):
    """`collect`, step by step: (state with its key moved on, Actors, Frames [runs, T, N], keys of the update).

    Args:
      env: runs * N environments.
      decide: of `make_decider`.
      state: ControlState [runs, ...]; its `actors.observation` is what the environments showed last.
      num_steps: T.
    """
    state, keys = _split(state)
    actors, frames, shape = state.actors, [], state.actors.first.shape
    for time in range(num_steps):
        (action, outputs, hidden, after), for_host = decide(
            state.train.params, state.observation_stats, actors, keys[:, 0], time
        )
        answer = env.step(np.asarray(for_host).reshape(-1, *for_host.shape[2:]))
        fold = lambda x: x.reshape(*shape, *x.shape[1:])  # noqa: E731
        frames.append(
            Frames(
                observation=actors.observation,
                hidden=hidden,
                first=actors.first,
                action=action,
                outputs=outputs,
                reward=fold(answer.step.reward),
                terminated=fold(answer.step.terminated),
                truncated=fold(answer.step.truncated),
                final_observation=fold(answer.step.observation),
                episode_return=fold(answer.episode_return),
                episode_length=fold(answer.episode_length),
            )
        )
        first = fold(answer.step.terminated | answer.step.truncated)
        actors = actors.replace(observation=fold(answer.observation), hidden=after, first=first)
    stacked = jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x], axis=1), *frames)
    actors = jax.tree.map(jnp.asarray, actors)
    return state, actors, stacked, keys[:, 1]


@jax.jit
def _split(state):
    # The env states are None here, so that the state may be donated to the update afterwards.
    state, keys = jax.vmap(split_key)(state)
    return state, jax.vmap(jax.random.split)(keys)


def play_on_host(env: HostEnvironments, agent: Agent, params, stats, *, episodes: int, greedy: bool) -> np.ndarray:
    """Undiscounted returns [runs, episodes] of whole episodes, 20 environments at a time.

    Each environment plays its share to the end: counting whichever episodes end first would favour short ones.
    """
    runs = jax.tree.leaves(params)[0].shape[0]
    side = min(episodes, 20)
    apart = env.apart(runs * side)
    decide = make_decider(agent, greedy=greedy)
    keys = jax.random.split(jax.random.key(0), runs)
    share = -(-episodes // side)
    observation, returns = apart.reset(seed=10_000), np.zeros((runs * side, share))
    played, time = np.zeros(runs * side, int), 0
    hidden = jax.tree.map(lambda h: jnp.stack([h] * runs), agent.initial_hidden(side))
    first = np.ones((runs, side), bool)
    while (played < share).any():
        actors = Actors(None, observation.reshape(runs, side, *observation.shape[1:]), hidden, first, first * 0.0)
        (_, _, _, hidden), action = decide(params, stats, actors, keys, time)
        answer = apart.step(np.asarray(action).reshape(-1, *action.shape[2:]))
        observation, time = answer.observation, time + 1
        done = answer.step.terminated | answer.step.truncated
        for i in np.flatnonzero(done & (played < share)):
            returns[i, played[i]] = answer.episode_return[i]
            played[i] += 1
        first = done.reshape(runs, side)
    apart.close()
    return returns.reshape(runs, -1)[:, :episodes]


def draw_on_host(env: HostEnvironments, agent: Agent, params, stats, key: jax.Array, path) -> None:
    """Plays one greedy episode and writes it as a GIF."""
    one = make_decider(agent, greedy=True)
    lead = lambda tree: jax.tree.map(lambda x: jnp.asarray(x)[None], tree)  # noqa: E731
    carried = {'hidden': lead(agent.initial_hidden(1)), 'first': np.ones((1, 1), bool)}

    def decide(observation):
        actors = Actors(None, observation[None], carried['hidden'], carried['first'], np.zeros((1, 1)))
        (_, _, _, hidden), action = one(lead(params), lead(stats), actors, key[None], 0)
        carried.update(hidden=hidden, first=np.zeros((1, 1), bool))
        return np.asarray(action)[0]

    env.draw(decide, path)
