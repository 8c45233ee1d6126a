"""Distillation: the policy learns to write as a teacher would, on its own samples or on given completions.

    python experiments/distill.py --data=prompts.jsonl --init_from=runs/sft --teacher=FOLDER_OR_ID
    python experiments/distill.py --data=pairs.jsonl --init_from=runs/sft --teacher=FOLDER --on_policy_share=0.5
    python experiments/distill.py --data=mixed.jsonl --init_from=runs/sft --teacher=maths=runs/a,code=runs/b
    python experiments/distill.py --data=problems.jsonl --init_from=runs/sft --teacher=self \\
        --hint='{prompt} (A right answer: {answer})'

The loss compares whole distributions at each token of a completion, in chunks of the vocabulary (--jsd_beta=1, the
reverse KL, is on-policy distillation; with --on_policy_share below 1 it is GKD, arXiv 2306.13649), or the sampled
tokens alone (--divergence=sampled). With --hint the teacher reads more than the policy does; --teacher=self then learns
from itself (arXiv 2601.20802). Leaves out rewards.
"""

import dataclasses
from functools import partial

import jax

from rlax_ft.data.loader import whole_batch
from rlax_ft.data.records import plain_text, record_texts
from rlax_ft.data.rows import fitting, prompt_arrays, prompt_of, take_rows
from rlax_ft.errors import InputError
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.distillation import (
    by_domain,
    check_teachers,
    domain_schedule,
    given_completions,
    hinted_prompts,
    make_teachers,
    mixed,
)
from rlax_ft.harness.evaluator import make_evaluator
from rlax_ft.harness.learner import make_learner
from rlax_ft.harness.rollouts import prompt_records
from rlax_ft.harness.run import open_metrics, open_run
from rlax_ft.harness.settings import EvalSettings, ReferenceSettings, Settings, flag
from rlax_ft.harness.starting_model import announce_model, make_codec, starting_model, task_of
from rlax_ft.harness.step import compile_training, placement, resume, with_steps
from rlax_ft.objectives.distill import DistillBatch, distill_objective
from rlax_ft.sampling.text import make_sampler, trim_prompts
from rlax_ft.training.step import init_state


@dataclasses.dataclass(frozen=True)
class DistillSettings(ReferenceSettings, EvalSettings, Settings):
    """Flags of distill.py."""

    teacher: str = flag(
        '',
        'Folder, run folder or hub id of the teacher, of the same vocabulary; self: the policy, which then reads '
        '--hint; or several, DOMAIN=FOLDER,DOMAIN=FOLDER, each for the records of its domain.',
    )
    domain_field: str = flag('domain', 'The field with the domain of a record, where --teacher names several.')
    hint: str = flag(
        '',
        'What the teacher reads in place of the prompt, a text or a file with {prompt} and other fields of the record '
        'in braces; empty: the prompt itself.',
    )
    divergence: str = flag(
        'jsd',
        "jsd: of whole distributions (--jsd_beta). sampled: the policy gradient of the teacher's log-probability less "
        "the policy's at each sampled token.",
        ('jsd', 'sampled'),
    )
    jsd_beta: float = flag(
        1.0, 'Of --divergence=jsd: 1 is KL(policy || teacher), 0 is KL(teacher || policy).', at_least=0, at_most=1
    )
    on_policy_share: float = flag(
        1.0,
        "Share of a batch's completions that the policy samples; the others are --data's own.",
        at_least=0,
        at_most=1,
    )
    temperature: float = flag(1.0, 'Of sampling; policy and teacher divide their logits by it alike.', above=0)
    engine_rows: int = flag(
        0, 'Completions under way at a time, refilled as they end; 0: the whole batch at once.', at_least=0
    )
    prompts: int = flag(10_000, 'With --task: how many prompts to draw from it.', at_least=1, beside='data')
    learning_rate: float = flag(1e-5, 'Peak learning rate.', above=0)


