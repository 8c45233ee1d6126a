"""Judgements: what annotators, people or functions, said about completions of one prompt, as rows of one form.

A row is what the page writes, and what every script reads with `--data` (rlax_ft/data/feedback.py, docs/feedback.md).
Equal texts get equal ranks. Leaves out who judges, and where rows are kept (store.py).
"""

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence

from rlax_ft.data.feedback import FORMAT, JSON_COLUMNS, ROW_COLUMNS, content_hash
from rlax_ft.errors import InputError


def dense(completions: Sequence, ranks: Sequence[int]) -> list[int]:
    """The ranks as 0, 1, 2 ..; completions with the same text are tied at the best of their ranks."""
    texts = [json.dumps(completion, sort_keys=True) for completion in completions]
    best: dict[str, int] = {}
    for text, rank in zip(texts, ranks):
        best[text] = min(best.get(text, int(rank)), int(rank))
    order = {rank: place for place, rank in enumerate(sorted(set(best.values())))}
    return [order[best[text]] for text in texts]


def judgement(
    prompt, completions: Sequence, ranks: Sequence[int], annotator: str, *, item: str = '', policies=None, fields=None
) -> dict:
    """One row by a function or a model, which saw the completions in their own order and took no time.

    Args:
      prompt: a text or a message list.
      completions: K responses.
      ranks: of each, 0 for the best.
      annotator: its name.
      item: what is judged; judgements of the same item by several annotators become soft labels. The content's hash
        when empty.
      policies: which policy wrote each.
      fields: of the record, which stay with it.
    """
    completions = list(completions)
    ranks = dense(completions, ranks)
    hashed = content_hash(prompt, completions)
    item = item or hashed[:16]
    content = {
        'completions': completions,
        'policies': list(policies) if policies else [None] * len(completions),
        'checkpoints': [None] * len(completions),
        'fields': dict(fields or {}),
    }
    name = hashlib.sha256(json.dumps([annotator, item, hashed, ranks]).encode()).hexdigest()[:32]
    values = dict.fromkeys(ROW_COLUMNS) | {
        'id': name,
        'item': item,
        'annotator': annotator,
        'purpose': 'item',
        'choice': choice_of(ranks),
        'shown': list(range(len(completions))),
        'ranks': ranks,
        'repeat': 0,
        'versions': versions(),
    }
    return row_of(values, prompt, hashed, content)


def row_of(values: dict, prompt, hashed: str, content: dict) -> dict:
    """A row in the order of its fields as JSONL has them, from its columns and its item."""
    rest = {name: values[name] for name in ROW_COLUMNS if name not in ('annotator', 'item', 'ranks', *JSON_COLUMNS)}
    lists = {name: values[name] for name in JSON_COLUMNS if name != 'ranks'}
    return {
        'feedback': FORMAT,
        'prompt': prompt,
        'completions': content['completions'],
        'ranks': values['ranks'],
        'annotator': values['annotator'],
        'item': values['item'],
        'hash': hashed,
        **{name: content.get(name) for name in ('policies', 'checkpoints', 'fields')},
        **rest,
        **lists,
    }


def choice_of(ranks: Sequence[int]) -> str:
    """`A`, `B` or `tie` of two in the order shown; `ranking` of more."""
    if len(ranks) > 2:
        return 'ranking'
    return 'tie' if ranks[0] == ranks[1] else 'A' if ranks[0] < ranks[1] else 'B'


@functools.cache
def _version():
    return importlib.metadata.version('rlax_ft')


def versions() -> dict[str, str]:
    """What wrote a row."""
    return {'rlax_ft': _version()}


def judged_by(annotator: Callable, name: str, records: list[dict], candidates: list[list]) -> list[dict]:
    """What an annotator `f(records, candidates) -> judgements` says, checked, as rows of items of their own.

    Args:
      annotator: gives for each record {"ranks": K whole numbers, 0 for the best}, or a row as `judgement` makes it.
      name: by which the rows call it, and messages.
      records: with "prompt" and whatever fields the data has.
      candidates: K completions of each.

    Raises:
      InputError: it raised, or what it gave is no ranking of the candidates.
    """
    try:
        given = annotator(records, candidates)
        given = list(given)
    except InputError:
        raise
    except Exception as error:  # A user's function may raise whatever it likes.
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
        raise InputError(f'--annotator={name}: raised {reason}') from error
    if len(given) != len(records):
        raise InputError(f'--annotator={name}: gave {len(given)} judgements of {len(records)} records; one each')
    rows = []
    for number, (record, texts, said) in enumerate(zip(records, candidates, given)):
        ordered = said.get('ranks') if isinstance(said, dict) else said
        try:
            ranks = [int(rank) for rank in ordered or ()]
        except (TypeError, ValueError):
            ranks = []
        if len(ranks) != len(texts):
            raise InputError(
                f'--annotator={name}: record {number + 1}: {len(texts)} ranks were expected, 0 for the best; '
                f'found {str(said)[:80]}'
            )
        fields = {key: value for key, value in record.items() if key != 'prompt'}
        rows.append(judgement(record['prompt'], texts, ranks, name, item=str(number), fields=fields))
    return rows
