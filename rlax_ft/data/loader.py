"""Which rows make up batch number s: a pure function of seed and s, so that a resumed run needs no saved position.

Batches are made ahead of the device by a thread of their own. The data set is in memory; what is larger is read by
stream.py.
"""

import collections
import concurrent.futures
import functools
import json
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from rlax_ft.types import PackedPairs, StepBatch


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


def count_examples(batch) -> np.float32:
    """How many pairs, rankings, answers or steps a batch has: what the mean over them divides by.

    Args:
      batch: a struct of types.py, or a tuple that begins with one.
    """
    if isinstance(batch, tuple):
        return count_examples(batch[0])
    if isinstance(batch, StepBatch):
        return np.float32(batch.rows.mask.sum())
    if isinstance(batch, PackedPairs):
        return np.float32(batch.exists.sum())
    return np.float32(jax.tree.leaves(batch)[0].shape[0])


def local_rows(batch):
    """This process's share of a whole batch: all of it, but in a multi-host run."""
    count, index = jax.process_count(), jax.process_index()
    return jax.tree.map(lambda leaf: np.array_split(leaf, count)[index], batch)


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


def split_rows(records: list, *, seed: int, share: float = 0.1, by_prompt: bool = True) -> tuple[list, list]:
    """(training, held-out) records, in their order; all records of one prompt stand on one side.

    Prompts are drawn at random as long as all their records fit into the share; the one with the fewest is held out
    where none fits. Records without a prompt, or with an empty one, are drawn one by one; so are those of a data set
    that has one prompt for all. A single record serves as both.

    Args:
      records: whose "prompt" is a text or a message list; tools belong to it.
      seed: of the draw.
      share: of the records.
      by_prompt: False draws records one by one, for a task whose few prompts are all that it will ever ask.
    """
    groups: dict[str | int, list[int]] = collections.defaultdict(list)
    for index, record in enumerate(records):
        groups[_prompt_key(record, index) if by_prompt else index].append(index)
    if len(records) == 1:
        return records, records
    if len(groups) == 1:
        return split_rows(records, seed=seed, share=share, by_prompt=False)
    members, room = list(groups.values()), max(round(len(records) * share), 1)
    held_out: set[int] = set()
    for group in np.random.default_rng([seed, 3]).permutation(len(members)):
        if len(held_out) + len(members[group]) <= room:
            held_out.update(members[group])
    fewest = min(members, key=len)
    held_out = held_out or set(fewest)
    training, others = ([r for i, r in enumerate(records) if (i in held_out) is side] for side in (False, True))
    return training, others


def _prompt_key(record, index):
    if not isinstance(record, dict) or not record.get('prompt'):
        return index
    prompt = record['prompt']
    return prompt if isinstance(prompt, str) else json.dumps([prompt, record.get('tools')], sort_keys=True)
