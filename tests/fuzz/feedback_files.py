"""Mutated files of human feedback, stores (SQLite) and their exports: read by all that reads them, or one line."""

import json
import random
import shutil
import sqlite3
import tempfile
from pathlib import Path

import values

from rlax_ft.data.feedback import ROW_COLUMNS, is_store
from rlax_ft.data.judged import judged_answers, read_answers
from rlax_ft.data.records import read_demonstrations, read_pairs, read_prompts, read_rankings
from rlax_ft.feedback.items import make_item, read_items
from rlax_ft.feedback.judgements import judgement
from rlax_ft.feedback.report import markdown, report_parts
from rlax_ft.feedback.statistics import flat_summary, read_judgements, summary
from rlax_ft.feedback.store import Store, export_lines, gold_answers, load_rows, readable_rows

FOLDERS: list[Path] = []
COLUMNS = {'judgements': ROW_COLUMNS, 'items': ('id', 'hash', 'purpose', 'content'), 'meta': ('name', 'value')}
NAMES = ('ranks', 'choice', 'supersedes', 'strength', 'edits', 'fields', 'annotator', 'item', 'shown', 'ratings')
TRAINING = (read_pairs, read_rankings, read_demonstrations, read_prompts)


def folder_of_ours():
    """A store of four items that two people judged, and its export."""
    if not FOLDERS:
        root = Path(tempfile.mkdtemp(prefix='fuzz-feedback-'))
        rng = random.Random(0)
        with Store(root / 'x.sqlite') as store:
            for i in range(4):
                texts = [f'answer {i} {j}' for j in range(2 + i % 2)]
                store.add_items([make_item(f'prompt {i}', [{'text': t, 'policy': 'a'} for t in texts], name=str(i))])
                for who in ('ann', 'bob'):
                    ranks = rng.sample(range(len(texts)), len(texts))
                    row = judgement(f'prompt {i}', texts, ranks, who, item=str(i))
                    store.append([{**dict.fromkeys(ROW_COLUMNS), **row, 'strength': 3, 'active_ms': 900}])
        rows, _ = readable_rows(root / 'x.sqlite')
        (root / 'x.jsonl').write_text(''.join(export_lines(rows)))
        FOLDERS.append(root)
    return FOLDERS[0]


def mutation(rng, workdir):
    """Mutates one of the two files, and has one of its readers read it."""
    folder = workdir / 'feedback'
    shutil.copytree(folder_of_ours(), folder)
    path = folder / rng.choice(('x.sqlite', 'x.jsonl'))
    if rng.random() < 0.25:
        values.write_mutated(rng, path)
    elif is_store(path):
        _change_store(rng, path)
    else:
        lines = path.read_text().splitlines()
        for _ in range(rng.choice((1, 1, 3))):
            i = rng.randrange(len(lines))
            try:
                lines[i] = json.dumps(values.mutated(rng, json.loads(lines[i]), NAMES))
            except ValueError:
                lines[i] = lines[i][: len(lines[i]) // 2]
        path.write_bytes('\n'.join(lines).encode('utf-8', 'surrogatepass'))
    return _read(rng, path, folder)


def _read(rng, path, folder):
    what = rng.randrange(6)
    if what < 2:
        read = rng.choice(TRAINING)(path)
        return None if read and all('prompt' in record for record in read) else f'wrong: read {read[:1]}'
    if what == 2:
        labels = [record['label'] for record in judged_answers(read_answers(path))]
        return None if labels and all(0 <= label <= 1 for label in labels) else f'wrong: labels {labels}'
    if what == 3:
        rows, _ = read_judgements(path)
        numbers = summary(rows, seed=0, resamples=5, gold=gold_answers(path))
        json.dumps(flat_summary(numbers))
        return None if markdown(report_parts(str(path), numbers, [])) else 'wrong: an empty report'
    if what == 4 and is_store(path):
        with Store(path) as store:
            rows, _ = readable_rows(path)
            return None if len(list(export_lines(rows))) == len(rows) and store.item_list() is not None else 'wrong'
    if what == 4:
        with Store(folder / 'new.sqlite') as store:
            load_rows(store, path)
            return None
    list(read_items([str(path)]))
    return None


def _change_store(rng, path):
    """Writes odd values into the store's tables, as another program might; its triggers go first."""
    with sqlite3.connect(path) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f'DROP TRIGGER {name}')
        for _ in range(rng.choice((1, 1, 3))):
            table = rng.choice(('judgements', 'judgements', 'items', 'meta'))
            column, what = rng.choice(COLUMNS[table]), rng.random()
            if what < 0.05:
                statement, given = f'ALTER TABLE {table} RENAME TO gone', ()
            elif what < 0.1:
                statement, given = f'ALTER TABLE {table} RENAME COLUMN {column} TO gone', ()
            elif what < 0.2:
                statement, given = f'DELETE FROM {table} WHERE rowid % 2 = ?', (rng.randrange(2),)
            else:
                statement, given = f'UPDATE {table} SET {column} = ? WHERE rowid = ?', (_cell(rng), rng.randrange(6))
            try:
                db.execute(statement, given)
            except sqlite3.Error:  # A column that must be there, or unique; or a table that is gone by now.
                continue
    db.close()


def _cell(rng):
    value = values.any_value(rng)
    if isinstance(value, dict | list) or rng.random() < 0.4:
        return json.dumps(value)
    if isinstance(value, str):
        return value.encode('utf-8', 'surrogatepass').decode('utf-8', 'replace')
    return value if not isinstance(value, int) or abs(value) < 2**63 else b'\xff'
