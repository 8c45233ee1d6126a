"""Rows of human feedback, from a store (feedback.sqlite) or its JSONL, and the records that training makes of them.

A row is one decision of one annotator, with all that was on the page; docs/feedback.md lists its fields. The file is
append-only: an undo is a row whose `supersedes` names the row that no longer counts. `as_records` drops those, joins
the annotators of an item into soft labels, and counts what it leaves out. Leaves out writing (feedback/store.py).
"""

import hashlib
import itertools
import json
import logging
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from rlax_ft.errors import InputError

FORMAT = 1  # Of the rows; it stands in each as "feedback".
STORE_ENDINGS = ('.sqlite', '.sqlite3', '.db')
CHOICES = ('A', 'B', 'tie', 'both_bad', 'ranking', 'skip', 'undo')
PURPOSES = ('item', 'duplicate', 'gold', 'training')
# Columns of a store's two tables; those of JSON hold lists and objects.
ITEM_COLUMNS = ('id', 'hash', 'purpose', 'content')
_TEXTS = ('id', 'item', 'annotator', 'session', 'purpose', 'choice', 'note', 'reason', 'supersedes', 'guideline')
JSON_COLUMNS = ('shown', 'ranks', 'ratings', 'edits', 'versions')
_NUMBERS = ('repeat', 'strength', 'start_ms', 'end_ms', 'active_ms', 'saved_ms')
ROW_COLUMNS = (*_TEXTS, *JSON_COLUMNS, *_NUMBERS)
CONTENT = ('prompt', 'completions', 'policies', 'checkpoints', 'fields')
ROW_FIELDS = {'feedback', 'hash', *CONTENT, *ROW_COLUMNS}


