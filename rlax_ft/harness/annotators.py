"""Who judges sampled completions, as --annotator says: the simulated annotator, a function, a reward model, or people.

All give rows of one form (rlax_ft/feedback/judgements.py). Leaves out sampling (comparisons.py) and the page
(rlax_ft/feedback/).
"""

import logging
from pathlib import Path

import numpy as np

from rlax_ft.data.feedback import is_row
from rlax_ft.data.records import write_records
from rlax_ft.data.sources import read_raw
from rlax_ft.errors import InputError
from rlax_ft.feedback.annotator import rank_completions
from rlax_ft.feedback.judgements import judged_by
from rlax_ft.feedback.store import readable_rows
from rlax_ft.harness.feedback_sampling import model_scorer
from rlax_ft.harness.loading import find_function
from rlax_ft.harness.run import Run
from rlax_ft.harness.starting_model import model_folder
from rlax_ft.parallel.hosts import from_first, on_first
from rlax_ft.tasks.task import Task


def judgements_of(settings, task: Task | None, records: list[dict], candidates: list[list]) -> list[dict]:
    """Rows of what --annotator says of K completions of each record.

    Raises:
      InputError: no such annotator, or it gave something else than rankings; `human` is asked by collect.py alone.
    """
    name = settings.annotator
    if name == 'simulated':
        if task is None:
            raise InputError('--annotator=simulated: judges by the gold reward of an embedded --task; name another')
        rng = np.random.default_rng([settings.seed, 5])

        def annotate(records, candidates):
            gold = [[task.reward(r['prompt'], c) for c in some] for r, some in zip(records, candidates)]
            ranks = rank_completions(rng, np.asarray(gold), temperature=settings.annotator_noise)
            return [{'ranks': row} for row in ranks.tolist()]

    elif name == 'human':
        raise InputError('--annotator=human: people are asked by collect.py or rlhf.py; give what they said as --data')
    elif ':' in name and not Path(name).exists():
        annotate = find_function(name, 'annotator')
    else:
        annotate = _reward_model(model_folder(name, 'annotator'), task)
    return judged_by(annotate, name, records, candidates)


def _reward_model(folder, task):
    score = model_scorer(folder, task)

    def annotate(records, candidates):
        items = [{'prompt': r['prompt'], 'completions': list(some)} for r, some in zip(records, candidates)]
        scores = score(items)
        if np.isnan(scores).any():
            raise InputError(f'--annotator={folder}: a completion is empty, or longer than the model reads')
        order = np.argsort(-scores, axis=1, kind='stable')
        return [{'ranks': row} for row in np.argsort(order, axis=1).tolist()]

    return annotate


def asked_of_people(run: Run, make_items) -> list[dict] | None:
    """The rows of people's judgements once every item has been judged or skipped; None, saying what to open, before.

    Args:
      run: whose folder holds to_judge.jsonl, written once, and feedback.sqlite.
      make_items: `() -> records` with "id", "prompt" and "completions", called where to_judge.jsonl is not there.
    """
    samples, store = run.folder / 'to_judge.jsonl', run.folder / 'feedback.sqlite'
    if not from_first(samples.exists):
        items = make_items()
        different = [item for item in items if len(set(item['completions'])) > 1]
        if len(different) < len(items):
            logging.warning('%d items are not asked: their completions are all the same', len(items) - len(different))
        on_first(lambda: write_records(samples, different), 'samples')
    asked = {record['id'] for record, _ in read_raw(samples)}
    rows = readable_rows(store)[0] if store.exists() else []
    seen = {row['item'] for row in rows if is_row(row) and row['choice'] != 'undo'}
    if len(asked & seen) < len(asked):
        command = f'python experiments/collect_feedback.py --samples={samples} --out={store}'
        print(
            f'{len(asked & seen)} of {len(asked)} items are judged. Open the page:\n\n    {command}\n\n'
            'and give this command again when all are judged.'
        )
        return None
    return rows
