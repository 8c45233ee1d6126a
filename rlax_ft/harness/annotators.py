"""Who judges sampled completions, as --annotator says: the simulated annotator, a function, a model, a rule, or people.

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
from rlax_ft.rewards.named import named_reward, parse_call, with_options
from rlax_ft.rewards.rules import as_reward, reward_scores
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
    else:
        annotate = _function(name) or _reward_model(model_folder(name, 'annotator'), task)
    return judged_by(annotate, name, records, candidates)


def check_annotator(name: str) -> None:
    """Looks what --annotator names up, before a model is loaded.

    Raises:
      InputError: it is no annotator, no function and no folder that holds a model.
    """
    if name not in ('simulated', 'human') and _function(name) is None:
        model_folder(name, 'annotator')


def _function(name):
    """The annotator that MODULE:FUNCTION or a reward of ours, judge(model=...), stands for; None for a folder."""
    if Path(name).exists():
        return None
    rule = named_reward(name, 'annotator')
    if rule is not None:
        return _by_score(rule, name)
    called, options = parse_call(name, 'annotator')
    if ':' in called:
        return with_options(find_function(called, 'annotator'), options, name, 'annotator')
    raise InputError(
        f'--annotator={name}: no such annotator or folder; give simulated, human, MODULE:FUNCTION, '
        "judge(model='FOLDER') or another reward of ours, or a reward model's run folder"
    )


def _by_score(rule, name):
    """An annotator that ranks by a reward; equal rewards are a tie."""

    def annotate(records, candidates):
        repeated = [record for record, some in zip(records, candidates) for _ in some]
        texts = [text for some in candidates for text in some]
        scores = reward_scores(as_reward(rule), repeated, texts, name=f'--annotator={name}')
        return _ranked(scores.reshape(len(records), -1))

    return annotate


def _reward_model(folder, task):
    score = model_scorer(folder, task)

    def annotate(records, candidates):
        items = [{'prompt': r['prompt'], 'completions': list(some)} for r, some in zip(records, candidates)]
        scores = score(items)
        if np.isnan(scores).any():
            raise InputError(f'--annotator={folder}: a completion is empty, or longer than the model reads')
        return _ranked(scores)

    return annotate


def _ranked(scores: np.ndarray) -> list[dict]:
    """Rankings by scores [N, K], the highest first."""
    return [{'ranks': np.unique(-row, return_inverse=True)[1].tolist()} for row in scores]


def asked_of_people(run: Run, make_items, enough: int = 0) -> list[dict] | None:
    """The rows of people's judgements once enough items have been judged or skipped; None, saying what to open, before.

    Args:
      run: whose folder holds to_judge.jsonl, written once, and feedback.sqlite.
      make_items: `() -> records` with "id", "prompt" and "completions", called where to_judge.jsonl is not there.
      enough: how many items; 0 for all of them.
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
    enough = min(enough or len(asked), len(asked))
    if len(asked & seen) < enough:
        command = f'python experiments/collect_feedback.py --samples={samples} --out={store}'
        print(
            f'{len(asked & seen)} of {len(asked)} items are judged. Open the page:\n\n    {command}\n\n'
            f'and give this command again when {"all" if enough == len(asked) else enough} are judged.'
        )
        return None
    return rows
