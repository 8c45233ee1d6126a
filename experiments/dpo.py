"""Direct preference optimisation on pairs or rankings, with human labels or a preference model's.

    python experiments/dpo.py --data=pairs.jsonl --model=FOLDER_OR_ID
    python experiments/dpo.py --data=pairs.jsonl --model=FOLDER_OR_ID --loss=simpo --loss_args=gamma=0.5 --beta=2
    python experiments/dpo.py --data=pairs.jsonl --init_from=runs/sft --labels=preference_model --reward=runs/rm
    python experiments/dpo.py --data=rankings.jsonl --init_from=runs/sft --loss=plackett_luce
    python experiments/dpo.py --data=pairs.jsonl --model=FOLDER --loss=my_module:my_loss

Reference log-probabilities are computed once, before the first step, and kept; with --sync_reference=N the policy
becomes the reference every N steps (arXiv 2404.09656), and is scored in the step. Leaves out formulas: --loss names one
of rlax_ft.losses.preference, or a function `f(pair, *, beta) -> float[B]` of your own.
"""

import dataclasses
import inspect
from functools import partial

import jax
import jax.numpy as jnp

from rlax_ft.data.packing import pack_pairs
from rlax_ft.data.records import record_texts
from rlax_ft.data.rows import fitting, preference_rows, ranking_rows, share_prompts
from rlax_ft.errors import InputError
from rlax_ft.evaluate.win_rate import length_baseline
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.comparisons import (
    check_alone,
    check_fields,
    comparison_batches,
    comparisons,
    referred,
    with_reference,
)
from rlax_ft.harness.evaluator import make_evaluator
from rlax_ft.harness.labels import pair_lengths, preference_accuracy, soft_labels
from rlax_ft.harness.learner import make_learner
from rlax_ft.harness.loading import check_pair_loss, load_loss, reads_whole_batch
from rlax_ft.harness.run import open_metrics, open_run
from rlax_ft.harness.settings import EvalSettings, FeedbackSettings, ReferenceSettings, flag
from rlax_ft.harness.starting_model import announce_model, make_codec, model_folder, starting_model, task_of
from rlax_ft.harness.step import compile_training, placement, resume, with_steps, within_mesh
from rlax_ft.models.scoring import candidate_logps
from rlax_ft.objectives.packed import packed_preference_objective
from rlax_ft.objectives.preference import preference_objective, ranking_objective
from rlax_ft.training.step import init_state


@dataclasses.dataclass(frozen=True)
class DPOSettings(ReferenceSettings, EvalSettings, FeedbackSettings):
    """Flags of dpo.py."""

    loss: str = flag('dpo', 'dpo, ipo, simpo, ... or MODULE:FUNCTION; plackett_luce learns from whole rankings.')
    loss_args: str = flag('', 'Further hyperparameters of the loss, such as label_smoothing=0.1,gamma=0.5.')
    beta: float = flag(0.1, 'Weight of the KL to the reference in the objective that the loss stands for.', above=0)
    nll_coef: float = flag(
        -1.0,
        "Weight of the chosen answer's negative log-likelihood a token; -1: the paper's (1 for ORPO and CPO).",
        at_least=-1,
    )
    wpo: bool = flag(False, 'Weigh each pair by how likely the policy is to write its answers (WPO).')
    labels: str = flag(
        'human',
        "human: as judged, or the record's own label. agreement: the share of annotators who agree. preference_model: "
        'sigma(r(a) - r(b)) of --reward, a soft label. gold: the same of the task.',
        ('human', 'agreement', 'preference_model', 'gold'),
    )
    reward: str = flag('', 'Run folder of the reward model that gives --labels=preference_model.')
    sync_reference: int = flag(
        0, 'Steps after which the policy becomes the reference (TR-DPO); 0 keeps the first one.', at_least=0
    )
    learning_rate: float = flag(1e-6, 'Peak learning rate.', above=0)


