"""GRPO and its kin on language: groups of completions, rewards, advantages without a critic, several updates on them.

    python experiments/grpo.py --data=problems.jsonl --model=FOLDER_OR_ID --reward=my_rewards.py:is_right
    python experiments/grpo.py --flagfile=experiments/recipes/grpo_trl_dapo.flags --data=... --reward=...
    python experiments/grpo.py --flagfile=experiments/recipes/grpo_sort.flags
    python experiments/grpo.py --env=calculator --init_from=runs/sft

A reward is a function of (records, completions), with every field of the data, or of (prompt, completion), a reward
model's run folder, or several with weights; a text environment (--env) gives its own. docs/grpo.md says which flags are
which algorithm. Leaves out formulas: --loss names one of rlax_ft.losses.policy_gradient, or a function
`f(logps, old_logps, advantages, mask) -> float[B, T]` of your own.
"""

import dataclasses
import itertools
from functools import partial

import jax

from rlax_ft.data.records import plain_text
from rlax_ft.errors import InputError
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.conversation_groups import (
    ConversationCollector,
    ConversationEvaluator,
    conversation_records,
    write_conversations,
)
from rlax_ft.harness.conversations import ConversationSettings, text_environment
from rlax_ft.harness.evaluator import make_evaluator
from rlax_ft.harness.group_report import Clock, write_rollouts
from rlax_ft.harness.group_setup import PolicySettings, check_policy, correction, make_credit, make_loss
from rlax_ft.harness.groups import GroupCollector, GroupSettings, check_collection
from rlax_ft.harness.learner import make_learner
from rlax_ft.harness.rewards import check_reward
from rlax_ft.harness.rollouts import check_groups, prompt_records
from rlax_ft.harness.run import open_metrics, open_run
from rlax_ft.harness.settings import EvalSettings, ReferenceSettings, Settings, flag
from rlax_ft.harness.starting_model import announce_model, make_codec, starting_model, task_of
from rlax_ft.harness.step import compile_training, resume, with_steps, within_mesh
from rlax_ft.harness.step_rewards import check_step_reward
from rlax_ft.objectives.policy import estimate, policy_objective
from rlax_ft.objectives.ppo import mean_over_steps, minibatch
from rlax_ft.training.step import init_state


@dataclasses.dataclass(frozen=True)
class GRPOSettings(PolicySettings, GroupSettings, ConversationSettings, ReferenceSettings, EvalSettings, Settings):
    """Flags of grpo.py."""

    batch_size: int = flag(64, 'Completions in an update, over all devices together.', at_least=1)
    update_epochs: int = flag(1, 'Passes over the samples of an update.', at_least=1)
    minibatches: int = flag(1, 'Minibatches in a pass; each is one optimiser step.', at_least=1)
    learning_rate: float = flag(1e-6, 'Peak learning rate.', above=0)
    sample_every: int = flag(
        10,
        'Steps between rollouts written to samples.jsonl, with advantages by token; 0: never.',
        at_least=0,
        may_change=True,
    )


