"""The store: append-only, its JSONL loads back to the same rows, one server a file, damage is told."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from rlax_ft.data.feedback import read_store
from rlax_ft.data.records import read_pairs
from rlax_ft.errors import InputError
from rlax_ft.feedback.items import make_item, read_items
from rlax_ft.feedback.statistics import read_judgements
from rlax_ft.feedback.store import Store, load_rows, readable_rows
from rlax_ft.harness.loading import load_script


def judged(make_page, pairs, count=3, **options):
    """A page on which Ann has judged so many items in several ways."""
    page = make_page(pairs(count), criteria=['helpful'], **options)
    ann = page.login('Ann')
    ways = [
        {
            'choice': 'A',
            'strength': 3,
            'note': 'ä "quoted" 🎈',
            'edits': [None, 'Better.'],
            'ratings': [{'helpful': 4}, {}],
        },
        {'choice': 'tie'},
        {'choice': 'skip', 'reason': 'hard'},
        {'choice': 'both_bad'},
    ]
    for i in range(count):
        status, answer = page.judge(ann, page.ask(ann), f'{i:032x}', **ways[i % 4])
        assert status == 200, answer
    return page, ann


def test_an_exported_file_loads_back_to_the_same_rows(make_page, pairs, tmp_path):
    page, ann = judged(make_page, pairs, 4)
    assert page.post('undo', {'id': 'f' * 32}, ann)[0] == 200
    rows = page.rows()
    assert [row['choice'] for row in rows] == ['A', 'tie', 'skip', 'both_bad', 'undo']
    script = load_script('experiments/collect_feedback.py')
    exported = tmp_path / 'judgements.jsonl'
    script.collect(script.CollectFeedbackSettings(out=str(page.path), export=str(exported)))
    assert [json.loads(line) for line in exported.read_text().splitlines()] == rows
    again = tmp_path / 'again.sqlite'
    script.collect(script.CollectFeedbackSettings(out=str(again), judgements=str(exported)))
    assert [row for row, _ in read_store(again)] == rows
    # Loading twice changes nothing.
    script.collect(script.CollectFeedbackSettings(out=str(again), judgements=str(exported)))
    assert [row for row, _ in read_store(again)] == rows


def test_a_row_says_all(make_page, pairs):
    page, _ = judged(make_page, pairs, 1)
    (row,) = page.rows()
    a, b = row['shown']
    assert row['ranks'][a] == 0 and row['ranks'][b] == 1 and row['strength'] == 3 and row['note'] == 'ä "quoted" 🎈'
    assert row['edits'][b] == 'Better.' and row['ratings'][a] == {'helpful': 4} and row['policies'] == ['good', 'bad']
    assert row['start_ms'] == 1 and row['active_ms'] == 4000 and row['saved_ms'] > 1_700_000_000_000
    assert row['guideline'] == 'guideline' and row['versions']['rlax_ft'] and row['session'] and len(row['hash']) == 64


def test_nothing_is_changed_or_deleted(make_page, pairs):
    page, _ = judged(make_page, pairs, 1)
    with sqlite3.connect(page.path) as db:
        for statement in ('UPDATE judgements SET choice = "B"', 'DELETE FROM judgements', 'DELETE FROM items'):
            with pytest.raises(sqlite3.IntegrityError, match='append-only'):
                db.execute(statement)
        assert db.execute('PRAGMA journal_mode').fetchone() == ('wal',)
    assert page.store._db.execute('PRAGMA synchronous').fetchone() == (2,)  # FULL


def test_a_second_server_is_refused_and_readers_are_not(make_page, pairs):
    page, _ = judged(make_page, pairs, 1)
    with pytest.raises(InputError, match=r'--out=.*: another server has this file; stop that one') as caught:
        Store(page.path)
    assert '\n' not in str(caught.value)
    assert len(read_judgements(page.path)[0]) == 1


def test_a_damaged_file_is_told_with_what_could_be_read(make_page, pairs, tmp_path, caplog):
    page, _ = judged(make_page, pairs, 40)
    page.store.close()
    data = bytearray(page.path.read_bytes())
    db = sqlite3.connect(page.path)
    page_size = db.execute('PRAGMA page_size').fetchone()[0]
    db.close()
    last = len(data) // page_size - 2
    data[last * page_size : (last + 1) * page_size] = b'\xff' * page_size
    bad = tmp_path / 'bad.sqlite'
    bad.write_bytes(data)
    rows, fault = readable_rows(bad)
    assert fault.startswith('damaged') and 0 < len(rows) < 40
    with pytest.raises(InputError, match=rf'bad.sqlite: damaged .*; {len(rows)} judgements can be read') as caught:
        Store(bad)
    assert '\n' not in str(caught.value)
    script = load_script('experiments/collect_feedback.py')
    script.collect(script.CollectFeedbackSettings(out=str(bad), export=str(tmp_path / 'saved.jsonl')))
    assert len((tmp_path / 'saved.jsonl').read_text().splitlines()) == len(rows) and 'damaged' in caplog.text


@pytest.mark.parametrize(
    ('content', 'message'), [(b'no database at all' * 99, 'is no SQLite file'), ('other', 'holds no feedback')]
)
def test_what_is_no_store_is_one_line(tmp_path, content, message):
    path = tmp_path / 'x.sqlite'
    if content == 'other':
        with sqlite3.connect(path) as db:
            db.execute('CREATE TABLE t (x)')
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    for use in (Store, lambda p: list(read_store(p)), read_judgements):
        with pytest.raises(InputError, match=message):
            use(path)
    assert path.read_bytes() == before


def test_what_was_answered_survives_a_kill(tmp_path):
    """A writer that is killed: all that it had said was saved is there."""
    code = (
        'import sys; from rlax_ft.feedback.store import Store; from rlax_ft.feedback.items import make_item\n'
        'from rlax_ft.feedback.judgements import judgement\n'
        'store = Store(sys.argv[1]); item = make_item("p", [{"text": "a"}, {"text": "b"}], name="0")\n'
        'store.add_items([item])\n'
        'for i in range(100000):\n'
        '    row = judgement("p", ["a", "b"], [0, 1], f"n{i}", item="0")\n'
        '    store.append([row]); print(row["id"], flush=True)\n'
    )
    path = tmp_path / 'feedback.sqlite'
    writer = subprocess.Popen([sys.executable, '-c', code, str(path)], stdout=subprocess.PIPE, text=True)
    told = [writer.stdout.readline().strip() for _ in range(25)]
    writer.send_signal(signal.SIGKILL)
    told += [line.strip() for line in writer.stdout if line.endswith('\n')]
    writer.wait()
    with Store(path) as store:
        kept = [mark[0] for mark in store.marks()]
    assert set(told) <= set(kept) and len(kept) == len(set(kept)) and len(told) >= 25


def test_rows_that_were_changed_are_refused(make_page, pairs, tmp_path):
    page, _ = judged(make_page, pairs, 1)
    (row,) = page.rows()
    for change, message in (
        ({'prompt': 'another'}, 'field "hash" is not that'),
        ({'ranks': [0]}, 'field "ranks" must be null or 2 whole numbers'),
        ({'choice': 'C'}, 'field "choice" is \'C\''),
        ({'strength': 9}, 'field "strength" is 9'),
        ({'feedback': 7}, 'this version reads 1'),
        ({'prompt': None}, 'field "prompt" must be a text or a list of messages'),
        ({'completions': ['a', 5]}, 'field "completions" must be a list of two or more responses'),
        ({'supersedes': {}}, 'field "supersedes" must be null or a text'),
        ({'active_ms': 'long'}, 'field "active_ms" must be null or a whole number'),
        ({'shown': [0, 0]}, 'field "shown" must be null or the order in which the 2 responses were shown'),
        ({'ratings': [{'good': 'x'}, None]}, 'field "ratings" must be null or 2 objects of numbers'),
        ({'policies': 5}, 'field "policies" must be null or 2 texts'),
    ):
        (tmp_path / 'changed.jsonl').write_text(json.dumps({**row, **change}) + '\n')
        with Store(tmp_path / 'new.sqlite') as store, pytest.raises(InputError, match=message):
            load_rows(store, tmp_path / 'changed.jsonl')
        # Whatever reads rows says the same.
        for reads in (read_pairs, read_judgements):
            if 'prompt' not in change or change['prompt'] is None:
                with pytest.raises(InputError, match=message):
                    reads(tmp_path / 'changed.jsonl')


def test_an_item_has_one_prompt_and_the_same_responses(make_page, pairs, tmp_path):
    page, _ = judged(make_page, pairs, 1)
    (row,) = page.rows()
    rows = [row, {**row, 'id': 'b', 'prompt': 'another'}]
    (tmp_path / 'two.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    for reads in (read_pairs, read_judgements):
        with pytest.raises(InputError, match=r'line 2: item .* has another prompt or responses than in .*line 1'):
            reads(tmp_path / 'two.jsonl')


def test_a_store_whose_cells_were_changed_keeps_its_other_rows(make_page, pairs):
    page, _ = judged(make_page, pairs, 2)
    page.store.close()
    with contextlib.closing(sqlite3.connect(page.path)) as db, db:
        db.execute('DROP TRIGGER judgements_no_update')
        db.execute("UPDATE judgements SET ranks = '[5]' WHERE seq = 1")
    rows, fault = readable_rows(page.path)
    assert len(rows) == 1 and 'judgement 1: field "ranks" must be' in fault
    with pytest.raises(InputError, match='judgement 1: field "ranks" must be'):
        read_pairs(page.path)


def test_items_of_every_form(tmp_path):
    def items(*records, **how):
        (tmp_path / 's.jsonl').write_text('\n'.join(map(json.dumps, records)))
        return [item['content'] for item in read_items([str(tmp_path / 's.jsonl')], **how)]

    (one,) = items({'prompt': 'p', 'completions': ['a', 'b'], 'policies': ['x', 'y'], 'topic': 'z', 'scores': [1, 2]})
    assert one['completions'] == ['a', 'b'] and one['policies'] == ['x', 'y'] and one['fields'] == {'topic': 'z'}
    assert one['scores'] == [[1], [2]]
    (one,) = items({'prompt': 'p', 'responses': [{'text': 'a', 'policy': 'x', 'checkpoint': 3}, {'content': 'b'}]})
    assert one['policies'] == ['x', None] and one['checkpoints'] == [3, None] and one['completions'] == ['a', 'b']
    (one,) = items({'prompt': [{'role': 'user', 'content': 'q'}], 'chosen': 'a', 'rejected': 'b'}, purpose='gold')
    assert one['answer'] == [0, 1]
    (one,) = items({'instruction': 'i', 'response1': 'a', 'response2': 'b', 'annotator1': 1, 'cmp_key': 'x_y'})
    assert one['policies'] == ['x', 'y'] and one['prompt'] == [{'role': 'user', 'content': 'i'}]
    samples = [{'step': s, 'prompt': p, 'completion': f'{p}{s}'} for p in 'pq' for s in (1, 2, 3)]
    assert [one['completions'] for one in items(*samples)] == [['p1', 'p2'], ['q1', 'q2']]
    assert [one['completions'] for one in items(*samples, together=3)] == [['p1', 'p2', 'p3'], ['q1', 'q2', 'q3']]


@pytest.mark.parametrize(
    ('record', 'message'),
    [
        ({'completions': ['a', 'b']}, 'no field "prompt"'),
        ({'prompt': 'p', 'completions': ['a']}, '2 to 9 "completions"'),
        ({'prompt': 'p', 'completions': ['a', 3]}, 'a response is a number'),
        ({'prompt': 'p', 'completions': ['a', 'b'], 'policies': ['x']}, 'field "policies" must be a list of 2'),
        ({'prompt': 'p', 'completions': ['a', 'a']}, 'not one item with two different responses'),
        ({'prompt': 'p', 'completion': 'a'}, 'not one item with two different responses'),
        ({'prompt': 3, 'completions': ['a', 'b']}, 'field "prompt" is a number'),
        ({'prompt': 'p', 'completions': ['a', 'b'], 'scores': ['x', 'y']}, '"scores" must be numbers'),
    ],
)
def test_samples_that_make_no_items_are_one_line(tmp_path, record, message):
    (tmp_path / 's.jsonl').write_text(json.dumps(record))
    with pytest.raises(InputError, match=message) as caught:
        list(read_items([str(tmp_path / 's.jsonl')]))
    assert '\n' not in str(caught.value)


def test_an_id_belongs_to_one_item(tmp_path):
    sides = [{'text': 'a'}, {'text': 'b'}]
    with Store(tmp_path / 'f.sqlite') as store:
        assert store.add_items([make_item('p', sides, name='1')]) == 1
        assert store.add_items([make_item('p', sides, name='1')]) == 0
        with pytest.raises(InputError, match="item '1' is there already with another prompt"):
            store.add_items([make_item('q', sides, name='1')])
        # With what SQLite keeps beside it: all of them hold what people wrote.
        files = sorted(path.name for path in tmp_path.glob('f.sqlite*'))
        assert files == ['f.sqlite', 'f.sqlite-shm', 'f.sqlite-wal', 'f.sqlite.lock']
        assert all(os.stat(tmp_path / name).st_mode & 0o077 == 0 for name in files[:3])
