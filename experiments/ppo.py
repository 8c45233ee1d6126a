"""PPO on language: sample, score, estimate advantages, and take several clipped epochs on them.

    python experiments/ppo.py --data=prompts.jsonl --init_from=runs/sft --reward=runs/reward_model
    python experiments/ppo.py --data=problems.jsonl --model=FOLDER_OR_ID --reward=my_rewards.py:is_right
    python experiments/ppo.py --flagfile=experiments/recipes/sort_ppo.flags

A reward is a function of (records, completions), with every field of the data, or of (prompt, completion). The
checklist of details that PPO follows stands in rlax_ft/objectives/ppo.py. Leaves out formulas: --loss names one of
rlax_ft.losses.policy_gradient, or a function `f(logps, old_logps, advantages, mask) -> float[B, T]` of your own.
"""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.data.loader import whole_batch
from rlax_ft.data.records import plain_text
from rlax_ft.data.rows import prompt_rows
from rlax_ft.errors import InputError
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.evaluator import make_evaluator
from rlax_ft.harness.learner import make_learner
from rlax_ft.harness.loading import aggregation, check_token_loss, load_loss
from rlax_ft.harness.rewards import check_reward
from rlax_ft.harness.rollouts import RolloutSettings, TokenLossSettings, check_groups, make_collector, prompt_records
from rlax_ft.harness.run import open_metrics, open_run
from rlax_ft.harness.settings import EvalSettings, ReferenceSettings, Settings, flag
from rlax_ft.harness.starting_model import announce_model, make_codec, starting_model, task_of
from rlax_ft.harness.step import compile_training, resume, with_steps, within_mesh
from rlax_ft.objectives.ppo import estimate, mean_over_steps, minibatch, ppo_objective
from rlax_ft.ops.kl import adaptive_coef
from rlax_ft.training.step import init_state


@dataclasses.dataclass(frozen=True)
class PPOSettings(TokenLossSettings, RolloutSettings, ReferenceSettings, EvalSettings, Settings):
    """Flags of ppo.py."""

    beta: float = flag(0.05, 'Weight of the KL to the starting model, a penalty on every token.', at_least=0)
    target_kl: float = flag(
        0.0,
        'Adapt beta so that the KL of a completion, in nats, comes to this; 0 keeps beta fixed.',
        at_least=0,
        needs='beta',
    )
    kl_horizon: float = flag(10_000.0, 'Episodes over which beta adapts.', above=0, needs='target_kl')
    batch_size: int = flag(64, 'Completions sampled in an update, over all devices together.', at_least=1)
    update_epochs: int = flag(4, 'Passes over the samples of an update.', at_least=1)
    minibatches: int = flag(1, 'Minibatches in a pass; each is one optimiser step.', at_least=1)
    learning_rate: float = flag(3e-6, 'Peak learning rate.', above=0)
    gamma: float = flag(1.0, 'Discount per token.', at_least=0, at_most=1)
    lam: float = flag(0.95, 'Lambda of generalised advantage estimation.', at_least=0, at_most=1)
    value_coef: float = flag(0.1, 'Weight of the value loss.', at_least=0)
    value_clip: float = flag(0.2, 'How far a value may move from its old one; 0 does not clip.', at_least=0)
    entropy_coef: float = flag(0.0, 'Weight of the entropy bonus.', at_least=0)


