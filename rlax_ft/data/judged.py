"""Single answers that were judged: comparisons taken apart, and all of them as arrays.

Leaves out files (records.py) and what is learned from the answers.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.forms import convert
from rlax_ft.data.records import read_judged, read_rankings
from rlax_ft.data.rows import prompt_of, ragged_rows, shared_ragged
from rlax_ft.data.sources import read_raw
from rlax_ft.types import JudgedBatch

_OF_MANY = ('completions', 'ranks', 'label', 'margin')


def compares(source: str | Path) -> bool:
    """Whether the first record of a source compares answers: it is a comparison or a ranking, not a judged answer."""
    record = next((convert(raw, where) for raw, where in read_raw(source)), {})
    return 'chosen' in record or 'rejected' in record or 'completions' in record


def read_answers(source: str | Path) -> list[dict]:
    """Rankings where the source compares answers, and judged answers {"prompt", "completion", "label"} elsewhere."""
    return read_rankings(source) if compares(source) else read_judged(source)


def judged_answers(records: Iterable[dict]) -> list[dict]:
    """Every answer by itself as {"prompt", "completion", "label"}, the label a probability that it is a good one.

    Of a ranking that is the share of the other answers that it beats, a tie being half a win: what the pairs that it
    implies say of it on average. A comparison's own "label" p is that of its better answer, 1 - p of the other.

    Args:
      records: rankings and judged answers; their other fields stay with each answer.
    """
    return list(itertools.chain.from_iterable(map(_apart, records)))


def judged_rows(codec: Codec, records: list[dict], *, ragged: bool = False) -> JudgedBatch:
    """Judged answers as a JudgedBatch [N]; `weight` is the records' own where they have it.

    Args:
      codec: how text becomes tokens.
      records: N judged answers.
      ragged: as in `rows.preference_rows`.

    Raises:
      InputError: as `rows.ragged_rows`.
    """
    rows = ragged_rows(codec, [prompt_of(record) for record in records], [record['completion'] for record in records])
    branches = shared_ragged(rows.reshape(len(records), 1), always=True)
    weights = [record.get('weight', 1.0) for record in records]
    return JudgedBatch(
        candidates=branches if ragged else branches[np.arange(len(records))],
        label=np.asarray([record['label'] for record in records], np.float32),
        weight=np.asarray(weights, np.float32) if any('weight' in record for record in records) else None,
    )


def _apart(record):
    if 'ranks' not in record:
        return [{**record, 'label': float(record['label'])}]
    ranks = np.asarray(record['ranks'])
    beaten = (np.sign(ranks[None, :] - ranks[:, None]) + 1) / 2  # [K, K]; an answer ties with itself.
    labels = (beaten.sum(axis=1) - 0.5) / (len(ranks) - 1)
    if len(ranks) == 2 and 'label' in record:
        labels = np.where(labels > 0.5, record['label'], 1.0 - record['label'])
    rest = {name: value for name, value in record.items() if name not in _OF_MANY}
    return [{**rest, 'completion': c, 'label': float(p)} for c, p in zip(record['completions'], labels)]