def train(settings: GRPOSettings) -> dict:
    """Runs the stage, or resumes it; returns its summary."""
    check(settings)
    loss, how = make_loss(settings)
    run = open_run(settings, 'grpo')
    if run.summary:
        return run.summary
    task, env = task_of(settings), text_environment(settings.env) if settings.env else None
    records, held_out = conversation_records(settings, env) if env else prompt_records(settings, task)
    codec = make_codec(settings, run, list if env else lambda: [plain_text(record['prompt']) for record in records])
    settings = with_steps(settings, len(records) * settings.group_size)
    learner, clock = make_learner(settings, *starting_model(settings, codec)), Clock()
    announce_model(run, learner.config, codec)
    if env:
        collector = ConversationCollector(settings, env, codec, learner, records, clock)
        evaluator = ConversationEvaluator(settings, run, env, codec, learner, held_out)
    else:
        collector = GroupCollector(settings, task, codec, learner, records, clock)
        rewarded = lambda records, texts, _, rows: collector.score(rows, records, lambda: texts)[0]  # noqa: E731
        measures = {} if settings.reward == 'gold' else {'reward': rewarded}
        evaluator = make_evaluator(settings, run, codec, learner, task, held_out, measures)
    estimator = partial(
        estimate,
        learner.apply,
        credit=make_credit(settings, collector.score.weights),
        kl_kind=settings.kl_kind or 'k1',
        correction=correction(settings),
        temperature=settings.temperature,
    )
    estimator = within_mesh(settings, jax.jit(estimator))
    ref_params = learner.reference if settings.beta else None
    sizes = dict(count=settings.minibatches, mode=how['mode'], max_len=codec.max_new_tokens)
    pick = jax.jit(partial(minibatch, **sizes))
    objective = policy_objective(learner.apply, temperature=settings.temperature, loss=loss, **how)
    updates = settings.max_steps * settings.update_epochs * settings.minibatches
    optimizer, step = compile_training(settings, objective, learner.base, max_updates=updates)
    state = init_state(learner.start(), optimizer, jax.random.key(settings.seed))
    (state, collected), start = resume(settings, run, (state, collector.state(None)))
    pending = collector.restore(collected)

    last, show = settings.max_steps, ('reward', 'frac_reward_zero_std', 'eval/gold', 'eval/reward')
    # Sampling, the reference and the trainer's own log-probabilities are a pass each.
    passes = 1 + bool(settings.beta) + bool(settings.correction) + 3 * settings.update_epochs
    with open_metrics(settings, run, learner.config, start, title='grpo', show=show, passes=passes) as writer:
        for i in range(start, last):
            # Collect, and reward.
            whole = learner.whole(state.params)
            batch = collector.finish(pending or collector.start(whole, i), whole, i)
            pending = collector.start(whole, i) if settings.ahead else None
            with clock.on('update'):
                # Advantages.
                given = (batch.tokens, batch.logps, batch.scores, batch.parts, batch.greedy, batch.turns, batch.steps)
                data, metrics = estimator(whole, learner.ready(ref_params), *given)
                # Update.
                shuffle_key, steps = jax.random.fold_in(jax.random.key(settings.seed), i), []
                for epoch, part in itertools.product(range(settings.update_epochs), range(settings.minibatches)):
                    state, step_metrics = step(state, pick(data, shuffle_key, epoch, part))
                    steps.append(step_metrics)
                gap = steps[0]['sampling/sampling_logp_difference/mean']
                # Sampling ahead goes on meanwhile; otherwise nothing else could, and the clock waits.
                if not settings.ahead:
                    jax.block_until_ready(state.step)
            metrics |= mean_over_steps(steps) | {'sampling/sampling_logp_difference/mean': gap} | batch.metrics
            if settings.eval_every and (i + 1) % settings.eval_every == 0:
                metrics |= evaluator.metrics(learner.whole(state.params), i + 1)
            if settings.sample_every and (i + 1) % settings.sample_every == 0:
                samples = run.folder / 'samples.jsonl'
                if env:
                    write_conversations(samples, i + 1, batch.talks, len(batch.talks.messages))
                else:
                    write_rollouts(samples, i + 1, batch, data.advantages, data.ref, codec, records)
            writer.write(i + 1, metrics | clock.shares(), batch.tokens)
            if not settings.ahead:
                writer.flush()  # Nothing is under way: its speed is that of this step.
            run.save_if_due(settings, i + 1, last, writer, lambda: (state, collector.state(pending)))  # noqa: B023

    learner.export(run, state.params, codec)
    return run.finish({'steps': last} | evaluator.finish(learner.whole(state.params), last))


def check(settings: GRPOSettings) -> None:
    """Refuses what the flags alone show to be wrong.

    Raises:
      InputError: naming the flag.
    """
    check_policy(settings)
    check_collection(settings)
    check_groups(settings)
    if not settings.env:
        check_reward(settings.reward)
    check_step_reward(settings)
    if settings.offload_reference and settings.env and not settings.beta:
        raise InputError('--offload_reference: --env with --beta=0 has no reference; leave one out')


if __name__ == '__main__':
    run_script(GRPOSettings, train)
