"""The store of human judgements: one SQLite file, append-only, behind these few functions.

WAL and synchronous=FULL: what `append` has returned from survives a power cut. Triggers refuse changes of what has been
written; an undo is a row that supersedes another. One server writes at a time, readers read meanwhile. Leaves out what
rows mean (rlax_ft/data/feedback.py) and which item is asked next (queue.py).
"""

import contextlib
import fcntl
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlax_ft.data.feedback import (
    CONTENT,
    ITEM_COLUMNS,
    JSON_COLUMNS,
    ROW_COLUMNS,
    check_row,
    content_hash,
    is_row,
    is_store,
    joined_row,
    open_read_only,
    store_fault,
)
from rlax_ft.data.sources import read_raw
from rlax_ft.errors import InputError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS guidelines (hash TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS items (
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, hash TEXT NOT NULL, purpose TEXT NOT NULL, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS judgements (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, item TEXT NOT NULL REFERENCES items(id),
  annotator TEXT NOT NULL, session TEXT, purpose TEXT NOT NULL, repeat INTEGER NOT NULL, choice TEXT NOT NULL,
  shown TEXT, ranks TEXT, strength INTEGER, ratings TEXT, edits TEXT, note TEXT, reason TEXT,
  start_ms INTEGER, end_ms INTEGER, active_ms INTEGER, saved_ms INTEGER, supersedes TEXT, guideline TEXT,
  versions TEXT);
"""
# Nothing that was said is changed or lost through this file's own connections, or those of a careless script.
_APPEND_ONLY = """
CREATE TRIGGER IF NOT EXISTS {table}_no_{event} BEFORE {event} ON {table}
BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END;
"""
_VERSION = 1


class Store:
    """An open store. Use as a context manager, or `close` it."""

    def __init__(self, path: str | Path):
        """Opens the file for writing, and makes it where there is none.

        Raises:
          InputError: another server has it, it cannot be written, or it is damaged.
        """
        self.path = Path(path)
        self._mutex, self._reading = threading.Lock(), threading.Lock()
        new = not self.path.exists() or self.path.stat().st_size == 0
        try:
            self._lock = _locked(self.path)
            # It holds what people wrote, and the key of their sessions; what SQLite puts beside it has the same rights.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
            if not new:
                check_store(self._db)
            os.chmod(self.path, 0o600)
            self._db.executescript('PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;')
            self._db.executescript('BEGIN;' + _SCHEMA + _triggers() + 'COMMIT;')
            # Who reads does not wait for the disk that a writer waits for.
            self._reader = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
            self._reader.execute('PRAGMA query_only=ON')
            self._set_once('version', str(_VERSION))
            self._set_once('secret', secrets.token_hex(32))
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise InputError(_damaged(self.path, error)) from error
        except OSError as error:
            raise InputError(f'--out={path}: cannot be written ({error.strerror}); give another file') from error
        if self.meta('version') != str(_VERSION):
            raise InputError(f'{path}: a store of version {self.meta("version")}; this program reads {_VERSION}')

    def __enter__(self) -> 'Store':
        """The store itself."""
        return self

    def __exit__(self, *_) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Ends writing; another server may open the file."""
        with self._mutex, self._reading:
            self._reader.close()
            self._db.close()
            self._lock.close()

    def meta(self, name: str) -> str:
        """A value that belongs to the file."""
        return self._db.execute('SELECT value FROM meta WHERE name = ?', [name]).fetchone()[0]

    def add_items(self, items: Iterable[dict]) -> int:
        """Adds items, each once; returns how many are new.

        Args:
          items: with "id", "hash", "purpose" and "content" (items.py).

        Raises:
          InputError: an id stands in the file for something else.
        """
        new = 0
        with self._mutex, _transaction(self._db):
            for item in items:
                values = [*(item[name] for name in ITEM_COLUMNS[:3]), _dumped(item['content'])]
                added = self._db.execute(
                    'INSERT INTO items (id, hash, purpose, content) VALUES (?, ?, ?, ?) ON CONFLICT(id) DO NOTHING',
                    values,
                ).rowcount
                new += added
                if not added:
                    self._check_same(item)
        return new

    def _check_same(self, item):
        (before,) = self._db.execute('SELECT hash FROM items WHERE id = ?', [item['id']]).fetchone()
        if before != item['hash']:
            raise InputError(
                f'{self.path}: item {item["id"]!r} is there already with another prompt or other responses; '
                'give it another "id", or another --out'
            )

    def add_guideline(self, digest: str, text: str) -> None:
        """Keeps the text of guidelines, which rows name by their hash."""
        with self._mutex, _transaction(self._db):
            self._db.execute('INSERT OR IGNORE INTO guidelines VALUES (?, ?)', [digest, text])

    def append(self, rows: list[dict]) -> None:
        """Writes rows in one transaction; they are on the disk when this returns. A row that is there stays as it is.

        Args:
          rows: with the columns of `ROW_COLUMNS`.

        Raises:
          sqlite3.Error: none of them is written.
        """
        marks = ', '.join('?' * len(ROW_COLUMNS))
        query = f'INSERT INTO judgements ({", ".join(ROW_COLUMNS)}) VALUES ({marks}) ON CONFLICT(id) DO NOTHING'
        values = [[_dumped(r[c]) if c in JSON_COLUMNS else r[c] for c in ROW_COLUMNS] for r in rows]
        with self._mutex, _transaction(self._db):
            self._db.executemany(query, values)

    def item_list(self) -> list[tuple[str, str]]:
        """(id, purpose) of every item, in the order in which they came."""
        with self._reading:
            return self._reader.execute('SELECT id, purpose FROM items ORDER BY seq').fetchall()

    def item(self, name: str) -> dict | None:
        """An item's content with its "id", "hash" and "purpose"; None where there is none."""
        with self._reading:
            found = self._reader.execute('SELECT id, hash, purpose, content FROM items WHERE id = ?', [name]).fetchone()
        return None if found is None else {**json.loads(found[3]), **dict(zip(ITEM_COLUMNS[:3], found))}

    def row(self, name: str) -> dict | None:
        """The columns of one judgement; None where there is none."""
        with self._reading:
            query = f'SELECT {", ".join(ROW_COLUMNS)} FROM judgements WHERE id = ?'
            found = self._reader.execute(query, [name]).fetchone()
        return None if found is None else dict(zip(ROW_COLUMNS, found))

    def marks(self) -> list[tuple]:
        """(id, item, annotator, purpose, repeat, choice, supersedes) of every judgement, in order."""
        query = 'SELECT id, item, annotator, purpose, repeat, choice, supersedes FROM judgements ORDER BY seq'
        with self._reading:
            return self._reader.execute(query).fetchall()

    def light_rows(self) -> list[dict]:
        """What statistics need of every judgement, without the texts but with their length."""
        columns = (
            'id',
            'item',
            'annotator',
            'purpose',
            'choice',
            'supersedes',
            'active_ms',
            'shown',
            'ranks',
            'ratings',
        )
        length = "length(json_extract(i.content, '$.prompt')) + length(json_extract(i.content, '$.completions'))"
        query = f'SELECT {", ".join("j." + name for name in columns)}, {length} FROM judgements j '
        with contextlib.closing(open_read_only(self.path)) as connection:
            found = connection.execute(query + 'JOIN items i ON i.id = j.item ORDER BY j.seq').fetchall()
        rows = [dict(zip((*columns, 'length'), values)) for values in found]
        for row in rows:
            for name in ('shown', 'ranks', 'ratings'):
                row[name] = json.loads(row[name]) if row[name] is not None else None
        return rows

    def _set_once(self, name, value):
        self._db.execute('INSERT OR IGNORE INTO meta VALUES (?, ?)', [name, value])


def check_store(connection: sqlite3.Connection) -> None:
    """Raises sqlite3.Error where the file is damaged or holds something else."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {'items', 'judgements', 'meta'} <= tables:
        raise sqlite3.DatabaseError('no such table: judgements')
    for table, wanted in (('items', ITEM_COLUMNS), ('judgements', ROW_COLUMNS), ('meta', ('name', 'value'))):
        columns = {row[1] for row in connection.execute(f'PRAGMA table_info({table})')}
        if missing := set(wanted) - columns:
            raise sqlite3.DatabaseError(f'no such column: {table}.{min(missing)}')
    (fault,) = connection.execute('PRAGMA quick_check(1)').fetchone()
    if fault != 'ok':
        raise sqlite3.DatabaseError(fault)


def readable_rows(path: str | Path) -> tuple[list[dict], str]:
    """(rows that can be read, what is wrong with the file or ''), of a file that may be damaged.

    A row whose fields are not what they should be is left out, too.

    Rows are looked up one by one, so that a damaged page costs its own rows and no others.

    Raises:
      InputError: it is no store at all.
    """
    if not Path(path).is_file():
        raise InputError(f'{path}: no such file; give what collect_feedback.py wrote as --out')
    rows: list[dict] = []
    fault = ''
    try:
        db = open_read_only(path)
        check_tables = db.execute("SELECT count(*) FROM sqlite_master WHERE name IN ('items', 'judgements')")
        if check_tables.fetchone()[0] != 2:
            raise InputError(f'{path}: holds no feedback; give what collect_feedback.py wrote as --out')
        try:
            check_store(db)
        except sqlite3.Error as error:
            fault = store_fault(error)
        last = _last_seq(db)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        return rows, store_fault(error)
    query = f'SELECT {", ".join("j." + name for name in ROW_COLUMNS)}, i.hash, i.content FROM judgements j '
    query += 'JOIN items i ON i.id = j.item WHERE j.seq = ?'
    for seq in range(1, last + 1):
        try:
            for values in db.execute(query, [seq]):
                content = json.loads(values[-1])
                row = joined_row(dict(zip(ROW_COLUMNS, values)), values[-2], content)
                rows.append(check_row(row, f'judgement {seq}'))
        except (sqlite3.Error, ValueError, TypeError, RecursionError, InputError) as error:
            fault = fault or store_fault(error)
    db.close()
    return rows, fault


def gold_answers(path: str | Path) -> dict[str, list[int]]:
    """The ranks that the gold items of a store should have, by item; empty for any other file."""
    if not is_store(path):
        return {}
    try:
        found = (
            open_read_only(path)
            .execute("SELECT id, content FROM items WHERE purpose IN ('gold', 'training')")
            .fetchall()
        )
        return {name: json.loads(content)['answer'] for name, content in found}
    except (sqlite3.Error, ValueError, KeyError, TypeError, RecursionError):
        return {}  # A damaged file: its judgements say so.


def _last_seq(db):
    for query in ("SELECT seq FROM sqlite_sequence WHERE name = 'judgements'", 'SELECT max(seq) FROM judgements'):
        try:
            found = db.execute(query).fetchone()
            if found and found[0]:
                return found[0]
        except sqlite3.Error:
            continue
    return 0


def load_rows(store: Store, source: str | Path) -> int:
    """Appends the rows of an exported JSONL (or another store), with their items; returns how many there are.

    Raises:
      InputError: a line is no row of feedback, naming it.
    """
    rows, items = [], []
    for raw, where in read_raw(source):
        if not is_row(raw):
            raise InputError(f'{where}: no row of feedback; give what --export wrote')
        row = check_row(raw, where)
        missing = [name for name in ROW_COLUMNS if name not in row]
        if missing:
            raise InputError(f'{where}: no field "{missing[0]}"; give what --export wrote')
        if row['hash'] != content_hash(row['prompt'], row['completions']):
            raise InputError(f'{where}: field "hash" is not that of its prompt and completions; the line was changed')
        purpose = 'item' if row['purpose'] == 'duplicate' else row['purpose']
        content = {name: row.get(name) for name in CONTENT}
        items.append({'id': row['item'], 'hash': row['hash'], 'purpose': purpose, 'content': content})
        rows.append(row)
    store.add_items(items)
    store.append(rows)
    return len(rows)


def _locked(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(f'{path.resolve()}.lock', 'w')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(f'--out={path}: another server has this file; stop that one, or give another file') from error
    return file


def _damaged(path, error):
    try:
        rows, _ = readable_rows(path)
    except InputError as other:
        return str(other)
    found = f'{len(rows)} judgements can be read: --export=FILE.jsonl writes them' if rows else 'nothing can be read'
    return f'--out={path}: {store_fault(error)}; {found}; give another file'


@contextlib.contextmanager
def _transaction(db):
    db.execute('BEGIN IMMEDIATE')
    try:
        yield
        db.execute('COMMIT')
    except BaseException:
        if db.in_transaction:
            db.execute('ROLLBACK')
        raise


def _triggers() -> str:
    tables, events = ('items', 'judgements', 'guidelines'), ('update', 'delete')
    return ''.join(_APPEND_ONLY.format(table=table, event=event) for table in tables for event in events)


def _dumped(value) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, separators=(',', ':'))


def export_lines(rows: Iterable[dict]) -> Iterator[str]:
    """Rows as lines of JSONL."""
    return (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
