"""PPO for environments: collect, assess, estimate, and take several epochs of clipped minibatch steps.

    python experiments/ppo_control.py --env=CartPole-v1 --num_seeds=8
    python experiments/ppo_control.py --flagfile=experiments/recipes/ppo_pendulum.flags
    python experiments/ppo_control.py --env=LunarLander-v3 --num_envs=16     # Gymnasium's, stepped on the host
    python experiments/ppo_control.py --env=my_module:my_environment

The loss is that of language, unchanged: a row is one decision. All seeds train in one program, chunks of updates at a
time, the state donated, and metrics come back one chunk late. Leaves out formulas.
"""

import jax
import jax.numpy as jnp
from control_setup import (
    ControlSettings,
    Hyper,
    Program,
    agent_for,
    as_list,
    boundaries,
    check,
    compile_options,
    gathered,
    hyper_of,
    log_record,
    make_env,
    place,
    runs_of,
)
from run import load_loss, open_run
from settings import run_script

from rlax_ft.errors import InputError
from rlax_ft.evaluate.episodes import draw_episode, play_episodes, plot_learning_curve
from rlax_ft.parallel.compile import PMAP_AXIS
from rlax_ft.training.control import (
    ControlState,
    assess,
    collect,
    control_objective,
    episode_metrics,
    estimate,
    init_control,
    make_batch,
    split_key,
    track,
    update,
)
from rlax_ft.training.metrics import MetricsWriter, read_records
from rlax_ft.training.optimizer import make_optimizer
from rlax_ft.training.step import make_train_step


def optimizer_of(settings: ControlSettings, learning_rate):
    return make_optimizer(
        learning_rate,
        max_steps=settings.updates * settings.epochs * settings.minibatches,
        schedule=settings.schedule,
        clip_norm=settings.clip_norm,
        eps=1e-5,
    )


def make_learner(settings: ControlSettings, agent):
    """`learn(hyper, state, actors, frames, key) -> (state, metrics)`: all of PPO after the rollout, for one run."""
    axis_name = PMAP_AXIS if settings.backend == 'pmap' else None
    loss = load_loss(settings, settings.loss, 'rlax_ft.losses.policy_gradient', settings.loss_args)

    def learn(hyper: Hyper, state: ControlState, actors, frames, key):
        acted_with = state.observation_stats
        state, rewards = track(state.replace(actors=actors), frames, gamma=settings.gamma, axis_name=axis_name)
        objective = control_objective(
            agent,
            loss=loss,
            value_clip=settings.value_clip or None,
            value_coef=settings.value_coef,
            entropy_coef=hyper.entropy_coef,
            whiten=settings.normalize_advantages,
            axis_name=axis_name,
        )
        step = make_train_step(objective, optimizer_of(settings, hyper.learning_rate), axis_name=axis_name)

        def batch_of(params):
            transition = assess(agent, params, acted_with, state.actors, frames).replace(reward=rewards)
            advantages, returns = estimate(
                transition, gamma=settings.gamma, lam=settings.lam, truncation=settings.truncation
            )
            batch = make_batch(frames, transition, advantages, returns, length=settings.row_length)
            return batch, episode_metrics(frames, transition, returns, axis_name=axis_name)

        batch, episodes = batch_of(state.train.params)
        rows = batch.logps.shape[0]
        train, metrics = update(
            step,
            state.train,
            key,
            lambda params: batch,
            rows,
            epochs=settings.epochs,
            minibatches=settings.minibatches,
        )
        return state.replace(train=train), {**metrics, **episodes}

    return learn


def make_iterations(settings: ControlSettings, env, agent):
    """`(hyper, state, count) -> (state, metrics)`: `count` updates of one run, each on a rollout of its own."""
    axis_name = PMAP_AXIS if settings.backend == 'pmap' else None
    learn = make_learner(settings, agent)

    def iteration(hyper, state):
        state, key = split_key(state, axis_name=axis_name)
        collect_key, shuffle_key = jax.random.split(key)
        actors, frames = collect(env, agent, state, collect_key, num_steps=settings.num_steps)
        return learn(hyper, state, actors, frames, shuffle_key)

    def iterations(hyper, state, count):
        shapes = jax.eval_shape(iteration, hyper, state)[1]
        totals = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def one(_, carry):
            state, totals = carry
            state, metrics = iteration(hyper, state)
            return state, jax.tree.map(jnp.add, totals, metrics)

        state, totals = jax.lax.fori_loop(0, count, one, (state, totals))
        means = jax.tree.map(lambda x: x / count, totals)
        return state, {**means, **{k: totals[k] / totals['episodes'] for k in ('episode_return', 'episode_length')}}

    return iterations
