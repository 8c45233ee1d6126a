"""Batches from a source that is never wholly in memory, in a seeded order, with an exact position.

Records are read in windows, and the rows of each window are shuffled. A position is where a window began and how many
of its rows have been used: a few numbers for the checkpoint's record (and `datasets`' own state for a data set of the
hub), from which the very next batch follows. Every process of a multi-host run reads all and takes its own rows, so
that denominators, and a resumed run on another number of hosts, stay the same. Leaves out data in memory (loader.py).
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np

from rlax_ft.data.ragged import Ragged, join
from rlax_ft.data.sources import is_hub_id, load_hub, read_raw, without_nulls
from rlax_ft.errors import InputError

START = {'epoch': 0, 'record': 0, 'source': None, 'offset': 0}


def stream_batches(
    source: str | Path,
    encode: Callable,
    *,
    batch_size: int,
    seed: int,
    window: int = 10_000,
    position: dict | None = None,
) -> Iterator[tuple]:
    """Yields (batch, position after it) without end, epoch after epoch.

    Args:
      source: a file, or the id of a data set on the hub; see sources.py.
      encode: makes a list of (raw record, where it stands) into a struct of `Ragged` rows, or of numpy arrays
        [N, ...] of one width; N may be 0.
      batch_size: B, rows of a batch; it may span windows and epochs.
      seed: of the order within windows; each window has its own.
      window: records that are shuffled together.
      position: as it came with an earlier batch; the beginning when absent.

    Raises:
      InputError: the source cannot be read, or a whole epoch of it gives no row.
    """
    parts, missing = [], batch_size
    offset, rows_of_epoch = (position or START)['offset'], None
    for start, records in _windows(source, position or START, window):
        if start['record'] == 0:
            if rows_of_epoch == 0:
                raise InputError(f'{source}: not one of its records gives a row to learn from')
            rows_of_epoch = 0
        rows = encode(records)
        size = jax.tree.leaves(rows)[0].shape[0]
        rows_of_epoch = None if rows_of_epoch is None else rows_of_epoch + size
        order = np.random.default_rng([seed, start['epoch'], start['record']]).permutation(size)
        while offset < size:
            index = order[offset : offset + missing]
            # Rows without padding stay so until the batch is whole: its width is that of all its rows.
            parts.append(jax.tree.map(partial(_take, index=index), rows))
            offset, missing = offset + len(index), missing - len(index)
            if not missing:
                yield jax.tree.map(_whole, *parts), {**start, 'offset': offset}
                parts, missing = [], batch_size
        offset = 0


def first_records(source: str | Path, count: int) -> list[tuple[dict, str]]:
    """The first (raw record, where it stands) of a source, and no more read than that."""
    return next(_windows(source, START, count))[1]


def _take(leaf, index):
    return leaf.take(index) if isinstance(leaf, Ragged) else leaf[index]


def _whole(*leaves):
    return join(list(leaves)).padded() if isinstance(leaves[0], Ragged) else np.concatenate(leaves)


def _windows(source, at, window):
    """(position, records) of each window; none spans two epochs."""
    epoch, record, state = at['epoch'], at['record'], at['source']
    while True:
        dataset = load_hub(source, streaming=True) if Path(source).is_dir() or is_hub_id(source) else None
        if dataset is None:
            raw = read_raw(source, start=record)
        else:
            if state is not None:
                dataset.load_state_dict(state)
            numbered = enumerate(map(without_nulls, dataset), record + 1)
            raw = ((row, f'{source}, record {number}') for number, row in numbered)
        while records := list(itertools.islice(raw, window)):
            yield {'epoch': epoch, 'record': record, 'source': state}, records
            record += len(records)
            state = None if dataset is None else dataset.state_dict()
        if record == 0:
            raise InputError(f'{source}: holds no record')
        epoch, record, state = epoch + 1, 0, None