def train(settings: DistillSettings) -> dict:
    """Runs the stage, or resumes it; returns its summary."""
    check(settings)
    own = round(settings.on_policy_share * settings.batch_size)  # Of a batch: what the policy samples.
    run = open_run(settings, 'distill')
    if run.summary:
        return run.summary
    task, given = task_of(settings), own < settings.batch_size
    records, held_out = prompt_records(settings, task, answered=given)
    texts = lambda: record_texts(records) if given else [plain_text(record['prompt']) for record in records]  # noqa: E731
    codec = make_codec(settings, run, texts)
    records = fitting(codec, records) if given else records
    settings = with_steps(settings, len(records))
    learner = make_learner(settings, *starting_model(settings, codec))
    announce_model(run, learner.config, codec)
    teachers, place = make_teachers(settings, codec, learner), placement(settings)
    evaluator = make_evaluator(settings, run, codec, learner, task, held_out)
    objective = distill_objective(
        learner.apply, divergence=settings.divergence, jsd_beta=settings.jsd_beta, temperature=settings.temperature
    )
    optimizer, step = compile_training(settings, objective, learner.base)
    state, start = resume(settings, run, init_state(learner.start(), optimizer, jax.random.key(settings.seed)))
    sample = make_sampler(learner.apply, codec, rows=settings.engine_rows or None, temperature=settings.temperature)
    rows = {'prompt': prompt_arrays(codec, [prompt_of(record) for record in records])}
    if given:
        rows['completion'] = given_completions(codec, records)
    if hints := hinted_prompts(settings, codec, teachers, records):
        rows['hinted'] = hints
    domains = by_domain(records, teachers, settings.domain_field)
    last = settings.max_steps
    schedule = domain_schedule({name: len(numbers) for name, numbers in domains.items()}, last, settings.seed)
    batch_of = partial(whole_batch, batch_size=settings.batch_size, seed=settings.seed)

    key = jax.random.key(settings.seed)
    # Sampling and the teacher are one pass each, an update three.
    with open_metrics(
        settings, run, learner.config, start, title='distill', show=('loss', 'eval/gold'), passes=5
    ) as writer:
        for i in range(start, last):
            domain, number = schedule[i]
            batch = take_rows(rows, batch_of(domains[domain], number))
            whole = learner.whole(state.params)
            # Collect: what the policy writes, and what the data has.
            rollout = sample(whole, *place(trim_prompts(*batch['prompt'])), jax.random.fold_in(key, i))
            if given:
                rollout = mixed(rollout, *place(batch['completion']), own)
            # Read: the teacher, behind its own prompt where there is a hint.
            prompts = place(trim_prompts(*batch['hinted'])) if hints else (rollout.prompts, rollout.prompt_mask)
            read_by_teacher = rollout.replace(prompts=prompts[0], prompt_mask=prompts[1])
            hidden, head = teachers[domain].read(whole, read_by_teacher)
            # Update.
            data = DistillBatch(rollout, hidden)
            state, metrics = step(state, (data, rollout.mask.sum()), head)
            metrics |= {'completions/mean_length': rollout.mask.sum(axis=1).mean()}
            if settings.eval_every and (i + 1) % settings.eval_every == 0:
                metrics |= evaluator.metrics(learner.whole(state.params), i + 1)
            writer.write(i + 1, metrics, data)
            run.save_if_due(settings, i + 1, last, writer, lambda: state)  # noqa: B023

    learner.export(run, state.params, codec)
    return run.finish({'steps': last} | evaluator.finish(learner.whole(state.params), last))


def check(settings: DistillSettings) -> None:
    """Refuses what the flags alone show to be wrong.

    Raises:
      InputError: flags that do not fit together.
    """
    if settings.divergence == 'sampled' and settings.on_policy_share < 1:
        raise InputError(
            f"--divergence=sampled: is right on the policy's own samples only; give --on_policy_share=1, not "
            f'{settings.on_policy_share:g}'
        )
    if settings.divergence == 'sampled' and settings.jsd_beta != DistillSettings.jsd_beta:
        raise InputError(f'--jsd_beta={settings.jsd_beta}: has no effect with --divergence=sampled; leave it out')
    check_teachers(settings)


if __name__ == '__main__':
    run_script(DistillSettings, train)