def train(settings: DPOSettings) -> dict:
    """Runs the stage, or resumes it; returns its summary."""
    by_rank = check(settings)
    run = open_run(settings, 'dpo')
    if run.summary:
        return run.summary
    records, held_out = comparisons(settings, run, rankings=by_rank)
    codec = make_codec(settings, run, lambda: record_texts(records))
    records, held_out = fitting(codec, records), fitting(codec, held_out)
    learner = make_learner(settings, *starting_model(settings, codec))
    announce_model(run, learner.config, codec)
    apply, task = learner.apply, task_of(settings)
    evaluator = make_evaluator(settings, run, codec, learner, task, held_out)
    score = jax.jit(lambda params, candidates: candidate_logps(apply, {'params': params}, candidates))
    score, place = within_mesh(settings, score), placement(settings)
    reference = lambda params, candidates: score(params, place(candidates))  # noqa: E731
    how = dict(batch_size=settings.batch_size, how=repr(learner.config))
    refer = partial(with_reference, run, reference, learner.reference, **how)
    rows, objective, lengths = (ranked if by_rank else paired)(settings, codec, apply, task, records, refer)
    eval_plain = (ranking_rows if by_rank else preference_rows)(codec, held_out, ragged=True)
    eval_rows = refer(share_prompts(eval_plain))

    settings = with_steps(settings, len(jax.tree.leaves(rows)[0]))
    optimizer, step = compile_training(settings, objective, learner.base)
    state = init_state(learner.start(), optimizer, jax.random.key(settings.seed))
    # What a checkpoint holds: a reference that moves belongs to it, and starts as the policy does.
    moving, last = settings.sync_reference > 0, settings.max_steps
    state, start = resume(settings, run, (state, learner.start()) if moving else state)
    state, anchor = (state[0], learner.rest(state[1])) if moving else (state, None)

    show = ('loss', 'rewards/accuracies', 'rewards/margins', 'eval/gold', 'padding_share')
    with open_metrics(settings, run, learner.config, start, title='dpo', show=show) as writer:
        for i, batch, padding in comparison_batches(settings, rows, range(start, last)):
            if moving:
                batch = referred(batch[0], score(learner.whole(learner.ready(anchor)), batch[0].candidates)), batch[1]
            state, metrics = step(state, batch)
            metrics |= padding
            if moving and (i + 1) % settings.sync_reference == 0:
                anchor = learner.rest(jax.tree.map(jnp.copy, state.params))
            if settings.eval_every and (i + 1) % settings.eval_every == 0:
                metrics |= evaluator.metrics(learner.whole(state.params), i + 1)
            writer.write(i + 1, metrics, batch)
            run.save_if_due(settings, i + 1, last, writer, lambda: (state, anchor) if moving else state)  # noqa: B023

    learner.export(run, state.params, codec)
    trained = learner.whole(state.params)
    moved = lambda rows: score(trained, place(rows))  # noqa: E731
    accuracy = preference_accuracy(moved, eval_rows, settings.batch_size, keep=run.folder / 'eval_margins.npy')
    accuracy['length_baseline_accuracy'] = length_baseline(*lengths, *pair_lengths(eval_plain))
    return run.finish({'steps': last, **accuracy, **evaluator.finish(trained, last)})


def check(settings: DPOSettings) -> bool:
    """Whether the loss is on whole rankings; refuses flags that have no effect together.

    Raises:
      InputError: naming the flag.
    """
    by_rank = settings.loss == 'plackett_luce'
    if by_rank:
        for name in ('loss_args', 'labels', 'packing', 'nll_coef', 'wpo'):
            if getattr(settings, name) != getattr(DPOSettings, name):
                raise InputError(
                    f'--{name}={getattr(settings, name)}: --loss=plackett_luce has no use for it; leave it out'
                )
    if settings.sync_reference and settings.packing:
        raise InputError('--sync_reference: scores whole rows in every step, which --packing has not; leave one out')
    if settings.wpo and settings.packing:
        raise InputError('--wpo: weighs whole rows, which --packing has not; leave one out')
    if settings.reward and settings.labels != 'preference_model':
        raise InputError(
            f'--reward={settings.reward}: is read by --labels=preference_model only; give that, or leave it out'
        )
    if settings.reward:
        model_folder(settings.reward, 'reward')
    return by_rank


def ranked(settings, codec, apply, task, rankings, refer):
    """(rows, objective, lengths of better and worse answers) of whole rankings."""
    check_fields(rankings, {'weight'}, settings.loss)
    plain = ranking_rows(codec, rankings, ragged=True)
    return refer(share_prompts(plain)), ranking_objective(apply, beta=settings.beta), pair_lengths(plain)


def paired(settings, codec, apply, task, pairs, refer):
    """The same of pairs, labelled as --labels says; without a reference where the loss reads none."""
    loss = load_loss(settings, settings.loss, 'rlax_ft.losses.preference', settings.loss_args, beta=settings.beta)
    reads = check_pair_loss(loss, settings.loss)
    if reads_whole_batch(loss):
        check_alone(settings, pairs)
        if settings.wpo:
            raise InputError(f'--wpo: --loss={settings.loss} sorts the pairs of a batch; a weight belongs to one pair')
    offset = {'margin'} if 'offset' in inspect.signature(loss).parameters else set()
    check_fields(pairs, {'weight', *offset, *({'label'} if settings.labels == 'human' else ())}, settings.loss)
    rows = soft_labels(settings, task, codec, pairs, preference_rows(codec, pairs, ragged=True))
    if not reads & {'ref_chosen', 'ref_rejected'}:
        refer = lambda rows: rows  # noqa: E731
    given = getattr(loss.func, 'nll_coef', 0.0) if settings.nll_coef < 0 else settings.nll_coef
    how = dict(beta=settings.beta, nll_coef=given)
    if settings.packing:
        packed = pack_pairs(refer(rows), codec.max_length)
        return packed, packed_preference_objective(apply, loss, **how), pair_lengths(rows)
    objective = preference_objective(apply, loss, wpo=settings.wpo, **how)
    return refer(share_prompts(rows)), objective, pair_lengths(rows)


if __name__ == '__main__':
    run_script(DPOSettings, train)
