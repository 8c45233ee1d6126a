"""Which rows make up batch number s: a pure function of seed and s, so that a resumed run needs no saved position.

Batches are made ahead of the device by a thread of their own. The data set is in memory; what is larger is read by
stream.py.
"""

import collections
import concurrent.futures
import functools
from collections.abc import Iterable, Iterator

import jax
import numpy as np


def batch_indices(size: int, step: int, *, batch_size: int, seed: int) -> np.ndarray:
    """Rows of batch `step` in an endless stream of epochs, each a fresh permutation of all rows.

    Args:
      size: N, rows of the data set.
      step: number of the batch, from 0.
      batch_size: B; a batch may span two epochs.
      seed: of the permutations; each epoch has its own.

    Returns:
      int[B].
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.asarray([_permutation(size, seed, int(place // size))[place % size] for place in places])


def whole_batch(dataset, step: int, *, batch_size: int, seed: int):
    """Batch `step` of a struct of arrays [N, ...], the same on every process: what denominators are taken from."""
    rows = batch_indices(jax.tree.leaves(dataset)[0].shape[0], step, batch_size=batch_size, seed=seed)
    return jax.tree.map(lambda leaf: leaf[rows], dataset)


def local_rows(batch):
    """This process's share of a whole batch: all of it, but in a multi-host run."""
    count, index = jax.process_count(), jax.process_index()
    return jax.tree.map(lambda leaf: np.array_split(leaf, count)[index], batch)


def local_batch(dataset, step: int, *, batch_size: int, seed: int):
    """`local_rows` of `whole_batch`, for losses whose denominator is the batch size."""
    return local_rows(whole_batch(dataset, step, batch_size=batch_size, seed=seed))


def prefetch(items: Iterable, *, depth: int = 2) -> Iterator:
    """The same items, each made up to `depth` ahead of its use by a background thread.

    Args:
      items: whose making takes time, such as batches that are picked, split over hosts and sent to the devices.
      depth: how many are made before they are asked for.
    """
    source, end = iter(items), object()
    pool = concurrent.futures.ThreadPoolExecutor(1, 'prefetch')
    try:
        pending = collections.deque(pool.submit(next, source, end) for _ in range(depth + 1))
        # An error of the thread is raised here, where its item would have been used.
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, source, end))
            yield item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@functools.lru_cache(maxsize=4)
def _permutation(size, seed, epoch):
    return np.random.default_rng([seed, epoch]).permutation(size)


def split_rows(records: list, *, seed: int, share: float = 0.1) -> tuple[list, list]:
    """(training, held-out) records: a random share, at least one, is held out; a single record serves as both."""
    if len(records) == 1:
        return records, records
    order = np.random.default_rng([seed, 3]).permutation(len(records))
    cut = max(round(len(records) * share), 1)
    return [records[i] for i in sorted(order[cut:])], [records[i] for i in sorted(order[:cut])]
