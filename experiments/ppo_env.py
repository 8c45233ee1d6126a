"""PPO for environments: collect, assess, estimate, and take several epochs of clipped minibatch steps.

    python experiments/ppo_env.py --env=CartPole-v1 --num_seeds=8
    python experiments/ppo_env.py --flagfile=experiments/recipes/ppo_pendulum.flags
    python experiments/ppo_env.py --env=LunarLander-v3 --num_envs=16     # Gymnasium's, stepped on the host
    python experiments/ppo_env.py --env=my_env:MyBox-v0       # your own, registered with Gymnasium by my_env.py
    python experiments/ppo_env.py --env=my_env:make           # a function that returns a gymnasium.Env or Environment

The loss is that of language, unchanged: a row is one decision. All seeds train in one program, chunks of updates at a
time, the state donated, and metrics come back one chunk late. The details of PPO's code (iclr-blog-track.github.io,
"The 37 implementation details", 2022), by their order there; what is a switch names its flag, [on] or [off] by default:

 1 parallel environments [--num_envs=4]            15-20 Atari's frames (no-op start, skip, lives, fire, warp,
 2 orthogonal init, biases 0 [on]                        sign of rewards, stack): not here; MinAtar needs none
 3 Adam's epsilon 1e-5 [on]                        21 one body for policy and value [--shared off]
 4 learning rate to 0 [--schedule=linear]          22 pixels in [0, 1]: uint8 is scaled [on]
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
"""

import itertools

from rlax_ft.envs.ppo import (
    assess,
    episode_metrics,
    estimate,
    log_ratios,
    make_batch,
    ppo_objective,
    track,
    update,
)
from rlax_ft.envs.rollout import split_key
from rlax_ft.envs.state import Hyper, PPOState
from rlax_ft.harness import (
    cpu_flags,  # noqa: F401  Before jax: what a CPU needs.
    stopping,
)
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.env_run import Logbook, evaluate, finish, starting_state
from rlax_ft.harness.env_setup import (
    EnvSettings,
    agent_for,
    boundaries,
    check,
    hyper_of,
    layout_of,
    make_envs,
    optimizer_of,
    runs_of,
)
from rlax_ft.harness.loading import check_token_loss, load_loss
from rlax_ft.harness.run import open_run
from rlax_ft.ops.kl import adaptive_coef
from rlax_ft.training.metrics import MetricsWriter
from rlax_ft.training.step import make_train_step


def train(settings: EnvSettings) -> dict:
    """Runs PPO for all seeds together and returns what summary.json holds."""
    check(settings)
    layout, envs, runs = layout_of(settings), make_envs(settings), runs_of(settings)
    agent, hyper = agent_for(settings, envs), hyper_of(runs)
    program = envs.program(make_iteration(settings, agent), agent, layout, num_steps=settings.num_steps)
    run = open_run(settings, 'ppo_env')
    if run.summary:
        return run.summary
    state, start = starting_state(settings, run, envs, agent, runs, hyper)
    state = layout.place(state)

    logbook, per_update = Logbook(settings, runs, program), settings.steps_per_update
    total, show = settings.updates * per_update, ('episode_return', 'eval/return')
    with MetricsWriter(
        run.folder,
        start=start * per_update,
        total=total,
        title='ppo_env',
        show=show,
        report_to=settings.report_to,
        on_loop=stopping.looping,
        may_skip=settings.skip_bad_steps,
    ) as writer:
        for before, now in itertools.pairwise([start, *boundaries(settings, start)]):
            state, metrics = program(hyper, state, now - before)
            record = logbook.record(now - before, metrics)
            if settings.eval_every and now % settings.eval_every == 0:
                record |= logbook.evaluated(logbook.elsewhere(evaluate, settings, envs, agent, state, runs))
            writer.write(now * per_update, record)
            run.save_if_due(settings, now, settings.updates, writer, lambda: layout.gathered(state))  # noqa: B023
        rate = logbook.steps_per_second()
    return finish(settings, run, envs, agent, state, runs, rate, program)


def make_iteration(settings: EnvSettings, agent):
    """`iteration(hyper, state, collect) -> (state, metrics)`: one update of one run, on a rollout of its own."""
    axis_name = layout_of(settings).axis_name
    loss = load_loss(settings, settings.loss, 'rlax_ft.losses.policy_gradient', settings.loss_args)
    check_token_loss(loss, settings.loss)

    def iteration(hyper: Hyper, state: PPOState, collect):
        key, collect_key, update_key = split_key(state.train.key, axis_name=axis_name)
        state = state.replace(train=state.train.replace(key=key))

        # Collect: what N environments did in T steps, [T, N].
        actors, frames = collect(state, collect_key)

        # Track: the rollout enters the statistics after it was acted with the old ones; rewards are scaled.
        acted_with = state.observation_stats
        state, rewards = track(state.replace(actors=actors), frames, gamma=settings.gamma, axis_name=axis_name)

        def estimated(params):
            # Assess: log-probabilities and values, [T, N].
            transition = assess(agent, params, acted_with, actors, frames).replace(reward=rewards)
            # Estimate: advantages and targets, and from all of it rows [R, L].
            log_rhos = log_ratios(agent, params, frames, transition) if settings.estimator == 'vtrace' else None
            advantages, returns = estimate(
                transition, gamma=settings.gamma, lam=settings.lam, truncation=settings.truncation, log_rhos=log_rhos
            )
            return make_batch(frames, transition, advantages, returns, length=settings.row_length)

        batch = estimated(state.train.params)

        # Update: epochs of shuffled minibatches; V-trace estimates again before each epoch.
        objective = ppo_objective(
            agent,
            loss=loss,
            value_clip=settings.value_clip or None,
            value_coef=settings.value_coef,
            entropy_coef=hyper.entropy_coef,
            kl_coef=state.kl_coef if settings.beta else None,
            whiten=settings.normalize_advantages,
            axis_name=axis_name,
        )
        train, metrics = update(
            make_train_step(
                objective,
                optimizer_of(settings, hyper.learning_rate),
                axis_name=axis_name,
                skip_bad=settings.skip_bad_steps > 0,
            ),
            state.train,
            batch,
            update_key,
            epochs=settings.update_epochs,
            minibatches=settings.minibatches,
            renew=estimated if settings.estimator == 'vtrace' else None,
        )
        kl_coef = state.kl_coef
        if settings.target_kl:
            kl_coef = adaptive_coef(kl_coef, metrics['objective/kl'], target=settings.target_kl, horizon=1, n_steps=1)
            # Below this a coefficient that shrank for long would need as long to come back.
            kl_coef = kl_coef.clip(1e-3 * settings.beta)
        metrics |= episode_metrics(frames, batch, axis_name=axis_name)
        return state.replace(train=train, kl_coef=kl_coef), metrics

    return iteration


if __name__ == '__main__':
    run_script(EnvSettings, train)
