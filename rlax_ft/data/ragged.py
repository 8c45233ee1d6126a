"""Rows of tokens of unlike lengths, stored end to end: padding is made where a batch is picked, and no wider than that.

A batch is as wide as its longest row, rounded up to 32, 48, 64, 96, ..: few widths, so few programs are compiled, and
the same on every host, since they follow from the whole batch. Leaves out how text becomes tokens (codec.py).
"""

import dataclasses

import numpy as np

from rlax_ft.types import BranchBatch, TokenBatch, Unpadded

_NARROWEST = 32


def batch_width(longest: int, most: int) -> int:
    """The least of 32, 48, 64, 96, .. that holds `longest` tokens; or `most` rounded up to 8, where that is less.

    Powers of two, and the middle between each two: at most a third of the longest row is padding. What fits into 32
    columns is not worth a program of its own.

    Args:
      longest: tokens of the longest row of a batch.
      most: tokens of the longest row that any batch may have.
    """
    power = max(_NARROWEST, 1 << (max(longest, 1) - 1).bit_length())
    middle = power // 4 * 3
    width = middle if _NARROWEST <= longest <= middle else power
    return min(width, max(-(-most // 8) * 8, 8))


@dataclasses.dataclass(frozen=True)
class Ragged:
    """N rows of tokens, or N times K of them; as a leaf of a struct it is indexed by rows, as an array is.

    `rows[index]` is a TokenBatch [B, T] (or [B, K, T]) of numpy arrays, T by `batch_width`.

    Attributes:
      ids: int32[total], the tokens of all rows, one row after another.
      learned: bool[total], which of them count.
      starts: int64[rows + 1], where each row begins and the last one ends.
      shape: (N,) or (N, K).
      pad_id: what fills a batch.
      most: tokens of the longest row that a batch may have; widths never exceed it, rounded up to 8.
      left: padding stands on the left.
      offsets: int32[rows], the position of each row's first token; None where all are 0.
    """

    ids: np.ndarray
    learned: np.ndarray
    starts: np.ndarray
    shape: tuple[int, ...]
    pad_id: int
    most: int
    left: bool = False
    offsets: np.ndarray | None = None

    @classmethod
    def of(
        cls, rows: list[tuple[list[int], list[bool]]], *, pad_id: int, most: int = 0, left: bool = False
    ) -> 'Ragged':
        """N rows of (ids, which of them count)."""
        lengths = [len(ids) for ids, _ in rows]
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        ids, learned = np.empty(starts[-1], np.int32), np.empty(starts[-1], bool)
        for (row, own), start, end in zip(rows, starts, starts[1:]):
            ids[start:end], learned[start:end] = row, own
        return cls(ids, learned, starts, (len(rows),), pad_id, most or max(lengths, default=0), left)

    def __len__(self) -> int:
        """N."""
        return self.shape[0]

    def __getitem__(self, index) -> TokenBatch:
        """The rows of an index of the leading axis, padded."""
        return self.take(index).padded()

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int[N] or int[N, K]."""
        return np.diff(self.starts).reshape(self.shape)

    @property
    def counts(self) -> np.ndarray:
        """Tokens of each row that count, int[N] or int[N, K]."""
        before = np.concatenate([[0], np.cumsum(self.learned)])
        return np.diff(before[self.starts]).reshape(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take."""
        return sum(x.nbytes for x in self.arrays())

    def arrays(self) -> tuple[np.ndarray, ...]:
        """All that the rows consist of."""
        return (self.ids, self.learned, self.starts, *(() if self.offsets is None else (self.offsets,)))

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, which of them count) of one row."""
        at = slice(self.starts[number], self.starts[number + 1])
        return self.ids[at], self.learned[at]

    def reshape(self, *shape: int) -> 'Ragged':
        """The same rows, K of them together."""
        return dataclasses.replace(self, shape=shape)

    def take(self, index) -> 'Ragged':
        """Some rows, still without padding."""
        numbers = np.arange(np.prod(self.shape)).reshape(self.shape)[index]
        flat = numbers.reshape(-1)
        return self.spans(flat, self.starts[flat], self.starts[flat + 1], numbers.shape)

    def spans(self, rows: np.ndarray, begins: np.ndarray, ends: np.ndarray, shape: tuple[int, ...]) -> 'Ragged':
        """New rows, each a span of `ids`; their offsets are those of `rows`."""
        lengths = ends - begins
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        at = np.arange(starts[-1]) + np.repeat(begins - starts[:-1], lengths)
        offsets = None if self.offsets is None else self.offsets[rows]
        return dataclasses.replace(
            self, ids=self.ids[at], learned=self.learned[at], starts=starts, shape=tuple(shape), offsets=offsets
        )

    def padded(self, width: int | None = None) -> TokenBatch:
        """All rows as a TokenBatch [N, T] or [N, K, T] of numpy arrays; T by `batch_width` where it is not given."""
        lengths = np.diff(self.starts)
        width = width or batch_width(int(lengths.max(initial=0)), self.most)
        column = np.arange(width)[None] - (width - lengths[:, None] if self.left else 0)
        real = (column >= 0) & (column < lengths[:, None])
        tokens, mask = np.full(real.shape, self.pad_id, np.int32), np.zeros(real.shape, np.float32)
        tokens[real], mask[real] = self.ids, self.learned
        positions = np.broadcast_to(np.maximum(column, 0), real.shape)
        if self.offsets is not None:
            positions = np.where(real, positions + self.offsets[:, None], 0)
        shape = (*self.shape, width)
        return TokenBatch(
            tokens=tokens.reshape(shape),
            mask=mask.reshape(shape),
            positions=positions.astype(np.int32).reshape(shape),
            segment_ids=real.astype(np.int32).reshape(shape),
        )


def join(parts: list[Ragged]) -> Ragged:
    """The rows of several, one after another; their shapes differ in N alone."""
    starts = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part.starts) for part in parts]))])
    offsets = None if parts[0].offsets is None else np.concatenate([part.offsets for part in parts])
    return dataclasses.replace(
        parts[0],
        ids=np.concatenate([part.ids for part in parts]),
        learned=np.concatenate([part.learned for part in parts]),
        starts=starts.astype(np.int64),
        shape=(sum(len(part) for part in parts), *parts[0].shape[1:]),
        most=max(part.most for part in parts),
        offsets=offsets,
    )


@dataclasses.dataclass(frozen=True)
class RaggedBranches:
    """N prompts with K responses to each; `rows[index]` is a BranchBatch, its two widths by `batch_width`.

    Attributes:
      prompts: Ragged (N,), left-padded.
      responses: Ragged (N, K), whose positions go on from the prompts'.
    """

    prompts: Ragged
    responses: Ragged

    def __len__(self) -> int:
        """N."""
        return len(self.prompts)

    def __getitem__(self, index) -> BranchBatch:
        """The rows of an index of the leading axis, padded."""
        return BranchBatch(prompt=self.prompts[index], responses=self.responses[index])

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, K)."""
        return self.responses.shape

    def arrays(self) -> tuple[np.ndarray, ...]:
        """All that the rows consist of."""
        return self.prompts.arrays() + self.responses.arrays()


def count_learned(rows: TokenBatch | BranchBatch | Unpadded) -> np.ndarray:
    """Tokens of each row that count, or of each response, [N] or [N, K]; padded or not."""
    if isinstance(rows, BranchBatch | RaggedBranches):
        rows = rows.responses
    return rows.counts if isinstance(rows, Ragged) else np.asarray(rows.mask).sum(axis=-1)
