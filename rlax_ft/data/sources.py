"""Where raw records come from: JSONL, JSON arrays, tables, and data sets of the hub, one object after the other.

    data.jsonl                          one object a line
    data.json                           one array of objects
    data.csv     data.tsv               one object a row, under the names of the first (tables.py)
    data.parquet                        one object a row
    feedback.sqlite                     one row of human feedback a judgement (feedback.py)
    FOLDER, OWNER/NAME[:[CONFIG:]SPLIT] what `datasets.load_dataset` makes of it; the split is train when left out

All but Parquet may be compressed, .gz or .zst. Leaves out what the objects mean (forms.py, records.py).
"""

import gzip
import io
import itertools
import json
import logging
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from rlax_ft.data.feedback import STORE_ENDINGS, is_store, read_store
from rlax_ft.data.tables import read_table
from rlax_ft.errors import InputError

_HUB = re.compile(r'(?P<name>[\w.-]+/[\w.-]+)(?::(?:(?P<config>[\w.-]+):)?(?P<split>[^:].*))?')
# Half of a pair that UTF-16 writes a character with; JSON can name one alone, no encoding can write it.
LONE_SURROGATES = re.compile('[\ud800-\udfff]')
_FILE_ENDINGS = ('.jsonl', '.json', '.gz', '.zst', '.parquet', '.txt', '.csv', '.tsv', *STORE_ENDINGS)
_COMPRESSED = ('.gz', '.zst')
_LARGEST_LINE = 2**26  # Characters: a line that never ends is no record.
_UNREADABLE = (OSError, EOFError, UnicodeDecodeError, zlib.error)


def read_raw(source: str | Path, *, start: int = 0) -> Iterator[tuple[dict, str]]:
    """Yields (object, where it stands, in words) for every record of a file or data set, in its order.

    Args:
      source: a path, or the id of a data set on the hub.
      start: how many records to skip.

    Raises:
      InputError: naming the file and the line or record, here as in all that reads data.
    """
    path = Path(source)
    if path.is_dir() or is_hub_id(source):
        rows = load_hub(source, streaming=False)
        yield from ((without_nulls(row), f'{source}, record {i}') for i, row in enumerate(rows.skip(start), start + 1))
        return
    if not path.is_file():
        raise InputError(
            f'{path}: no such file; give a .jsonl, .json, .csv, .tsv (also .gz, .zst), .parquet or .sqlite file, or '
            'OWNER/NAME'
        )
    if is_store(path):
        yield from itertools.islice(read_store(path), start, None)
        return
    if path.suffix == '.parquet':
        yield from itertools.islice(_parquet(path), start, None)
        return
    inner = Path(path.stem) if path.suffix in _COMPRESSED else path
    read = {'.json': _json_array, '.csv': _table, '.tsv': _table}.get(inner.suffix, _json_lines)
    yield from _without_surrogates(itertools.islice(read(path), start, None), source)


def is_hub_id(source: str | Path) -> bool:
    """Whether `source` names a data set of the hub, not a file."""
    text = str(source)
    return not Path(text).exists() and not text.endswith(_FILE_ENDINGS) and _HUB.fullmatch(text) is not None


