"""Around the loop of ppo_control.py: the state to start from, records, evaluation, and the end of a run.

Leaves out the algorithm.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.envs.agent import Agent
from rlax_ft.envs.episodes import draw_episode, play_episodes, plot_learning_curve
from rlax_ft.envs.gymnasium import HostEnvironments
from rlax_ft.envs.host import draw_on_host, play_on_host
from rlax_ft.envs.ppo import init_control
from rlax_ft.envs.programs import HostProgram, Program, gathered, place
from rlax_ft.envs.setup import ControlSettings, Hyper, optimizer_of
from rlax_ft.envs.state import ControlState
from rlax_ft.errors import InputError
from rlax_ft.harness.run import Run
from rlax_ft.training.metrics import read_records

_EVALUATION = 0x0E7A1  # Folded into a seed's key: evaluation never sees training's random numbers.


def starting_state(settings: ControlSettings, run: Run, env, agent: Agent, runs: list[dict], hyper: Hyper):
    """(ControlState [runs, ...], updates already taken): from the newest checkpoint, or new."""
    on_host = isinstance(env, HostEnvironments)

    def first(key, learning_rate):
        return init_control(
            agent,
            optimizer_of(settings, learning_rate),
            key,
            env=None if on_host else env,
            num_envs=settings.num_envs,
            normalize_observations=settings.normalize_observations,
            scale_rewards=settings.scale_rewards,
            kl_coef=settings.beta,
        )

    keys = jnp.stack([jax.random.key(one['seed']) for one in runs])
    state = jax.jit(jax.vmap(first))(keys, hyper.learning_rate)
    done = run.checkpoints.latest_step() or 0
    if done:
        state, _ = run.checkpoints.restore(state)
    if on_host:
        # What Gymnasium keeps inside cannot be saved: a run that goes on does so with new episodes.
        first_seen = env.reset().reshape(state.actors.observation.shape)
        fresh = dict(observation=jnp.asarray(first_seen), first=jnp.ones_like(state.actors.first))
        state = state.replace(actors=state.actors.replace(**fresh))
    return place(settings, state), done


class Logbook:
    """Turns metrics [runs] into records, watches them one record late, and keeps the time spent on updates."""

    def __init__(self, settings: ControlSettings, runs: list[dict], program: Program | HostProgram):
        """Starts the clock."""
        self._settings, self._runs, self._program = settings, runs, program
        self._started = time.perf_counter()
        self._elsewhere = 0.0
        self._pending = None
        self.updates = 0

    def record(self, count: int, metrics: dict) -> dict:
        """The record of `count` updates: means over runs, and each run's episode return under its own name.

        Raises:
          InputError: the environment gave a reward that is not finite, in the record before.
        """
        self.updates += count
        self._watch()
        # To one device: a mean over devices would be a collective, in which one waits for the other's updates.
        metrics = jax.device_put(metrics, jax.devices()[0])
        self._pending = metrics['rewards_not_finite']
        names = [n for n in metrics if not n.startswith('episode') and n != 'rewards_not_finite']
        record = {name: jnp.mean(metrics[name]) for name in names}
        record |= {name: jnp.nanmean(metrics[name]) for name in ('episode_return', 'episode_length')}
        if len(self._runs) > 1:
            record |= {f'episode_return/{i}': metrics['episode_return'][i] for i in range(len(self._runs))}
        return record

    def elsewhere(self, function, *arguments, **keywords):
        """Calls something whose time does not count, once the updates sent off before it are done."""
        jax.block_until_ready(self._pending)
        started = time.perf_counter()
        result = jax.block_until_ready(function(*arguments, **keywords))
        self._elsewhere += time.perf_counter() - started
        return result

    def steps_per_second(self) -> float:
        """Environment steps of one run a second, without compilation."""
        self._watch()
        jax.block_until_ready(self._pending)
        seconds = time.perf_counter() - self._started - self._elsewhere - self._program.compile_seconds
        return self.updates * self._settings.steps_per_update / max(seconds, 1e-9)

    def _watch(self):
        if self._pending is not None and float(np.sum(jax.device_get(self._pending))) > 0:
            raise InputError(
                f'--env={self._settings.env}: gave a reward that is not finite within the first {self.updates} updates;'
                ' rewards must be numbers'
            )


def evaluate(settings: ControlSettings, env, agent: Agent, state: ControlState, runs: list[dict]) -> np.ndarray:
    """Undiscounted returns [runs, episodes] of whole episodes with frozen statistics, apart from training."""
    greedy = settings.eval_mode == 'greedy'
    params, stats = state.train.params, state.observation_stats
    if isinstance(env, HostEnvironments):
        return play_on_host(env, agent, params, stats, episodes=settings.eval_episodes, greedy=greedy)

    def play(params, stats, key):
        return play_episodes(env, agent, params, stats, key, episodes=settings.eval_episodes, greedy=greedy)[0]

    return np.asarray(jax.jit(jax.vmap(play))(*jax.device_put((params, stats, _keys(runs)), jax.devices()[0])))


def finish(settings, run: Run, env, agent: Agent, state: ControlState, runs: list[dict], rate: float, program) -> dict:
    """Evaluates, writes summary.json with a list entry for each run, and draws."""
    returns = evaluate(settings, env, agent, state, runs)
    plot_curve(settings, run.folder, len(runs))
    summary = run.finish(
        {
            'env': settings.env,
            'total_steps': settings.updates * settings.steps_per_update,
            **{name: [one[name] for one in runs] for name in runs[0]},
            'eval_return_mean': returns.mean(axis=1).tolist(),
            'eval_return_std': returns.std(axis=1).tolist(),
            'env_steps_per_second': [rate] * len(runs),
            'compile_seconds': [program.compile_seconds] * len(runs),
            'return_mean': float(returns.mean()),
            'return_lowest_run': float(returns.mean(axis=1).min()),
            'steps_per_second_of_all_runs': rate * len(runs),
        }
    )
    if settings.render:
        one = jax.tree.map(lambda x: jax.device_get(x)[0], (state.train.params, state.observation_stats))
        draw = draw_on_host if isinstance(env, HostEnvironments) else draw_episode
        draw(env, agent, *one, _keys(runs)[0], run.folder / 'episode.gif')
    return summary


def plot_curve(settings: ControlSettings, folder: Path, runs: int) -> None:
    """Writes learning_curve.png from the run's metrics.jsonl."""
    records = read_records(folder / 'metrics.jsonl')
    names = [f'episode_return/{i}' for i in range(runs)] if runs > 1 else ['episode_return']
    steps = [r['step'] for r in records]
    returns = np.asarray([[float(r[n]) for n in names] for r in records]).reshape(len(records), runs)
    plot_learning_curve(folder / 'learning_curve.png', steps, returns, title=settings.env)


def save(settings: ControlSettings, run: Run, updates: int, state: ControlState) -> None:
    """Writes a checkpoint as of so many updates."""
    run.checkpoints.save(updates, gathered(settings, state))


def _keys(runs):
    return jnp.stack([jax.random.fold_in(jax.random.key(one['seed']), _EVALUATION) for one in runs])
