"""Packing: several short rows in one of full length, told apart by segment ids, positions from 0 in each.

Best-fit decreasing: the longest first, each into the row that it leaves the least room in. A token attends within its
own segment, so a packed row's log-probabilities are those of its rows one by one. Leaves out the sums by segment that
a loss on packed pairs needs (ops/segments.py).
"""

import bisect

import jax
import numpy as np

from rlax_ft.data.ragged import Ragged, batch_width
from rlax_ft.data.rows import take_rows
from rlax_ft.errors import InputError
from rlax_ft.types import PackedPairs, PreferenceBatch, TokenBatch


def best_fit(sizes: np.ndarray, capacity: int) -> list[list[int]]:
    """Which items share a bin, by best-fit decreasing (11/9 of the optimal number of bins and at most one more).

    Args:
      sizes: int[N], or int[N, D] for items that need room in each of D parts of their bin.
      capacity: of a bin, or of each of its parts.

    Returns:
      Lists of item numbers, in the order of the first of each.

    Raises:
      InputError: an item is larger than a bin.
    """
    sizes = np.asarray(sizes, int)
    sizes = sizes[:, None] if sizes.ndim == 1 else sizes
    if sizes.max(initial=0) > capacity:
        raise InputError(f'a row of {sizes.max()} tokens does not fit into packed rows of {capacity}')
    bins: list[list[int]] = []
    room: list[list[int]] = []
    by_room: list[tuple[int, int]] = []  # (room in the fullest part, bin), sorted.
    smallest = sizes.min(axis=0, initial=capacity)
    for item in np.argsort(-sizes.sum(axis=1), kind='stable').tolist():
        need = sizes[item].tolist()
        # In one part, the first bin with the room is the best. Of several parts another may be short: a few bins are
        # tried, then the first in which each part has room for the largest need.
        start, sure = (bisect.bisect_left(by_room, (least, -1)) for least in (min(need), max(need)))
        near = range(start, min(start + 64, sure))
        place = next((i for i in near if all(n <= r for n, r in zip(need, room[by_room[i][1]]))), sure)
        if place == len(by_room):
            chosen = len(bins)
            bins.append([])
            room.append([capacity] * sizes.shape[1])
        else:
            chosen = by_room.pop(place)[1]
        bins[chosen].append(item)
        room[chosen] = [r - n for r, n in zip(room[chosen], need)]
        if (room[chosen] >= smallest).all():
            bisect.insort(by_room, (min(room[chosen]), chosen))
    return sorted((sorted(items) for items in bins), key=lambda items: items[0])


def pack_rows(rows: TokenBatch | Ragged, length: int) -> TokenBatch:
    """Rows [N, T] with one segment each, packed into as few rows [R, length] as best-fit finds.

    Args:
      rows: what `rows.ragged_rows` or `rows.token_rows` gives.
      length: T of the packed rows.

    Raises:
      InputError: a row is longer than `length`.
    """
    return _fill(rows, best_fit(row_lengths(rows), length), length)


def pack_pairs(pairs: PreferenceBatch, length: int) -> PackedPairs:
    """Pairs [N] packed into as few rows [R, length] as best-fit finds, both sides of a pair in the same row.

    Args:
      pairs: what `rows.preference_rows` gives, prompts not shared.
      length: T of the packed rows, on either side.

    Raises:
      InputError: a side is longer than `length`.
    """
    chosen, rejected = (_side(pairs.candidates, side) for side in (0, 1))
    bins = best_fit(np.stack([row_lengths(chosen), row_lengths(rejected)], axis=1), length)
    by_segment = np.zeros((len(bins), max(map(len, bins))), int)
    exists = np.zeros(by_segment.shape, bool)
    for row, items in enumerate(bins):
        by_segment[row, : len(items)], exists[row, : len(items)] = items, True

    def spread(values):
        """[N, ...] -> [R, S, ...]."""
        if values is None:
            return None
        at = exists.reshape(exists.shape + (1,) * (values.ndim - 1))
        return np.where(at, values[by_segment], 0).astype(np.float32)

    return PackedPairs(
        chosen=_fill(chosen, bins, length),
        rejected=_fill(rejected, bins, length),
        exists=exists,
        label=spread(pairs.label),
        margin=spread(pairs.margin),
        weight=spread(pairs.weight),
        ref_logps=spread(pairs.ref_logps),
    )


def row_lengths(rows: TokenBatch | Ragged) -> np.ndarray:
    """How many tokens each row has, int[N], padding left out."""
    if isinstance(rows, Ragged):
        return rows.lengths
    return (np.asarray(rows.segment_ids) > 0).sum(axis=-1)


def padding_share(batch) -> float:
    """The share of a batch's positions that are padding, of all TokenBatches in it."""
    is_tokens = lambda leaf: isinstance(leaf, TokenBatch)  # noqa: E731
    parts = [part for part in jax.tree.leaves(batch, is_leaf=is_tokens) if is_tokens(part)]
    return 1.0 - sum(row_lengths(part).sum() for part in parts) / sum(part.tokens.size for part in parts)


def batch_padding(rows: Ragged, *, batch_size: int = 32) -> float:
    """The share of positions that are padding where batches of rows are drawn at random."""
    lengths = np.random.default_rng(0).permutation(rows.lengths.reshape(-1))
    batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    return 1.0 - lengths.sum() / sum(len(batch) * batch_width(int(batch.max()), rows.most) for batch in batches)


def _side(candidates, side):
    """One of each row's candidates."""
    index = slice(None), side
    return candidates.take(index) if isinstance(candidates, Ragged) else take_rows(candidates, index)


def _fill(rows, bins, length):
    shape, lengths = (len(bins), length), row_lengths(rows)
    if isinstance(rows, Ragged):
        padding, row = rows.pad_id, rows.row
    else:
        unused = rows.tokens[rows.segment_ids == 0]
        padding = unused[0] if unused.size else 0
        row = lambda i: (rows.tokens[i, : lengths[i]], rows.mask[i, : lengths[i]])  # noqa: E731
    packed = TokenBatch(
        tokens=np.full(shape, padding, np.int32),
        mask=np.zeros(shape, np.float32),
        positions=np.zeros(shape, np.int32),
        segment_ids=np.zeros(shape, np.int32),
    )
    for number, items in enumerate(bins):
        end = 0
        for segment, item in enumerate(items, 1):
            start, end = end, end + lengths[item]
            packed.tokens[number, start:end], packed.mask[number, start:end] = row(item)
            packed.positions[number, start:end] = np.arange(end - start)
            packed.segment_ids[number, start:end] = segment
    return packed