def load_hub(source: str | Path, *, streaming: bool):
    """A data set of the hub (or a folder of one) as `datasets` gives it.

    Raises:
      InputError: `datasets` is not installed, or finds no such data set.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(f'{source}: data sets of the hub need `datasets`; pip install "rlax_ft[data]"') from error
    match = None if Path(source).is_dir() else _HUB.fullmatch(str(source))
    name, config, split = match.group('name', 'config', 'split') if match else (str(source), None, None)
    try:
        return datasets.load_dataset(name, config, split=split or 'train', streaming=streaming)
    except Exception as error:  # `datasets` raises whatever its readers and its network raise.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f'{source}: `datasets` cannot load it ({reason}); give OWNER/NAME[:[CONFIG:]SPLIT]') from error


def _json_lines(path):
    number = 0
    try:
        with _open(path) as file:
            while line := file.readline(_LARGEST_LINE):
                number += 1
                where = f'{path}, line {number}'
                if len(line) == _LARGEST_LINE:
                    raise InputError(f'{where}: more than {_LARGEST_LINE:,} characters in a line; one object a line')
                if line.strip():
                    yield _object(_parse(line, where, 'one object a line'), where), where
    except _UNREADABLE as error:
        raise InputError(f'{path}: cannot be read as UTF-8 JSONL after line {number} ({error})') from error


def _json_array(path):
    try:
        with _open(path) as file:
            # What a small compressed file swells to is no data set.
            most = max(2**28, 200 * path.stat().st_size) if path.suffix in _COMPRESSED else -1
            text = file.read(most)
            if len(text) == most:
                raise InputError(f'{path}: more than {most:,} characters; give JSONL, one object a line')
    except _UNREADABLE as error:
        raise InputError(f'{path}: cannot be read as UTF-8 JSON ({error})') from error
    if text.lstrip()[:1] == '{' and '\n{' in text.strip():
        yield from _json_lines(path)  # JSONL under the wrong name.
        return
    values = _parse(text, path, 'an array of objects') if text.strip() else []
    for number, value in enumerate(values if isinstance(values, list) else [values], 1):
        where = f'{path}, record {number}'
        yield _object(value, where), where


def _table(path):
    try:
        with _open(path, newline='') as file:
            yield from read_table(file, path, '\t' if '.tsv' in path.suffixes else ',')
    except _UNREADABLE as error:
        raise InputError(f'{path}: cannot be read as a UTF-8 table ({error})') from error


def _parquet(path):
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f'{path}: Parquet files need `pyarrow`; pip install "rlax_ft[data]"') from error
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024):
            for record in batch.to_pylist():
                number += 1
                yield without_nulls(record), f'{path}, record {number}'
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f'{path}: cannot be read as Parquet after record {number} ({reason})') from error


def _open(path, newline=None):
    """The file as text; some programs write a mark of the byte order in front."""
    how = dict(encoding='utf-8-sig', newline=newline)
    if path.suffix == '.gz':
        return gzip.open(path, 'rt', **how)
    if path.suffix != '.zst':
        return open(path, **how)
    try:
        import pyarrow
    except ImportError as error:
        raise InputError(f'{path}: .zst files need `pyarrow`; pip install "rlax_ft[data]"') from error
    return io.TextIOWrapper(pyarrow.input_stream(str(path), compression='zstd'), **how)


def parsed(text: str):
    """What a JSON text within a record holds, lone surrogates replaced by U+FFFD.

    Raises:
      ValueError: it is no JSON.
      RecursionError: it is nested too deeply.
    """
    return _scrubbed(json.loads(text, object_pairs_hook=_unique))


def _unique(pairs):
    """An object none of whose keys is there twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice')
    return value


def _parse(text, where, expected):
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        place = f'column {error.colno}' if error.lineno == 1 else f'line {error.lineno}, column {error.colno}'
        raise InputError(f'{where}: not JSON ({error.msg} at {place}); {expected} was expected') from error
    except (ValueError, RecursionError) as error:  # A key twice; a number of thousands of digits; lists in lists.
        raise InputError(f'{where}: not JSON that can be read ({error}); {expected} was expected') from error


def _without_surrogates(records, source):
    """The records with U+FFFD for lone surrogates, as decoders write it; how many records have them is logged."""
    changed = 0
    for record, where in records:
        try:
            clean = _scrubbed(record)
        except RecursionError as error:
            raise InputError(f'{where}: nested too deeply') from error
        changed += clean != record
        yield clean, where
    if changed:
        logging.warning('%s: %d records with lone surrogates, replaced by U+FFFD', source, changed)


def _scrubbed(value):
    if isinstance(value, str):
        return LONE_SURROGATES.sub('\ufffd', value)
    if isinstance(value, dict):
        return {_scrubbed(key): _scrubbed(part) for key, part in value.items()}
    return [_scrubbed(part) for part in value] if isinstance(value, list) else value


def without_nulls(value):
    """A value from columns without the nulls that stand there for keys which an object does not have, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def _object(value, where):
    if not isinstance(value, dict):
        raise InputError(f'{where}: found {kind(value)} where an object {{"prompt": ...}} was expected')
    return value


def kind(value) -> str:
    """What sort of JSON value this is, in words."""
    names = {dict: 'an object', list: 'a list', str: 'a text', bool: 'true or false', type(None): 'null'}
    return names.get(type(value), 'a number' if isinstance(value, int | float) else f'a {type(value).__name__}')
