"""Direct preference optimisation on comparisons or rankings, with human labels or a preference model's.

    python experiments/dpo.py --task=reviews --init_from=runs/sft --out=runs/dpo
    python experiments/dpo.py --task=reviews --init_from=runs/sft --loss=plackett_luce
    python experiments/dpo.py --data=pairs.jsonl --init_from=runs/sft --labels=preference_model --reward=runs/rm
    python experiments/dpo.py --task=reviews --init_from=runs/sft --loss=my_module:my_loss

Reference log-probabilities are computed once, before the first step, and kept; with --sync_reference=N the policy
becomes the reference every N steps (arXiv 2404.09656), and is scored in the step. Leaves out formulas: --loss names one
of rlax_ft.losses.preference, or a function `f(pair, *, beta) -> float[B]` of your own.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.data.branches import share_prompts
from rlax_ft.data.packing import pack_pairs
from rlax_ft.data.records import record_texts
from rlax_ft.data.rows import fitting, preference_rows, ranking_rows
from rlax_ft.errors import InputError
from rlax_ft.evaluate.win_rate import accuracy_interval
from rlax_ft.harness.comparisons import check_packing, comparisons, flatten, pair_batches
from rlax_ft.harness.evaluator import Evaluator
from rlax_ft.harness.learner import make_learner
from rlax_ft.harness.loading import load_loss
from rlax_ft.harness.reference import referred, with_reference
from rlax_ft.harness.run import open_metrics, open_run
from rlax_ft.harness.settings import FeedbackSettings, flag, run_script
from rlax_ft.harness.starting_model import announce_model, make_codec, model_folder, starting_model, task_of
from rlax_ft.harness.step import placement, resume, train_setup, within_mesh
from rlax_ft.models.scoring import candidate_logps
from rlax_ft.objectives.packed import packed_preference_objective
from rlax_ft.objectives.preference import preference_objective, ranking_objective
from rlax_ft.rewards.learned import load_reward_model
from rlax_ft.rewards.rules import rule_scores
from rlax_ft.sampling.text import map_rows
from rlax_ft.training.guard import ChangeGuard
from rlax_ft.training.step import init_state


@dataclasses.dataclass(frozen=True)
class DPOSettings(FeedbackSettings):
    """Flags of dpo.py."""

    loss: str = flag('dpo', 'dpo, ipo, simpo, ... or MODULE:FUNCTION; plackett_luce learns from whole rankings.')
    loss_args: str = flag('', 'Further hyperparameters of the loss, such as label_smoothing=0.1,gamma=0.5.')
    beta: float = flag(0.4, 'Weight of the KL to the reference in the objective that the loss stands for.')
    labels: str = flag(
        'human',
        'human: as judged. preference_model: the soft label sigma(r(a) - r(b)) of --reward. gold: of the task.',
        ('human', 'preference_model', 'gold'),
    )
    reward: str = flag('', 'Run folder of the reward model that gives --labels=preference_model.')
    sync_reference: int = flag(0, 'Steps after which the policy becomes the reference (TR-DPO); 0 keeps the first one.')
    max_steps: int = flag(60, 'Number of training steps.')
    batch_size: int = flag(256, 'Pairs (or rankings) in a step, over all devices together.')
    learning_rate: float = flag(4.5e-4, 'Peak learning rate of AdamW.')
    warmup_steps: int = flag(10, 'Steps over which the learning rate rises to its peak.')


def train(settings: DPOSettings) -> dict:
    """Runs the stage, or goes on with it; returns its summary."""
    run = open_run(settings, 'dpo')
    if run.summary:
        return run.summary
    rankings, held_out = comparisons(settings, run)
    codec = make_codec(settings, run, lambda: record_texts(rankings))
    rankings, held_out = fitting(codec, rankings), fitting(codec, held_out)
    learner = make_learner(settings, *starting_model(settings, codec))
    announce_model(run, learner.config, codec)
    apply = learner.apply
    task = task_of(settings)
    evaluator = Evaluator(task, codec, apply, learner.reference) if task else None
    score = jax.jit(lambda params, candidates: candidate_logps(apply, {'params': params}, candidates))
    score = within_mesh(settings, score)
    place = placement(settings)
    reference = lambda candidates: score(learner.reference, place(candidates))  # noqa: E731
    refer = lambda rows: with_reference(run, reference, learner.reference, rows, settings.batch_size)  # noqa: E731
    by_rank = settings.loss == 'plackett_luce'
    check_packing(settings)
    if settings.sync_reference and settings.packing:
        raise InputError('--sync_reference: scores whole rows in every step, which --packing has not; leave one out')
    if by_rank:
        objective = ranking_objective(apply, beta=settings.beta)
        rows = refer(share_prompts(ranking_rows(codec, rankings)))
    else:
        loss = load_loss(settings, settings.loss, 'rlax_ft.losses.preference', settings.loss_args, beta=settings.beta)
        rows = labelled_rows(settings, task, codec, rankings)
        if settings.packing:
            rows, objective = pack_pairs(refer(rows), codec.max_length), packed_preference_objective
        else:
            rows, objective = refer(share_prompts(rows)), preference_objective
        objective = objective(apply, loss, beta=settings.beta)
    eval_rows = refer(share_prompts(preference_rows(codec, flatten(held_out))))
    optimizer, step = train_setup(settings, objective, learner.base)
    state = init_state(learner.start(), optimizer, jax.random.key(settings.seed))
    # What a checkpoint holds: a reference that moves belongs to it, and starts as the policy does.
    moving = settings.sync_reference > 0
    saved, start = resume(settings, run, (state, learner.start()) if moving else state)
    state, anchor = saved if moving else (saved, None)
    guard = ChangeGuard(state.params, start)

    show = ('loss', 'rewards/accuracies', 'rewards/margins', 'eval/gold', 'padding_share')
    with open_metrics(settings, run, learner.config, start, title='dpo', show=show) as writer:
        for i, batch, padding in pair_batches(settings, rows, range(start, settings.max_steps)):
            if moving:
                batch = referred(batch[0], score(learner.whole(anchor), batch[0].candidates)), batch[1]
            state, metrics = step(state, batch)
            metrics |= padding
            if moving and (i + 1) % settings.sync_reference == 0:
                anchor = jax.tree.map(jnp.copy, state.params)
            if evaluator and settings.eval_every and (i + 1) % settings.eval_every == 0:
                metrics |= evaluator.metrics(learner.whole(state.params), seed=settings.seed)
            writer.write(i + 1, metrics, batch)
            guard.check(i + 1, state.params)
            if (i + 1) % settings.save_every == 0 or i + 1 == settings.max_steps:
                run.checkpoints.save(i + 1, (state, anchor) if moving else state)

    learner.export(run, state.params, codec)
    trained = learner.whole(state.params)
    summary = {
        'steps': settings.max_steps,
        **held_out_accuracy(lambda rows: score(trained, place(rows)), eval_rows, settings.batch_size),
    }
    if evaluator:
        summary |= evaluator.finish(trained, run.folder / 'samples.jsonl', seed=settings.seed)
    return run.finish(summary)


def labelled_rows(settings: DPOSettings, task, codec, rankings):
    """All comparisons as rows, labelled as --labels says."""
    pairs = flatten(rankings)
    rows = preference_rows(codec, pairs)
    if settings.labels == 'human':
        return rows
    if settings.labels == 'gold':
        if task is None:
            raise InputError('--labels=gold: only an embedded --task has a gold reward')
        rule = task.reward
        scores = [
            rule_scores(rule, [p['prompt'] for p in pairs], [p[s] for p in pairs]) for s in ('chosen', 'rejected')
        ]
    else:
        if not settings.reward:
            raise InputError('--labels=preference_model: give the run folder of the reward model as --reward')
        model, _ = load_reward_model(model_folder(settings.reward, 'reward'))
        candidates = share_prompts(rows).candidates
        scores = map_rows(jax.jit(model.candidates), candidates, batch_size=settings.batch_size).T
    return rows.replace(label=np.asarray(jax.nn.sigmoid(scores[0] - scores[1]), np.float32))


def held_out_accuracy(policy, rows, batch_size) -> dict[str, float]:
    """How often the policy, against the reference, moved towards the chosen response of held-out pairs."""
    chosen, rejected = map_rows(policy, rows.candidates, batch_size=batch_size).T
    moved = (chosen - rows.ref_logps[:, 0]) - (rejected - rows.ref_logps[:, 1])
    right = ((1 + np.sign(moved)) / 2).sum()
    accuracy, low, high = accuracy_interval(right, len(moved))
    return {
        'eval_pairs': len(moved),
        'eval_accuracy': accuracy,
        'eval_accuracy_low': low,
        'eval_accuracy_high': high,
    }


if __name__ == '__main__':
    run_script(DPOSettings, train)
