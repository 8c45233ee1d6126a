"""Around the loop of ppo_env.py: the state to start from, records, evaluation, and the end of a run."""

import logging
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.envs.agent import Agent
from rlax_ft.envs.curves import Curve, interquartile_mean, plot_learning_curve
from rlax_ft.envs.environment import Environments
from rlax_ft.envs.episodes import Played
from rlax_ft.envs.ppo import init_ppo
from rlax_ft.envs.state import Hyper, PPOState
from rlax_ft.errors import InputError
from rlax_ft.harness.env_setup import EnvSettings, layout_of, optimizer_of, points_of
from rlax_ft.harness.run import Run
from rlax_ft.parallel.hosts import on_first
from rlax_ft.parallel.placement import fetch
from rlax_ft.training.metrics import read_records

_EVALUATION = 0x0E7A1  # Folded into a seed's key: evaluation never sees training's random numbers.


def starting_state(
    settings: EnvSettings, run: Run, envs: Environments, agent: Agent, runs: list[dict], hyper: Hyper
) -> tuple[PPOState, int]:
    """(PPOState [runs, ...], updates already taken): from the newest checkpoint, or new."""
    state = first_state(settings, envs, agent, runs, hyper)
    if jax.process_count() > 1:
        state = layout_of(settings).place(state)
    state, done = run.checkpoints.newest(state)
    run.check_length(settings, done)
    return envs.begin(state, done), done


def first_state(settings: EnvSettings, envs: Environments, agent: Agent, runs: list[dict], hyper: Hyper) -> PPOState:
    """PPOState [runs, ...] before the first update."""

    def first(key, learning_rate):
        return init_ppo(
            agent,
            optimizer_of(settings, learning_rate),
            key,
            reset=envs.reset,
            num_envs=settings.num_envs,
            normalize_observations=settings.normalize_observations,
            scale_rewards=settings.scale_rewards,
            kl_coef=settings.beta,
        )

    keys = jnp.stack([jax.random.key(one['seed']) for one in runs])
    return jax.jit(jax.vmap(first))(keys, hyper.learning_rate)


class Logbook:
    """Turns metrics [runs] into records, watches them one record late, and keeps the time spent on updates."""

    def __init__(self, settings: EnvSettings, runs: list[dict], program):
        """Starts the clock; `program` is of `Environments.program`."""
        self._settings, self._runs, self._program = settings, runs, program
        self._started = time.perf_counter()
        self._elsewhere = 0.0
        self._pending = None
        self.updates = 0

    def record(self, count: int, metrics: dict) -> dict:
        """The record of `count` updates: means over runs, and each run's episode return under its own name.

        Returns are not averaged over the points of a grid.

        Raises:
          InputError: the environment gave a reward that is not finite, in the record before.
        """
        self.updates += count
        self._watch()
        # To one device: a mean over devices would be a collective, in which one waits for the other's updates.
        metrics = jax.device_put(metrics, jax.devices()[0]) if jax.process_count() == 1 else fetch(metrics)
        self._pending = metrics['rewards_not_finite']
        names = [n for n in metrics if not n.startswith('episode') and n != 'rewards_not_finite']
        record = {name: jnp.mean(metrics[name]) for name in names}
        if 'skipped' in record:  # Minibatch steps of all runs.
            steps = count * self._settings.update_epochs * self._settings.minibatches
            record['skipped'] = jnp.round(jnp.sum(metrics['skipped']) * steps)
        record |= self._by_run('episode_return', metrics['episode_return'])
        return record | self._by_run('episode_length', metrics['episode_length'], each=False)

    def evaluated(self, played: Played) -> dict:
        """What an evaluation adds to a record: the mean return, of each run too, and the episodes that did not end."""
        record = self._by_run('eval/return', jnp.asarray(played.returns.mean(axis=1)))
        return record | {'eval/unfinished': int(np.sum(~played.ended))}

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

    def _by_run(self, name, values, *, each=True):
        record = {name: jnp.nanmean(values)} if len(points_of(self._runs)) == 1 else {}
        if each and len(self._runs) > 1:
            record |= {f'{name}/{i}': values[i] for i in range(len(self._runs))}
        return record

    def _watch(self):
        if self._pending is not None and float(np.sum(jax.device_get(self._pending))) > 0:
            raise InputError(
                f'--env={self._settings.env}: gave a reward that is not finite within the first {self.updates} updates;'
                ' rewards must be numbers'
            )