def content_hash(prompt, completions) -> str:
    """SHA-256 of what is judged: the prompt and its responses, in hexadecimal."""
    text = json.dumps([prompt, completions], ensure_ascii=False, sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(text.encode()).hexdigest()


def is_row(record: dict) -> bool:
    """Whether a record is a row of feedback, not one of the data forms."""
    return isinstance(record.get('feedback'), int) and {'item', 'choice', 'completions'} <= record.keys()


def is_store(path: str | Path) -> bool:
    """Whether a path is that of a store, by its ending."""
    return Path(path).suffix in STORE_ENDINGS


def joined_row(columns: dict, item_hash: str, content: dict) -> dict:
    """A row as JSONL has it, from the columns of a judgement (JSON ones as text) and the content of its item."""
    values = {name: json.loads(columns[name]) if columns[name] is not None else None for name in JSON_COLUMNS}
    values = {**columns, **values}
    if not isinstance(content, dict):
        raise TypeError('the content of an item is no object')
    first = {name: content.get(name) for name in ('prompt', 'completions')} | {'ranks': values.pop('ranks')}
    rest = {'item': values.pop('item'), 'hash': item_hash} | {name: content.get(name) for name in CONTENT[2:]}
    return {'feedback': FORMAT, **first, 'annotator': values.pop('annotator'), **rest, **values}


def read_store(path: str | Path) -> Iterator[tuple[dict, str]]:
    """Yields (row, where it stands) of a store in the order of its rows; a server may be writing meanwhile.

    Raises:
      InputError: it is no store, or damaged; how many rows could be read is said.
    """
    if not Path(path).is_file():
        raise InputError(f'{path}: no such file; give what collect_feedback.py wrote as --out')
    count = 0
    try:
        connection = open_read_only(path)
        query = f'SELECT {", ".join("j." + name for name in ROW_COLUMNS)}, i.hash, i.content FROM judgements j '
        for values in connection.execute(query + 'JOIN items i ON i.id = j.item ORDER BY j.seq'):
            count += 1
            row = joined_row(dict(zip(ROW_COLUMNS, values)), values[-2], json.loads(values[-1]))
            yield row, f'{path}, judgement {count}'
        connection.close()
    except InputError:
        raise
    except (sqlite3.Error, ValueError, RecursionError, TypeError) as error:
        raise InputError(f'{path}: {store_fault(error)}; {count} judgements could be read before that') from error


def open_read_only(path: str | Path) -> sqlite3.Connection:
    """A connection that writes nothing.

    Raises:
      sqlite3.Error: it cannot be opened.
    """
    name = quote(str(Path(path).resolve()))
    connection = sqlite3.connect(f'file:{name}?mode=ro', uri=True, check_same_thread=False)
    try:
        connection.execute('SELECT count(*) FROM sqlite_master')
    except sqlite3.OperationalError:  # A folder in which nothing can be written: no server is at work there either.
        connection = sqlite3.connect(f'file:{name}?immutable=1', uri=True, check_same_thread=False)
    return connection


def store_fault(error: Exception) -> str:
    """What is wrong with a file, in words."""
    text = ' '.join(str(error).split())
    if 'not a database' in text:
        return 'is no SQLite file'
    return 'holds no feedback' if 'no such table' in text or 'no such column' in text else f'damaged ({text})'


def check_row(row: dict, where: str) -> dict:
    """The row, whose fields are what all that reads rows relies on.

    Raises:
      InputError: naming the field.
    """
    if row['feedback'] != FORMAT:
        raise InputError(f'{where}: field "feedback" is {row["feedback"]}; this version reads {FORMAT}')
    completions = row['completions']
    if not isinstance(completions, list) or len(completions) < 2 or not all(map(_is_text, completions)):
        raise InputError(f'{where}: field "completions" must be a list of two or more responses')
    if not _is_text(row.get('prompt')):
        raise InputError(f'{where}: field "prompt" must be a text or a list of messages')
    if row['choice'] not in CHOICES:
        raise InputError(f'{where}: field "choice" is {row["choice"]!r}; one of {", ".join(CHOICES)} was expected')
    for name in ('id', 'item', 'annotator'):
        if not isinstance(row.get(name), str):
            raise InputError(f'{where}: field "{name}" must be a text')
    strength = row.get('strength')
    if strength is not None and not (_is_whole(strength) and 1 <= strength <= 7):
        raise InputError(f'{where}: field "strength" is {strength!r}; 1 to 7, or null, was expected')
    for name, (expected, good) in _OPTIONAL.items():
        if row.get(name) is not None and not good(row[name], len(completions)):
            raise InputError(f'{where}: field "{name}" must be null or {expected.format(size=len(completions))}')
    return row


def check_rows(rows: list[tuple[dict, str]]) -> list[dict]:
    """The rows of (row, where), each by `check_row`, and all of one item with the same prompt and responses.

    Raises:
      InputError: naming the place.
    """
    first: dict[str, tuple[dict, str]] = {}
    for row, where in rows:
        before, place = first.setdefault(check_row(row, where)['item'], (row, where))
        if (row['prompt'], row['completions']) != (before['prompt'], before['completions']):
            raise InputError(
                f'{where}: item {row["item"]!r} has another prompt or responses than in {place}; give each its own'
            )
    return [row for row, _ in rows]


def _is_whole(value):
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_text(value):
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, dict) for part in value))


def _is_list(value, size, part):
    return isinstance(value, list) and len(value) == size and all(x is None or part(x) for x in value)


def _is_rating(value):
    numbers = isinstance(value, dict) and all(isinstance(x, int | float) for x in value.values())
    return numbers and all(abs(x) < 1e9 for x in value.values())


