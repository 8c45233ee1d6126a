"""Records from files: JSONL, plain or gzipped, checked line by line.

The forms are TRL's, and one of ours for rankings:

    {"prompt", "completion"}                    a demonstration
    {"prompt", "chosen", "rejected"}            a comparison; the prompt may be implicit, the common beginning
    {"prompt", "completions": [..], "ranks": [..]}   a ranking, rank 0 is best, equal ranks are ties
    {"prompt"}                                  a prompt

A form with more can stand in for one with less. Leaves out tokens, and message lists.
"""

import gzip
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

from rlax_ft.errors import InputError

# In dialogues such as hh-rlhf's, the response is what follows the last turn marker that both texts share.
_TURN = '\n\nAssistant:'


def read_demonstrations(path: str | Path) -> list[dict]:
    """Records as {"prompt", "completion"}; of a comparison the chosen text, of a ranking the best is demonstrated.

    Raises:
      InputError: naming file and line, here as in every reader below.
    """

    def convert(record, where):
        if 'completion' in record:
            return {'prompt': _text(record, 'prompt', where), 'completion': _text(record, 'completion', where)}
        if 'completions' in record:
            ranking = _ranking(record, where)
            best = min(range(len(ranking['ranks'])), key=ranking['ranks'].__getitem__)
            return {'prompt': ranking['prompt'], 'completion': ranking['completions'][best]}
        pair = _pair(record, where, 'a demonstration {"prompt", "completion"}')
        return {'prompt': pair['prompt'], 'completion': pair['chosen']}

    return _read(path, convert)


def read_pairs(path: str | Path) -> list[dict]:
    """Records as {"prompt", "chosen", "rejected"}; a ranking gives all its pairs of unequal rank."""

    def convert(record, where):
        if 'completions' in record:
            return ranking_pairs(_ranking(record, where))
        return _pair(record, where, 'a comparison {"prompt", "chosen", "rejected"}')

    flat = []
    for converted in _read(path, convert):
        flat += converted if isinstance(converted, list) else [converted]
    if not flat:
        raise InputError(f'{path}: every ranking is one tie; give at least one record that prefers something')
    return flat


def read_rankings(path: str | Path) -> list[dict]:
    """Records as {"prompt", "completions", "ranks"}; a comparison is a ranking of two."""

    def convert(record, where):
        if 'completions' in record:
            return _ranking(record, where)
        pair = _pair(record, where, 'a ranking {"prompt", "completions", "ranks"}')
        return {'prompt': pair['prompt'], 'completions': [pair['chosen'], pair['rejected']], 'ranks': [0, 1]}

    return _read(path, convert)


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of records of any form."""

    def convert(record, where):
        if 'prompt' not in record and 'chosen' in record:
            return _pair(record, where, 'a prompt {"prompt"}')['prompt']
        return _text(record, 'prompt', where)

    return _read(path, convert)


def ranking_pairs(ranking: dict) -> list[dict]:
    """The comparisons {"prompt", "chosen", "rejected"} that a ranking implies, ties left out."""
    ranked = list(zip(ranking['ranks'], ranking['completions']))
    return [
        {'prompt': ranking['prompt'], 'chosen': a if i < j else b, 'rejected': b if i < j else a}
        for (i, a), (j, b) in itertools.combinations(ranked, 2)
        if i != j and a != b
    ]


def write_records(path: str | Path, records: list[dict]) -> None:
    """Writes a JSONL file whole or not at all."""
    path = Path(path)
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records))
    os.replace(temporary, path)


def _read(path: str | Path, convert: Callable) -> list:
    path = Path(path)
    if not path.is_file():
        raise InputError(f'{path}: no such file; give a JSONL file, plain or .gz')
    records = []
    try:
        with gzip.open(path, 'rt', encoding='utf-8') if path.suffix == '.gz' else open(path, encoding='utf-8') as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f'{path}, line {number}'
                    records.append(convert(_parse(line, where), where))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f'{path}: cannot be read as UTF-8 JSONL ({error})') from error
    if not records:
        raise InputError(f'{path}: the file holds no record; give at least one JSON object on a line of its own')
    return records


def _parse(line, where):
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f'{where}: not JSON ({error.msg} at column {error.colno}); one object a line') from error
    if not isinstance(record, dict):
        raise InputError(f'{where}: found {_kind(record)} where an object {{"prompt": ...}} was expected')
    return record


def _text(record, field, where):
    if field not in record:
        raise InputError(f'{where}: no field "{field}"; found {", ".join(map(repr, record)) or "an empty object"}')
    value = record[field]
    if not isinstance(value, str):
        raise InputError(f'{where}: field "{field}" is {_kind(value)}; a text was expected')
    return value


def _pair(record, where, expected):
    if not record.keys() & {'chosen', 'rejected'}:
        raise InputError(f'{where}: expected {expected}; found {", ".join(map(repr, record)) or "an empty object"}')
    chosen, rejected = _text(record, 'chosen', where), _text(record, 'rejected', where)
    if chosen == rejected:
        raise InputError(f'{where}: "chosen" equals "rejected"; a comparison needs two different texts')
    if 'prompt' in record:
        return {'prompt': _text(record, 'prompt', where), 'chosen': chosen, 'rejected': rejected}
    start = _implicit_prompt(chosen, rejected)
    return {'prompt': chosen[:start], 'chosen': chosen[start:], 'rejected': rejected[start:]}


def _implicit_prompt(chosen, rejected):
    """Length of the prompt that two whole texts share."""
    common = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    turn = chosen.rfind(_TURN, 0, common)
    if turn >= 0:
        return turn + len(_TURN)
    # Otherwise up to the last blank before they part, so that no word is cut.
    return max(chosen.rfind(' ', 0, common), chosen.rfind('\n', 0, common), 0)


def _ranking(record, where):
    completions, ranks = record['completions'], record.get('ranks')
    if not isinstance(completions, list) or not all(isinstance(c, str) for c in completions):
        raise InputError(f'{where}: field "completions" must be a list of texts')
    if not isinstance(ranks, list) or not all(isinstance(r, int) and not isinstance(r, bool) for r in ranks):
        raise InputError(f'{where}: field "ranks" must be a list of whole numbers, 0 for the best')
    if len(completions) != len(ranks) or len(ranks) < 2:
        raise InputError(f'{where}: {len(completions)} completions and {len(ranks)} ranks; give two or more of each')
    return {'prompt': _text(record, 'prompt', where), 'completions': completions, 'ranks': ranks}


def _kind(value):
    names = {dict: 'an object', list: 'a list', str: 'a text', bool: 'true or false', type(None): 'null'}
    return names.get(type(value), 'a number')