def evaluate(settings: EnvSettings, envs: Environments, agent: Agent, state: PPOState, runs: list[dict]) -> Played:
    """Whole episodes [runs, episodes] with frozen statistics, apart from training."""
    return envs.play(
        agent,
        state.train.params,
        state.observation_stats,
        _keys(runs),
        episodes=settings.eval_episodes,
        greedy=settings.eval_mode == 'greedy',
        max_steps=settings.eval_steps,
    )


def finish(
    settings: EnvSettings, run: Run, envs: Environments, agent: Agent, state: PPOState, runs: list[dict], rate, program
) -> dict:
    """Evaluates, writes summary.json with a list entry for each run and for each point of a grid, and draws."""
    played = evaluate(settings, envs, agent, state, runs)
    unfinished = np.sum(~played.ended, axis=1)
    if unfinished.any():
        logging.warning(
            '%d of %d evaluation episodes had not ended after --eval_steps=%d steps; their returns so far are counted',
            unfinished.sum(),
            played.ended.size,
            settings.eval_steps,
        )
    returns = np.asarray(played.returns)
    means = returns.mean(axis=1)
    steps = settings.updates * settings.steps_per_update
    how = dict(title=settings.env, evaluated=f'{settings.eval_mode}, {settings.eval_episodes} episodes of each seed')
    drawn = lambda: plot_learning_curve(  # noqa: E731
        run.folder / 'learning_curve.png', curves(run.folder, runs, steps, means), **how
    )
    on_first(drawn, 'learning curve')
    summary = run.finish(
        {
            'env': settings.env,
            'total_steps': steps,
            **{name: [one[name] for one in runs] for name in runs[0]},
            'eval_return_mean': means.tolist(),
            'eval_return_std': returns.std(axis=1).tolist(),
            'eval_unfinished': unfinished.tolist(),
            'env_steps_per_second': [rate] * len(runs),
            'compile_seconds': [program.compile_seconds] * len(runs),
            **over_seeds(runs, means),
            'steps_per_second_of_all_runs': rate * len(runs),
        }
    )
    if settings.render:
        params, stats = jax.tree.map(lambda x: x[0], fetch((state.train.params, state.observation_stats)))
        on_first(lambda: envs.draw(agent, params, stats, _keys(runs)[0], run.folder / 'episode.gif'), 'episode')
    return summary


def over_seeds(runs: list[dict], means: np.ndarray) -> dict:
    """Numbers over the seeds of a setting: at the top where there is one setting, a list `grid` where there are more.

    Args:
      runs: of `runs_of`.
      means: float[runs], mean returns of the evaluation.
    """

    def numbers(part):
        return {
            'return_mean': float(part.mean()),
            'return_iqm': float(interquartile_mean(part)),
            'return_lowest_run': float(part.min()),
        }

    points = points_of(runs)
    if len(points) == 1:
        return numbers(means)
    return {
        'grid': [
            {'learning_rate': rate, 'entropy_coef': coef, **numbers(means[of])} for (rate, coef), of in points.items()
        ]
    }


def curves(folder: Path, runs: list[dict], steps: int, means: np.ndarray) -> list[Curve]:
    """What the run's metrics.jsonl holds of returns, by setting, with the evaluation after `steps` at the end."""
    records, points = read_records(folder / 'metrics.jsonl'), points_of(runs)
    evaluations = [r for r in records if 'eval/unfinished' in r and r['step'] < steps]
    many = {
        'learning rate': len({rate for rate, _ in points}) > 1,
        'entropy coefficient': len({coef for _, coef in points}) > 1,
    }

    def column(name, records, of):
        names = [f'{name}/{i}' for i in of] if len(runs) > 1 else [name]
        return np.asarray([[r[n] for n in names] for r in records], float).reshape(len(records), len(of))

    return [
        Curve(
            label=', '.join(f'{name} {value:g}' for (name, shown), value in zip(many.items(), point) if shown),
            steps=np.asarray([r['step'] for r in records]),
            returns=column('episode_return', records, of),
            eval_steps=np.asarray([r['step'] for r in evaluations] + [steps]),
            eval_returns=np.concatenate([column('eval/return', evaluations, of), means[of][None]]),
        )
        for point, of in points.items()
    ]


def _keys(runs):
    return jnp.stack([jax.random.fold_in(jax.random.key(one['seed']), _EVALUATION) for one in runs])
