"""Streams and prefetch: every record once an epoch, in a seeded order, and from any position exactly what follows."""

import json
import threading

import numpy as np
import pytest

from rlax_ft.data.loader import prefetch
from rlax_ft.data.stream import first_records, stream_batches
from rlax_ft.errors import InputError

SIZE = 37


def encode(raw):
    """One row a record, two where the number is a multiple of 5, none where it is one of 7."""
    numbers = [record['n'] for record, _ in raw if record['n'] % 7]
    return {'n': np.asarray([n for n in numbers for _ in range(1 + (n % 5 == 0))], int)}


ROWS = sorted(encode([({'n': n}, '') for n in range(SIZE)])['n'].tolist())


@pytest.fixture(params=['jsonl', 'parquet', 'folder'])
def source(request, tmp_path):
    records = [{'n': n} for n in range(SIZE)]
    if request.param == 'jsonl':
        (tmp_path / 'x.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))
        return tmp_path / 'x.jsonl'
    pytest.importorskip('datasets', reason='Parquet files and data sets of the hub need `datasets`')
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / 'set'
    folder.mkdir()
    for part, rows in enumerate((records[:20], records[20:])):
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, folder / f'train-{part}.parquet', row_group_size=8)
    if request.param == 'folder':
        return folder
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / 'x.parquet')
    return tmp_path / 'x.parquet'


def take(source, count, **given):
    stream = stream_batches(source, encode, **{'batch_size': 6, 'seed': 3, 'window': 10, **given})
    return [next(stream) for _ in range(count)]


def test_every_record_once_an_epoch_and_in_a_new_order(source):
    stream = np.concatenate([batch['n'] for batch, _ in take(source, 30)])
    epochs = stream[: len(stream) // len(ROWS) * len(ROWS)].reshape(-1, len(ROWS))
    assert all(sorted(epoch.tolist()) == ROWS for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs) > 3
    assert (take(source, 1, seed=4)[0][0]['n'] != stream[:6]).any()


def test_from_every_position_the_very_next_batch_follows(source):
    whole = take(source, 20)
    for step in range(0, 19, 3):
        position = json.loads(json.dumps(whole[step][1]))  # as a checkpoint's record keeps it
        after = take(source, 3, position=position)
        for (ours, _), (theirs, _) in zip(after, whole[step + 1 :]):
            np.testing.assert_array_equal(ours['n'], theirs['n'])


def test_the_first_records(source):
    assert [record['n'] for record, _ in first_records(source, 5)] == [0, 1, 2, 3, 4]
    assert len(first_records(source, 100)) == SIZE


def test_a_stream_without_a_row_is_an_error(tmp_path):
    (tmp_path / 'x.jsonl').write_text('{"n": 7}\n{"n": 14}\n')
    with pytest.raises(InputError, match=r'x.jsonl: not one of its records gives a row'):
        take(tmp_path / 'x.jsonl', 1)
    (tmp_path / 'x.jsonl').write_text('\n')
    with pytest.raises(InputError, match=r'x.jsonl: holds no record'):
        take(tmp_path / 'x.jsonl', 1)
    with pytest.raises(InputError, match=r'nowhere.jsonl: no such file'):
        take(tmp_path / 'nowhere.jsonl', 1)


def test_prefetch_keeps_order_makes_ahead_and_hands_on_errors():
    made, threads = [], set()

    def items():
        for i in range(10):
            made.append(i)
            threads.add(threading.current_thread())
            yield i
        raise InputError('line 11')

    ahead = prefetch(items(), depth=2)
    assert next(ahead) == 0
    seen = [0]
    with pytest.raises(InputError, match='line 11'):
        for item in ahead:
            assert len(made) <= item + 4
            seen.append(item)
    assert seen == list(range(10)) and threading.current_thread() not in threads and len(threads) == 1
    assert list(prefetch([])) == []


def test_an_endless_source_can_be_left():
    ahead = prefetch(iter(int, 1))
    assert next(ahead) == 0
    ahead.close()
    assert not any(thread.name.startswith('prefetch') for thread in threading.enumerate())