def train(settings: PPOSettings) -> dict:
    """Runs the stage, or resumes it; returns its summary."""
    check(settings)
    run = open_run(settings, 'ppo')
    if run.summary:
        return run.summary
    task = task_of(settings)
    records, held_out = prompt_records(settings, task)
    codec = make_codec(settings, run, lambda: [plain_text(record['prompt']) for record in records])
    settings = with_steps(settings, len(records) * settings.group_size)
    learner = make_learner(settings, *starting_model(settings, codec))
    announce_model(run, learner.config, codec)
    apply, value_apply, ref_params = learner.apply, learner.scalar_apply, learner.reference
    collect, score = make_collector(settings, task, codec, learner.apply)
    rewarded = lambda records, texts, _, rows: score(rows, records, lambda: texts)[0]  # noqa: E731
    measures = {} if settings.reward == 'gold' else {'reward': rewarded}
    evaluator = make_evaluator(settings, run, codec, learner, task, held_out, measures)
    how = dict(temperature=settings.temperature, gamma=settings.gamma, lam=settings.lam)
    estimator = within_mesh(settings, jax.jit(partial(estimate, apply, value_apply, **how)))
    loss = load_loss(settings, settings.loss, 'rlax_ft.losses.policy_gradient', settings.loss_args)
    check_token_loss(loss, settings.loss)
    mode = aggregation(settings, loss)
    pick = jax.jit(partial(minibatch, count=settings.minibatches, mode=mode, max_len=codec.max_new_tokens))
    adapt = jax.jit(
        partial(adaptive_coef, target=settings.target_kl, horizon=settings.kl_horizon, n_steps=settings.batch_size)
    )
    optimizer, step = make_update(settings, learner, loss, mode)
    params = {'policy': learner.start(), 'value': learner.start_value()}
    state = init_state(params, optimizer, jax.random.key(settings.seed))
    kl_coef = jnp.asarray(settings.beta, jnp.float32)
    (state, kl_coef), start = resume(settings, run, (state, kl_coef))
    rows = prompt_rows(codec, [record['prompt'] for record in records]), np.arange(len(records))
    batch_of = partial(whole_batch, rows, batch_size=settings.batch_size // settings.group_size, seed=settings.seed)

    last, show = settings.max_steps, ('objective/scores', 'objective/kl', 'eval/gold', 'eval/kl')
    # Sampling and the reference are one pass each; values and every epoch's update are two models'.
    passes = 4 + 6 * settings.update_epochs
    with open_metrics(settings, run, learner.config, start, title='ppo', show=show, passes=passes) as writer:
        for i in range(start, last):
            asked, index = batch_of(i)
            key, shuffle_key = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), i))
            # Collect.
            whole = learner.whole(state.params)
            batch = collect(whole['policy'], asked.tokens, asked.segment_ids > 0, [records[j] for j in index], key)
            # Estimate.
            given = (batch.tokens, batch.rollout.logps, batch.scores)
            data, metrics = estimator(whole, learner.ready(ref_params), *given, kl_coef)
            # Update.
            steps = []
            for epoch, part in itertools.product(range(settings.update_epochs), range(settings.minibatches)):
                state, step_metrics = step(state, pick(data, shuffle_key, epoch, part))
                steps.append(step_metrics)
            if settings.target_kl:
                kl_coef = adapt(kl_coef, metrics['objective/kl'])
            metrics |= {**batch.metrics(), **mean_over_steps(steps)}
            if settings.eval_every and (i + 1) % settings.eval_every == 0:
                metrics |= evaluator.metrics(learner.whole(state.params['policy']), i + 1)
            writer.write(i + 1, metrics, batch.tokens)
            run.save_if_due(settings, i + 1, last, writer, lambda: (state, kl_coef))  # noqa: B023

    learner.export(run, state.params['policy'], codec)
    summary = {'steps': last, 'kl_coef': float(kl_coef)}
    return run.finish(summary | evaluator.finish(learner.whole(state.params['policy']), last))


def check(settings: PPOSettings) -> None:
    """Refuses what the flags alone show to be wrong.

    Raises:
      InputError: a batch that does not divide into groups and minibatches, or a policy with dropout.
    """
    if settings.lora_dropout:
        raise InputError(
            f'--lora_dropout={settings.lora_dropout}: the ratio of PPO needs a policy without dropout; give 0'
        )
    check_groups(settings)
    check_reward(settings.reward)


def make_update(settings: PPOSettings, learner, loss, mode: str):
    """(optimiser, compiled step on a minibatch)."""
    objective = ppo_objective(
        learner.apply,
        learner.scalar_apply,
        loss=loss,
        mode=mode,
        value_clip=settings.value_clip or None,
        value_coef=settings.value_coef,
        entropy_coef=settings.entropy_coef,
        temperature=settings.temperature,
    )
    updates = settings.max_steps * settings.update_epochs * settings.minibatches
    return compile_training(settings, objective, learner.base, max_updates=updates, eps=1e-5)


if __name__ == '__main__':
    run_script(PPOSettings, train)
