"""Learning from single judged answers: KTO, BCO, unpaired NCA and APO-zero.

    python experiments/kto.py --data=judged.jsonl --model=FOLDER_OR_ID
    python experiments/kto.py --data=judged.jsonl --init_from=runs/sft --desirable_weight=1.33
    python experiments/kto.py --data=pairs.jsonl --init_from=runs/sft --loss=bco
    python experiments/kto.py --data=judged.jsonl --model=FOLDER --loss=my_module:my_loss

A record is {"prompt", "completion", "label"}, true for a good answer; messages with a "label" and ShareGPT's "kto_tag"
are read, too. Comparisons and rankings are taken apart: an answer's label is then the share of others that it beats.
KTO's baseline, the KL to the reference, is estimated in every step from the batch's prompts with each other's answers.
Leaves out formulas: --loss names one of rlax_ft.losses.unpaired, or a function
`f(logps, ref_logps, desirable, kl, *, beta) -> float[B]` of your own (`shift` for `kl`: BCO's; neither: no baseline).
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from rlax_ft.data.judged import judged_answers, judged_rows
from rlax_ft.data.records import record_texts
from rlax_ft.data.rows import fitting, ranking_rows, share_prompts
from rlax_ft.errors import InputError
from rlax_ft.evaluate.win_rate import length_baseline
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.comparisons import check_fields, with_reference
from rlax_ft.harness.evaluator import make_evaluator
from rlax_ft.harness.judged import answers, judged_accuracy, judged_batches, unpaired_loss
from rlax_ft.harness.labels import pair_lengths, preference_accuracy
from rlax_ft.harness.learner import make_learner
from rlax_ft.harness.loading import load_loss
from rlax_ft.harness.run import open_metrics, open_run
from rlax_ft.harness.settings import ComparisonSettings, EvalSettings, ReferenceSettings, Settings, flag
from rlax_ft.harness.starting_model import announce_model, make_codec, starting_model, task_of
from rlax_ft.harness.step import compile_training, placement, resume, with_steps, within_mesh
from rlax_ft.models.scoring import candidate_logps
from rlax_ft.objectives.unpaired import kl_baseline, next_shift, unpaired_objective
from rlax_ft.training.step import init_state


@dataclasses.dataclass(frozen=True)
class KTOSettings(ReferenceSettings, EvalSettings, ComparisonSettings, Settings):
    """Flags of kto.py."""

    loss: str = flag('kto', 'kto, bco, nca_unpaired, apo_zero_unpaired or MODULE:FUNCTION.')
    loss_args: str = flag('', 'Further hyperparameters of the loss.')
    beta: float = flag(0.1, 'Weight of the KL to the reference in the objective that the loss stands for.', above=0)
    desirable_weight: float = flag(1.0, 'What the loss of a good answer is multiplied by.', at_least=0)
    undesirable_weight: float = flag(1.0, 'What the loss of a bad answer is multiplied by.', at_least=0)
    learning_rate: float = flag(1e-6, 'Peak learning rate.', above=0)


def train(settings: KTOSettings) -> dict:
    """Runs the stage, or resumes it; returns its summary."""
    loss, baseline = check(settings)
    run = open_run(settings, 'kto')
    if run.summary:
        return run.summary
    records, held_out = answers(settings, run)
    codec = make_codec(settings, run, lambda: record_texts(records))
    records, held_out = fitting(codec, records), fitting(codec, held_out)
    check_fields(records, {'label', 'weight'}, settings.loss)
    learner = make_learner(settings, *starting_model(settings, codec))
    announce_model(run, learner.config, codec)
    apply, task = learner.apply, task_of(settings)
    evaluator = make_evaluator(settings, run, codec, learner, task, held_out)
    score = jax.jit(lambda params, candidates: candidate_logps(apply, {'params': params}, candidates))
    score, place = within_mesh(settings, score), placement(settings)
    reference = lambda params, candidates: score(params, place(candidates))  # noqa: E731
    how = dict(batch_size=settings.batch_size, how=repr(learner.config))
    refer = partial(with_reference, run, reference, learner.reference, **how)
    rows = refer(judged_rows(codec, judged_answers(records), ragged=True))
    encode = ranking_rows if 'ranks' in held_out[0] else judged_rows
    eval_rows = refer(share_prompts(encode(codec, held_out, ragged=True)))

    weights = dict(desirable_weight=settings.desirable_weight, undesirable_weight=settings.undesirable_weight)
    objective = unpaired_objective(apply, loss, beta=settings.beta, **weights)
    settings = with_steps(settings, len(rows.label))
    optimizer, step = compile_training(settings, objective, learner.base)
    estimate_kl = within_mesh(settings, jax.jit(partial(kl_baseline, apply)))
    follow = jax.jit(next_shift)
    state = init_state(learner.start(), optimizer, jax.random.key(settings.seed))
    (state, means), start = resume(settings, run, (state, jnp.zeros(2)))

    last, show = settings.max_steps, ('loss', 'rewards/margins', 'kl', 'eval/gold', 'padding_share')
    # Beside the update, KTO reads the batch twice more for its baseline.
    passes = 5.0 if baseline == 'kl' else 3.0
    with open_metrics(settings, run, learner.config, start, title='kto', show=show, passes=passes) as writer:
        for i, (batch, counts), padding in judged_batches(settings, rows, range(start, last)):
            shift = means.mean()
            if baseline == 'kl':
                shift = estimate_kl(learner.whole(state.params), learner.ready(learner.reference), batch.candidates)
            state, metrics = step(state, (batch, counts, shift))
            means = follow(means, metrics, counts)
            metrics |= padding | ({baseline: shift} if baseline else {})
            if settings.eval_every and (i + 1) % settings.eval_every == 0:
                metrics |= evaluator.metrics(learner.whole(state.params), i + 1)
            writer.write(i + 1, metrics, batch)
            run.save_if_due(settings, i + 1, last, writer, lambda: (state, means))  # noqa: B023

    learner.export(run, state.params, codec)
    trained = learner.whole(state.params)
    moved = lambda candidates: score(trained, place(candidates))  # noqa: E731
    if 'ranks' in held_out[0]:
        measured = preference_accuracy(moved, eval_rows, settings.batch_size, keep=run.folder / 'eval_margins.npy')
        if 'ranks' in records[0]:
            lengths = (side for r in (records, held_out) for side in pair_lengths(ranking_rows(codec, r, ragged=True)))
            measured['length_baseline_accuracy'] = length_baseline(*lengths)
    else:
        measured = judged_accuracy(moved, eval_rows, rows, settings.batch_size)
    counted = {'train_answers': len(rows.label), 'good_share': float(rows.label.mean())}
    return run.finish({'steps': last, **counted, **measured, **evaluator.finish(trained, last)})


def check(settings: KTOSettings):
    """(loss with a baseline as its fourth argument, name of the baseline); refuses what the flags show to be wrong.

    Raises:
      InputError: naming the flag.
    """
    loss = load_loss(settings, settings.loss, 'rlax_ft.losses.unpaired', settings.loss_args, beta=settings.beta)
    loss, baseline = unpaired_loss(loss, settings.loss)
    if baseline == 'kl' and settings.batch_size < 2:
        raise InputError(
            f'--batch_size={settings.batch_size}: the baseline of --loss={settings.loss} pairs the prompts of a batch '
            "with each other's answers; give 2 or more"
        )
    if not settings.desirable_weight + settings.undesirable_weight:
        raise InputError('--desirable_weight=0 --undesirable_weight=0: nothing is learned; give one of them a weight')
    return loss, baseline


if __name__ == '__main__':
    run_script(KTOSettings, train)