_TEXT = ('a text', lambda value, size: isinstance(value, str))
_WHOLE = ('a whole number', lambda value, size: _is_whole(value))
# What a field of a row must be where it is not null, of `size` responses.
_OPTIONAL = {
    'ranks': (
        '{size} whole numbers, 0 for the best',
        lambda value, size: isinstance(value, list) and len(value) == size and all(map(_is_whole, value)),
    ),
    'shown': (
        'the order in which the {size} responses were shown, from 0',
        lambda value, size: _is_list(value, size, _is_whole) and None not in value and sorted(value) == [*range(size)],
    ),
    'ratings': ('{size} objects of numbers, or nulls', lambda value, size: _is_list(value, size, _is_rating)),
    'edits': ('{size} texts or nulls', lambda value, size: _is_list(value, size, lambda x: isinstance(x, str))),
    'policies': ('{size} texts or nulls', lambda value, size: _is_list(value, size, lambda x: isinstance(x, str))),
    'fields': ('an object', lambda value, size: isinstance(value, dict)),
    **dict.fromkeys(('session', 'purpose', 'note', 'reason', 'supersedes', 'guideline'), _TEXT),
    **dict.fromkeys(('repeat', 'start_ms', 'end_ms', 'active_ms', 'saved_ms'), _WHOLE),
}


def live(rows: Iterable[dict]) -> list[dict]:
    """The rows that stand: no undo, and none that another row supersedes."""
    rows = list(rows)
    gone = {row.get('supersedes') for row in rows} - {None}
    return [row for row in rows if row['choice'] != 'undo' and row['id'] not in gone]


def as_records(
    source: str | Path, raws: Iterable[tuple[dict, str]], view: str, weigh: Callable | None = None
) -> Iterator[tuple[dict, str]]:
    """(record, where) of a file that may hold rows of feedback: other records as they are, rows as training has them.

    Args:
      source: the file, for messages.
      raws: (record, where) as they stand in it.
      view: `pairs` (one record {"pairs": [...]} an item, with soft labels and margins), `flat` (each pair by itself),
        `rankings` (one a judgement), `demonstrations` or `prompts`.
      weigh: `f(rows) -> {annotator: weight}` of their votes; equal weights when absent.

    Raises:
      InputError: a row is not what it should be, or nothing is left of all the rows.
    """
    rows, others = [], 0
    for raw, where in raws:
        if is_row(raw):
            rows.append((raw, where))
        else:
            others += 1
            yield raw, where
    if not rows:
        return
    used, left_out = _usable(check_rows(rows))
    made, more = _VIEWS[view](used, weigh)
    left_out += more
    if left_out and view != 'prompts':
        reasons = ', '.join(f'{count} {reason}' for reason, count in sorted(left_out.items()))
        logging.warning('%s: of %d judgements left out: %s', source, len(rows), reasons)
    if not made and not others:
        raise InputError(f'{source}: not one of {len(rows)} judgements prefers something; collect more')
    yield from ((record, f'{source}, item {name}') for name, record in made)


def _usable(rows):
    """(rows that say something of the data's own items, counts of the others by reason)."""
    standing = live(rows)
    counts = Counter({'undone': sum(row['choice'] != 'undo' for row in rows) - len(standing)})
    used = []
    for row in standing:
        purpose = row.get('purpose') or 'item'
        if purpose in ('gold', 'training'):
            counts[f'of {purpose} items'] += 1
        elif row['choice'] == 'skip':
            counts['skipped'] += 1
        elif row['choice'] == 'both_bad':
            counts['both bad'] += 1
            used.append({**row, 'ranks': None})  # An edit of one of them is still worth something.
        else:
            used.append(row)
    return used, +counts


def _pairs(rows, weigh):
    weights, made, left_out = weigh(rows) if weigh else {}, [], Counter()
    for item, judged in _by_item(rows).items():
        first = judged[0]
        pairs = []
        for i, j in itertools.combinations(range(len(first['completions'])), 2):
            vote = _vote(judged, i, j, weights)
            if vote is None or first['completions'][i] == first['completions'][j]:
                continue
            share, margin = vote
            best, other = (i, j) if share >= 0.5 else (j, i)
            sides = {'chosen': first['completions'][best], 'rejected': first['completions'][other]}
            soft = {'label': max(share, 1.0 - share)} if 0 < share < 1 else {}
            pairs.append(_record(judged, **sides, **soft, **({} if margin is None else {'margin': margin})))
        if not pairs and any(row.get('ranks') for row in judged):
            left_out['tied'] += len([row for row in judged if row.get('ranks')])
        pairs += [_record([row], chosen=edit, rejected=text) for row in judged for edit, text in _edits(row)]
        if pairs:
            made.append((item, {'pairs': pairs}))
    return made, left_out


