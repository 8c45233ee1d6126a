"""Comparisons to learn from: read, or judged now by an annotator; scored once by the reference; and their batches.

The reference's log-probabilities are kept in the run folder under a name made of their content, so that a resumed run
finds them and any change of data or reference does not. A reference that moves is scored in every step instead. Leaves
out losses and models.
"""

import hashlib
import importlib.metadata
import itertools
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.loader import count_examples, prefetch, split_rows, whole_batch
from rlax_ft.data.packing import padding_share
from rlax_ft.data.ragged import Ragged, RaggedBranches
from rlax_ft.data.records import ranking_pairs, read_pair_groups, read_pairs, read_prompts, read_rankings, write_records
from rlax_ft.errors import InputError
from rlax_ft.feedback.dawid_skene import annotator_weights
from rlax_ft.harness.annotators import judgements_of
from rlax_ft.harness.run import Run
from rlax_ft.harness.settings import FeedbackSettings
from rlax_ft.harness.starting_model import make_codec, starting_model, task_of
from rlax_ft.harness.step import placement
from rlax_ft.models.transformer import Transformer
from rlax_ft.parallel.hosts import from_first, on_first
from rlax_ft.parallel.placement import to_device_memory
from rlax_ft.sampling.text import make_sampler, map_rows, sample_prompts
from rlax_ft.types import PreferenceBatch, RankingBatch


def judge(settings, codec: Codec, apply, params) -> list[dict]:
    """Samples completions of the prompts and has them ranked by --annotator."""
    records, candidates = candidates_of(settings, codec, apply, params)
    return judgements_of(settings, task_of(settings), records, candidates)


def candidates_of(settings, codec: Codec, apply, params) -> tuple[list[dict], list[list[str]]]:
    """(records with a prompt, --candidates completions of each): prompts of the task, or of --data."""
    task = task_of(settings)
    if task is None:
        records = list(itertools.islice(read_prompts(settings.data), settings.comparisons))
    else:
        records = [{'prompt': prompt} for prompt in task.sample_prompts(settings.comparisons, settings.seed)]
    repeated = [record['prompt'] for record in records for _ in range(settings.candidates)]
    key = jax.random.fold_in(jax.random.key(settings.seed), 4)
    batch_size = min(512, len(repeated))  # As the evaluator samples: one program, compiled once.
    rollout = sample_prompts(make_sampler(apply, codec), params, codec, repeated, key, batch_size=batch_size)
    completions, _ = codec.decode(rollout)
    k = settings.candidates
    return records, [completions[i * k : (i + 1) * k] for i in range(len(records))]


def comparisons(settings: FeedbackSettings, run: Run, *, rankings: bool) -> tuple[list[dict], list[dict]]:
    """(training, held-out) comparisons from --data, or judged now for --task and kept in the run folder.

    Args:
      settings: of the script.
      run: whose folder keeps them.
      rankings: whole rankings; else pairs, of which a ranking gives all that it implies.
    """
    path = Path(settings.data) if settings.data else run.folder / 'judgements.jsonl'
    if not settings.data and not from_first(path.exists):
        codec = make_codec(settings, run, list)
        config, params = starting_model(settings, codec)
        judged = judge(settings, codec, Transformer(config).apply, params)
        on_first(lambda: write_records(path, judged), 'judgements')
    weigh = annotator_weights if getattr(settings, 'annotator_weights', 'equal') == 'dawid_skene' else None
    if weigh and rankings:
        raise InputError('--annotator_weights=dawid_skene: weights votes on pairs; a whole ranking is one vote')
    read = read_rankings if rankings else partial(read_pairs, weigh=weigh)
    records = read(path)
    if settings.eval_data:
        return records, read(settings.eval_data)
    if task_of(settings) is None:
        return split_rows(records, seed=settings.seed)
    # A task's few prompts serve for both: it is whole judgements that are held out, never some pairs of a ranking.
    groups = [[record] for record in records] if rankings else read_pair_groups(path, weigh)
    training, held_out = split_rows(groups, seed=settings.seed)
    return list(itertools.chain.from_iterable(training)), list(itertools.chain.from_iterable(held_out))


def implied_pairs(records: list[dict]) -> list[dict]:
    """The comparisons that pairs are, or that rankings imply."""
    return [pair for record in records for pair in (ranking_pairs(record) if 'ranks' in record else [record])]


def check_fields(records: list[dict], used: set[str], loss: str) -> None:
    """Says which of `label`, `margin` and `weight` the data has and the loss has no use for."""
    for field in ('label', 'margin', 'weight'):
        count = sum(field in record for record in records)
        if count and field not in used:
            logging.warning('field "%s" of %d records has no effect under --loss=%s', field, count, loss)


def check_alone(settings, records: list[dict]) -> None:
    """Refuses what a loss that compares the pairs of a batch with each other cannot have.

    Raises:
      InputError: packed rows, labels between 0 and 1, or weights.
    """
    if settings.packing:
        raise InputError(f'--packing: --loss={settings.loss} does not look at each pair alone; leave --packing out')
    soft = settings.labels != 'human' or any(record.get('label', 1.0) != 1.0 for record in records)
    if soft:
        what = f'--labels={settings.labels}' if settings.labels != 'human' else 'field "label" below 1'
        raise InputError(
            f'{what}: --loss={settings.loss} sorts the pairs of a batch, and a soft label belongs to one pair'
        )
    if any(record.get('weight', 1.0) != 1.0 for record in records):
        raise InputError(
            f'field "weight": --loss={settings.loss} sorts the pairs of a batch, and a weight belongs to one pair'
        )


def comparison_batches(settings: FeedbackSettings, rows, steps):
    """(step, batch with its number of examples, padding share) of each step, made ahead in the background."""
    place = placement(settings)

    def make(i):
        whole = whole_batch(rows, i, batch_size=settings.batch_size, seed=settings.seed)
        return i, place((whole, count_examples(whole))), {'padding_share': padding_share(whole)}

    return prefetch(map(make, steps))


def with_reference(run: Run, reference, params, rows: PreferenceBatch | RankingBatch, batch_size: int, how: str = ''):
    """The rows with the reference's log-probabilities of their candidates.

    Args:
      run: whose folder keeps them.
      reference: `f(params, candidates) -> float[B, K]`.
      params: of the reference, by which the file is named, on the devices or in the host's memory; None keeps no file.
      rows: comparisons or rankings, their prompts shared or not.
      batch_size: rows at once.
      how: what else the numbers depend on: the model's configuration with its dtype and kernel.
    """
    path = (
        None
        if params is None or jax.process_count() > 1
        else run.folder / f'reference-{_digest(params, rows, how)}.npy'
    )
    if path is not None and path.exists():
        logps = np.load(path)
    else:
        logps = map_rows(partial(reference, to_device_memory(params)), rows.candidates, batch_size=batch_size)
        if path is not None:
            np.save(path.with_suffix('.tmp.npy'), logps)
            path.with_suffix('.tmp.npy').replace(path)
    return referred(rows, logps)


def referred(rows: PreferenceBatch | RankingBatch, logps):
    """The rows with these log-probabilities of their candidates, float[B, K], as the reference's."""
    return replace(rows, ref_logps=logps)


def _digest(params, rows, how) -> str:
    content = hashlib.blake2b(f'{importlib.metadata.version("rlax_ft")} {how}'.encode(), digest_size=8)
    unpadded = isinstance(rows.candidates, Ragged | RaggedBranches)
    for leaf in jax.tree.leaves((params, rows.candidates.arrays() if unpadded else rows.candidates)):
        content.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return content.hexdigest()
