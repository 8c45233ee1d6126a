"""Human feedback: completions of the model are sampled, compared, and written to a judgements file.

    python experiments/collect.py --task=reviews --init_from=runs/sft --out=runs/feedback

The annotator is simulated: it ranks by the task's gold reward with Bradley-Terry noise. What it says goes where a
person's labels would go. Leaves out learning from it (reward_model.py, dpo.py).
"""

import dataclasses

import jax
import numpy as np
from model_setup import make_codec, starting_model, task_of
from run import Run, open_run, placement
from settings import Settings, flag, run_script

from rlax_ft.data.batches import Codec
from rlax_ft.data.loader import local_rows, prefetch, split_rows, whole_batch
from rlax_ft.data.packing import count_examples, padding_share
from rlax_ft.data.records import ranking_pairs, read_rankings, write_records
from rlax_ft.errors import InputError
from rlax_ft.feedback.annotator import rank_completions
from rlax_ft.feedback.judgements import judgement
from rlax_ft.models.transformer import Transformer
from rlax_ft.sampling.text import make_sampler, sample_prompts


@dataclasses.dataclass(frozen=True)
class FeedbackSettings(Settings):
    """Flags of every script that learns from comparisons; with --task they are collected first."""

    comparisons: int = flag(1024, 'With --task: how many prompts to have judged.')
    candidates: int = flag(4, 'With --task: completions of each prompt that the annotator ranks.')
    packing: bool = flag(False, 'Several pairs in a row of full length; --batch_size then counts such rows.')
    annotator_noise: float = flag(1.0, 'With --task: temperature of the simulated annotator; 0 never errs.')


def collect(settings: FeedbackSettings) -> dict:
    """Runs the stage; returns its summary."""
    run = open_run(settings, 'feedback')
    if run.summary:
        return run.summary
    if not settings.init_from:
        raise InputError('--init_from: give the run folder of the model whose completions are to be judged')
    codec = make_codec(settings, run, list)
    config, params = starting_model(settings, codec)
    judgements = judge(settings, codec, Transformer(config).apply, params)
    write_records(run.folder / 'judgements.jsonl', judgements)
    return run.finish({'judgements': len(judgements), 'comparisons': sum(len(ranking_pairs(j)) for j in judgements)})


def judge(settings: FeedbackSettings, codec: Codec, apply, params) -> list[dict]:
    """Samples completions of the task's prompts and has them ranked by the simulated annotator."""
    task = task_of(settings)
    prompts = task.sample_prompts(settings.comparisons, settings.seed)
    repeated = [prompt for prompt in prompts for _ in range(settings.candidates)]
    key = jax.random.fold_in(jax.random.key(settings.seed), 4)
    batch_size = min(1024, len(repeated))
    rollout = sample_prompts(make_sampler(apply, codec), params, codec, repeated, key, batch_size=batch_size)
    completions, _ = codec.decode(rollout)
    gold = np.asarray([task.reward(p, c) for p, c in zip(repeated, completions)]).reshape(len(prompts), -1)
    ranks = rank_completions(np.random.default_rng([settings.seed, 5]), gold, temperature=settings.annotator_noise)
    rows = np.asarray(completions, object).reshape(gold.shape)
    return [judgement(p, list(c), r.tolist(), 'simulated') for p, c, r in zip(prompts, rows, ranks)]


def comparisons(settings: FeedbackSettings, run: Run) -> tuple[list[dict], list[dict]]:
    """(training, held-out) rankings from --data, or judged now for --task and kept in the run folder."""
    path = settings.data or run.folder / 'judgements.jsonl'
    if not settings.data and not path.exists():
        codec = make_codec(settings, run, list)
        config, params = starting_model(settings, codec)
        write_records(path, judge(settings, codec, Transformer(config).apply, params))
    records = read_rankings(path)
    if settings.eval_data:
        return records, read_rankings(settings.eval_data)
    return split_rows(records, seed=settings.seed)


def check_packing(settings: FeedbackSettings) -> None:
    """Refuses what packed rows cannot do.

    Raises:
      InputError: the loss compares more than the two sides of a pair.
    """
    if settings.packing and settings.loss in ('plackett_luce', 'aot', 'aot_unpaired'):
        raise InputError(f'--packing: --loss={settings.loss} does not look at each pair alone; leave --packing out')


def pair_batches(settings: FeedbackSettings, rows, steps):
    """(step, batch with its number of examples, padding share) of each step, made ahead in the background."""
    place = placement(settings)

    def make(i):
        whole = whole_batch(rows, i, batch_size=settings.batch_size, seed=settings.seed)
        return i, place((local_rows(whole), count_examples(whole))), {'padding_share': padding_share(whole)}

    return prefetch(map(make, steps))


if __name__ == '__main__':
    run_script(FeedbackSettings, collect)