def _flat(rows, weigh):
    made, left_out = _pairs(rows, weigh)
    return [(item, pair) for item, record in made for pair in record['pairs']], left_out


def _rankings(rows, weigh):
    made = []
    for row in rows:
        if row.get('ranks'):
            made.append((row['item'], _record([row], completions=row['completions'], ranks=row['ranks'])))
        for edit, text in _edits(row):
            made.append((row['item'], _record([row], completions=[edit, text], ranks=[0, 1])))
    return made, Counter()


def _demonstrations(rows, weigh):
    made = []
    for item, judged in _by_item(rows).items():
        edits = [edit for row in judged for edit, _ in _edits(row)]
        best = [row['completions'][row['ranks'].index(min(row['ranks']))] for row in judged if row.get('ranks')]
        shown = []
        for answer in edits or best:
            if answer not in shown:
                shown.append(answer)
                made.append((item, _record(judged, completion=answer)))
    return made, Counter()


def _prompts(rows, weigh):
    return [(item, _record(judged)) for item, judged in _by_item(rows).items()], Counter()


_VIEWS = {
    'pairs': _pairs,
    'flat': _flat,
    'rankings': _rankings,
    'demonstrations': _demonstrations,
    'prompts': _prompts,
}


def _by_item(rows):
    groups = defaultdict(list)
    for row in rows:
        groups[row['item']].append(row)
    return groups


def _record(rows, **answers):
    names = list(dict.fromkeys(row['annotator'] for row in rows))
    who = {'annotator': names[0]} if len(names) == 1 else {'annotators': names}
    return {**(rows[0].get('fields') or {}), 'prompt': rows[0]['prompt'], **answers, **who, 'item': rows[0]['item']}


def preference(ranks: list[int], i: int, j: int) -> float:
    """1 where response i is ranked before j, 0 where behind it, 0.5 for a tie."""
    return 0.5 + 0.5 * ((ranks[i] < ranks[j]) - (ranks[i] > ranks[j]))


def _vote(rows, i, j, weights):
    """(share of the votes for i over j, margin of the majority or None); None where nobody prefers either.

    Several judgements of one annotator count as their mean.
    """
    votes, margins = defaultdict(list), []
    for row in rows:
        if row.get('ranks'):
            vote = preference(row['ranks'], i, j)
            votes[row['annotator']].append(vote)
            if row.get('strength') and vote != 0.5:
                margins.append((vote, strength_margin(row['strength'])))
    if all(vote == 0.5 for some in votes.values() for vote in some):
        return None
    total = sum(weights.get(name, 1.0) for name in votes)
    if total <= 0:
        return None
    share = sum(weights.get(name, 1.0) * sum(some) / len(some) for name, some in votes.items()) / total
    agreeing = [margin for vote, margin in margins if vote == float(share >= 0.5)]
    return share, sum(agreeing) / len(agreeing) if agreeing else None


def strength_margin(strength: int) -> float:
    """The margin of a strength of 1 (hardly better) to 7 (far better): 0 to 3, the span of arXiv 2307.09288."""
    return (strength - 1) / 2


def _edits(row):
    """(edited response, what it was) of the responses that an annotator has mended, both of one kind."""
    pairs = zip(row.get('edits') or (), row['completions'])
    mended = [(edit, text) for edit, text in pairs if edit and edit.strip() and edit != said(text)]
    return [(e if isinstance(t, str) else [*t[:-1], {**t[-1], 'content': e}], t) for e, t in mended]


def said(answer) -> str:
    """A response as one text: what its last message says where it is a list of messages."""
    return answer if isinstance(answer, str) else (answer[-1].get('content') or '')
