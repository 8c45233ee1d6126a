"""PPO for environments: collect, assess, estimate, and take several epochs of clipped minibatch steps.

    python experiments/ppo_control.py --env=CartPole-v1 --num_seeds=8
    python experiments/ppo_control.py --flagfile=experiments/recipes/ppo_pendulum.flags
    python experiments/ppo_control.py --env=LunarLander-v3 --num_envs=16     # Gymnasium's, stepped on the host
    python experiments/ppo_control.py --env=my_module:my_environment

The loss is that of language, unchanged: a row is one decision. All seeds train in one program, chunks of updates at a
time, the state donated, and metrics come back one chunk late. The details of PPO's code (iclr-blog-track.github.io,
"The 37 implementation details", 2022), by their order there; what is a switch names its flag, [on] or [off] by default:

 1 parallel environments [--num_envs=4]            15-20 Atari's frames (no-op start, skip, lives, fire, warp,
 2 orthogonal init, biases 0 [on]                        sign of rewards, stack): not here; MinAtar needs none
 3 Adam's epsilon 1e-5 [on]                        21 one body for policy and value [--shared off]
 4 learning rate to 0 [--schedule=linear]          22 pixels in [0, 1]: MinAtar's are
 5 GAE, bootstrapped at the cut [--lam=0.95]       23 normal policies [on]
 6 shuffled minibatches, anew each epoch [on]      24 log deviation free of the state [on]
 7 advantages whitened [--normalize_advantages on] 25 action components independent [on]
 8 clipped surrogate [--loss=ppo_clip, 0.2]        26 bodies apart [on]
 9 clipped value loss [--value_clip=0.2]           27 actions clipped on the way out, kept as drawn [on]
10 one loss, entropy bonus [--entropy_coef=0.01]   28-29 observations normalised, clipped [off]
11 global gradient norm [--clip_norm=0.5]          30-31 rewards scaled, clipped [--scale_rewards off]
12 debug variables [on]                            32-36 recurrent: hidden state 0 at start and at each episode's
13 bodies shared or apart [--shared off]                 first step, rows of whole stretches, states rebuilt [--gru]
14 (Atari starts here)                             37 several discrete choices at once [on where the actions are]

Beyond them: truncation is no termination [--truncation=bootstrap], statistics move once per rollout.
Leaves out formulas.
"""

import itertools

import jax
import jax.numpy as jnp

from rlax_ft.envs.gymnasium import HostEnvironments
from rlax_ft.envs.loop import Logbook, evaluate, finish, save, starting_state
from rlax_ft.envs.ppo import (
    assess,
    collect,
    control_objective,
    episode_metrics,
    estimate,
    log_ratios,
    make_batch,
    mean_metrics,
    split_key,
    track,
    update,
)
from rlax_ft.envs.programs import HostProgram, Program
from rlax_ft.envs.setup import (
    ControlSettings,
    Hyper,
    agent_for,
    boundaries,
    check,
    hyper_of,
    make_env,
    optimizer_of,
    runs_of,
)
from rlax_ft.envs.state import ControlState
from rlax_ft.harness import cpu_flags  # noqa: F401  Before jax: what a CPU needs.
from rlax_ft.harness.loading import load_loss
from rlax_ft.harness.run import open_run
from rlax_ft.harness.settings import run_script
from rlax_ft.ops.kl import adaptive_coef
from rlax_ft.parallel.compile import PMAP_AXIS
from rlax_ft.training.metrics import MetricsWriter
from rlax_ft.training.step import make_train_step


def train(settings: ControlSettings) -> dict:
    """Runs PPO for all seeds together and returns what summary.json holds."""
    check(settings)
    env = make_env(settings)
    agent = agent_for(settings, env)
    run = open_run(settings, 'ppo_control')
    if run.summary:
        return run.summary
    runs = runs_of(settings)
    hyper = hyper_of(runs)
    state, start = starting_state(settings, run, env, agent, runs, hyper)
    if isinstance(env, HostEnvironments):
        program = HostProgram(settings, env, agent, make_learner(settings, agent))
    else:
        program = Program(settings, make_iterations(settings, env, agent))

    logbook, per_update = Logbook(settings, runs, program), settings.steps_per_update
    total, show = settings.updates * per_update, ('episode_return', 'eval/return')
    with MetricsWriter(run.folder, start=start * per_update, total=total, title='ppo_control', show=show) as writer:
        for before, now in itertools.pairwise([start, *boundaries(settings, start)]):
            state, metrics = program(hyper, state, jnp.asarray(now - before, jnp.int32))
            record = logbook.record(now - before, metrics)
            if settings.eval_every and now % settings.eval_every == 0:
                record['eval/return'] = logbook.elsewhere(evaluate, settings, env, agent, state, runs).mean()
            writer.write(now * per_update, record)
            if now % settings.save_every == 0 or now == settings.updates:
                save(settings, run, now, state)
        rate = logbook.steps_per_second()
    return finish(settings, run, env, agent, state, runs, rate, program)


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
        def one(_, carry):
            state, totals = carry
            state, metrics = iteration(hyper, state)
            return state, jax.tree.map(jnp.add, totals, metrics)

        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(iteration, hyper, state)[1])
        state, totals = jax.lax.fori_loop(0, count, one, (state, zeros))
        return state, mean_metrics(totals, count)

    return iterations


def make_learner(settings: ControlSettings, agent):
    """`learn(hyper, state, actors, frames, key) -> (state, metrics)`: all of PPO after the rollout, for one run."""
    axis_name = PMAP_AXIS if settings.backend == 'pmap' else None
    loss = load_loss(settings, settings.loss, 'rlax_ft.losses.policy_gradient', settings.loss_args)
    penalised = settings.beta > 0 or settings.target_kl > 0

    def learn(hyper: Hyper, state: ControlState, actors, frames, key):
        acted_with = state.observation_stats
        state, rewards = track(state.replace(actors=actors), frames, gamma=settings.gamma, axis_name=axis_name)

        # Estimate.
        def batch_of(params):
            transition = assess(agent, params, acted_with, actors, frames).replace(reward=rewards)
            log_rhos = log_ratios(agent, params, frames, transition) if settings.estimator == 'vtrace' else None
            advantages, returns = estimate(
                transition, gamma=settings.gamma, lam=settings.lam, truncation=settings.truncation, log_rhos=log_rhos
            )
            return make_batch(frames, transition, advantages, returns, length=settings.row_length)

        batch = batch_of(state.train.params)
        # Update.
        objective = control_objective(
            agent,
            loss=loss,
            value_clip=settings.value_clip or None,
            value_coef=settings.value_coef,
            entropy_coef=hyper.entropy_coef,
            kl_coef=state.kl_coef if penalised else None,
            whiten=settings.normalize_advantages,
            axis_name=axis_name,
        )
        train, metrics = update(
            make_train_step(objective, optimizer_of(settings, hyper.learning_rate), axis_name=axis_name),
            state.train,
            batch,
            key,
            epochs=settings.epochs,
            minibatches=settings.minibatches,
            renew=batch_of if settings.estimator == 'vtrace' else None,
        )
        kl_coef = state.kl_coef
        if settings.target_kl:
            kl_coef = adaptive_coef(
                kl_coef, metrics['objective/kl'], target=settings.target_kl, horizon=1.0, n_steps=1.0
            )
        metrics |= episode_metrics(frames, batch, axis_name=axis_name)
        return state.replace(train=train, kl_coef=kl_coef), metrics

    return learn


if __name__ == '__main__':
    run_script(ControlSettings, train)
