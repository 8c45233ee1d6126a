"""Environments that step on the host (Gymnasium's): the policy of all runs decides in one compiled call a step.

`HostEnvironments` has the interface of `DeviceEnvironments` (device.py); a script asks neither which it is.
"""

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.envs.agent import Agent
from rlax_ft.envs.episodes import Played
from rlax_ft.envs.gymnasium import GymnasiumBatch, GymnasiumMaker, draw_gymnasium, stream_seed
from rlax_ft.envs.ppo import mean_metrics
from rlax_ft.envs.programs import Layout, over_runs
from rlax_ft.envs.rollout import act, split_key
from rlax_ft.envs.state import Actors, Frames, PPOState
from rlax_ft.errors import InputError

_split_keys = jax.jit(jax.vmap(split_key))

# Kinds of streams of random numbers: training and evaluation never share one.
_TRAINING, _EVALUATION, _DRAWING = 0, 1, 2


class HostEnvironments:
    """All environments of all runs: those of run r are r N ... r N + N - 1."""

    def __init__(
        self,
        maker: GymnasiumMaker,
        seeds: list[int],
        num_envs: int,
        *,
        observe: tuple[int, ...] = (),
        time_limit: int = 0,
    ):
        """Makes `num_envs` environments for each run.

        Args:
          maker: of one environment.
          seeds: of the runs.
          num_envs: N.
          observe, time_limit: as `GymnasiumBatch`.
        """
        self._maker, self._seeds, self._wrapped = maker, seeds, dict(observe=observe, time_limit=time_limit)
        self._batch = self._make(num_envs)
        self._num_envs = num_envs
        self.name, self.observation, self.action = maker.name, self._batch.observation, self._batch.action
        self.drawable = self._batch.drawable

    def reset(self, key: jax.Array, num_envs: int):
        """(None, zeros [num_envs, ...]): the state of these environments is here, and `begin` shows it."""
        del key
        return None, jnp.zeros((num_envs, *self.observation.shape))

    def begin(self, state: PPOState, updates: int) -> PPOState:
        """The state [runs, ...] with the first observations of new episodes.

        What Gymnasium keeps inside cannot be saved: a run that is resumed after so many updates does so with new
        episodes, of other seeds than those it began with.
        """
        observation = self._batch.reset(self._streams(self._num_envs, _TRAINING, updates))
        fresh = dict(
            observation=jnp.asarray(observation).reshape(state.actors.observation.shape),
            first=jnp.ones_like(state.actors.first),
        )
        return dataclasses.replace(state, actors=dataclasses.replace(state.actors, **fresh))

    def program(self, iteration: Callable, agent: Agent, layout: Layout, *, num_steps: int) -> 'HostProgram':
        """As `DeviceEnvironments.program`.

        Raises:
          InputError: a mesh or pmap, for which the host has no use.
        """
        if layout.mesh or layout.backend == 'pmap':
            flag = f'--mesh={layout.mesh}' if layout.mesh else '--backend=pmap'
            raise InputError(f'--env={self.name}: steps on the host, where {flag} has no use; leave it out')
        if jax.process_count() > 1:
            raise InputError(f'--env={self.name}: is stepped on the host, by one process; start one')
        return HostProgram(self._batch, iteration, agent, num_steps)

    def play(self, agent: Agent, params, stats, keys, *, episodes: int, greedy: bool, max_steps: int) -> Played:
        """As `DeviceEnvironments.play`, 20 environments of a run at a time.

        Each environment plays its share to the end: counting whichever episodes end first would favour short ones.
        """
        runs, side = len(self._seeds), min(episodes, 20)
        share, batch, decide = -(-episodes // side), self._make(side), make_decider(agent, greedy=greedy)
        observation = batch.reset(self._streams(side, _EVALUATION, 0))
        returns, lengths = np.zeros((runs * side, share), np.float32), np.zeros((runs * side, share), np.int32)
        ended, played, step = np.ones((runs * side, share), bool), np.zeros(runs * side, int), 0
        hidden = jax.tree.map(lambda h: jnp.stack([h] * runs), agent.initial_hidden(side))
        first = np.ones((runs, side), bool)
        while (played < share).any():
            actors = Actors(None, observation.reshape(runs, side, *observation.shape[1:]), hidden, first, first * 0.0)
            (_, _, hidden), action = decide(params, stats, actors, keys, step)
            answer, step = batch.step(_flat(action)), step + 1
            observation = answer.observation
            done = answer.step.terminated | answer.step.truncated
            endless = ~done & (answer.episode_length >= max_steps)
            for i in np.flatnonzero((done | endless) & (played < share)):
                at = i, played[i]
                returns[at], lengths[at], ended[at] = answer.episode_return[i], answer.episode_length[i], done[i]
                played[i] += 1
            for i in np.flatnonzero(endless):
                observation[i] = batch.restart(i)
            first = (done | endless).reshape(runs, side)
        batch.close()
        return Played(*(x.reshape(runs, -1)[:, :episodes] for x in (returns, lengths, ended)))

    def draw(self, agent: Agent, params, stats, key: jax.Array, path) -> None:
        """Plays one greedy episode of one run and writes it as a GIF."""
        one, batch = make_decider(agent, greedy=True), self._make(1)
        lead = lambda tree: jax.tree.map(lambda x: jnp.asarray(x)[None], tree)  # noqa: E731
        carried = {'hidden': lead(agent.initial_hidden(1)), 'first': np.ones((1, 1), bool)}

        def decide(observation):
            seen = batch.seen(observation)[None, None]
            actors = Actors(None, seen, carried['hidden'], carried['first'], np.zeros((1, 1)))
            (_, _, hidden), action = one(lead(params), lead(stats), actors, key[None], 0)
            carried.update(hidden=hidden, first=np.zeros((1, 1), bool))
            return batch.taken(np.asarray(action)[0, 0])

        draw_gymnasium(self._maker, decide, path, seed=stream_seed(self._seeds[0], _DRAWING))

    def _make(self, count):
        return GymnasiumBatch(self._maker, len(self._seeds) * count, **self._wrapped)

    def _streams(self, count, kind, updates):
        """A seed for each of `count` environments of each run; those of a run depend on its own seed alone."""
        return [stream_seed(seed, kind, updates, i) for seed in self._seeds for i in range(count)]


class HostProgram:
    """`(hyper, state, count) -> (state, metrics)`: the rollout is a loop here, the rest of an iteration is compiled."""

    def __init__(self, batch: GymnasiumBatch, iteration: Callable, agent: Agent, num_steps: int):
        """Takes `iteration(hyper, state, collect) -> (state, metrics)` of one run."""
        self._batch, self._num_steps, self._decide = batch, num_steps, make_decider(agent)
        # The iteration's rollout is what was played before it was called.
        learn = lambda hyper, state, played: iteration(hyper, state, lambda *_: played)  # noqa: E731
        self._learn = jax.jit(over_runs(learn), donate_argnums=1)
        self._compiled: Callable | None = None
        self.compile_seconds = 0.0

    def __call__(self, hyper, state, count: int):
        """(state, metrics [runs]) after `count` updates; the state is donated."""
        totals = None
        for _ in range(int(count)):
            played = play_rollout(self._batch, self._decide, state, self._num_steps)
            if self._compiled is None:
                started = time.perf_counter()
                self._compiled = self._learn.lower(hyper, state, played).compile()
                self.compile_seconds = time.perf_counter() - started
            state, metrics = self._compiled(hyper, state, played)
            totals = metrics if totals is None else jax.tree.map(jnp.add, totals, metrics)
        return state, mean_metrics(totals, int(count))


def make_decider(agent: Agent, *, greedy: bool = False) -> Callable:
    """`decide(params, stats, actors, key, time) -> ((action, outputs, hidden after), the action for the host)`.

    All have a leading axis of runs but `time`, which is folded into the keys.
    """

    def decide(params, stats, actors, key, time):
        noise = agent.distribution.noise(jax.random.fold_in(key, time), actors.first.shape)
        action, outputs, after = act(agent, params, stats, actors, noise)
        action = agent.distribution.mode(outputs) if greedy else action
        return (action, outputs, after), agent.distribution.to_env(action)

    return jax.jit(jax.vmap(decide, in_axes=(0, 0, 0, 0, None)))


def play_rollout(batch: GymnasiumBatch, decide: Callable, state: PPOState, num_steps: int):
    """`rollout.collect`, step by step: (Actors, Frames [runs, T, N]).

    Args:
      batch: runs * N environments.
      decide: of `make_decider`.
      state: PPOState [runs, ...]; its `actors.observation` is what the environments showed last.
      num_steps: T.
    """
    keys = _split_keys(state.train.key)[1]  # As the iteration itself splits them.
    actors, frames, shape = state.actors, [], state.actors.first.shape
    for step in range(num_steps):
        (action, outputs, after), for_host = decide(state.train.params, state.observation_stats, actors, keys, step)
        answer = batch.step(_flat(for_host))
        fold = lambda x: x.reshape(*shape, *x.shape[1:])  # noqa: E731
        frames.append(
            Frames(
                observation=actors.observation,
                hidden=actors.hidden,
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
        actors = dataclasses.replace(actors, observation=fold(answer.observation), hidden=after, first=first)
    stacked = jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x], axis=1), *frames)
    return jax.tree.map(jnp.asarray, actors), stacked


def _flat(actions):
    """[runs, N, ...] -> [runs * N, ...] on the host."""
    return np.asarray(actions).reshape(-1, *actions.shape[2:])
