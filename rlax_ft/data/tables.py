"""CSV and TSV: rows of texts as records, and those cells as lists or numbers whose fields hold no text.

Leaves out files and their compression (sources.py).
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from rlax_ft.errors import InputError

# What these fields hold a table writes as JSON, and an empty cell is none.
_NO_TEXT = {'label', 'margin', 'weight', 'ranks', 'completions', 'messages', 'conversations', 'tools', 'history'}
_NO_TEXT |= {'kto_tag', 'annotator1', 'annotator2', 'annotator3'}
# A text, or a list of messages as JSON.
_EITHER = {'prompt', 'completion', 'chosen', 'rejected'}
_LARGEST_CELL = 2**26


def read_table(file, path: Path, delimiter: str) -> Iterator[tuple[dict, str]]:
    """Yields (record, where it stands) of each row under the header.

    Args:
      file: open as text, line ends untouched.
      path: of the file, for messages.
      delimiter: between cells.

    Raises:
      InputError: a row has another number of cells than the header, or it is no table.
    """
    csv.field_size_limit(_LARGEST_CELL)
    rows, number = csv.reader(file, delimiter=delimiter, strict=True), 1
    try:
        header = next(rows, [])
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise InputError(f'{path}, line 1: two columns are called {twice!r}')
        for cells in rows:
            number = rows.line_num
            if not cells:
                continue
            if len(cells) != len(header):
                raise InputError(f'{path}, line {number}: {len(cells)} cells, and the first line names {len(header)}')
            given = zip(header, cells)
            yield (
                {name: _value(name, cell) for name, cell in given if cell or name not in _NO_TEXT},
                f'{path}, line {number}',
            )
    except csv.Error as error:
        raise InputError(f'{path}, after line {number}: no table ({error})') from error


def _value(name, cell):
    if name in _NO_TEXT:
        return _json(cell.lower() if cell.lower() in ('true', 'false') else cell, cell)
    if name in _EITHER and cell.startswith('[{'):
        value = _json(cell, cell)
        messages = isinstance(value, list) and all(isinstance(part, dict) and 'role' in part for part in value)
        return value if messages else cell
    return cell


def _json(text, otherwise):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return otherwise
