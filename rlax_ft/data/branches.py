"""From rows that repeat a prompt to branches that share it, so that the model reads each prompt once.

Leaves out what is then computed: models/scoring.py gives the same numbers for both.
"""

import dataclasses

import jax
import numpy as np

from rlax_ft.data.ragged import Ragged, RaggedBranches
from rlax_ft.types import BranchBatch, PreferenceBatch, RankingBatch, TokenBatch


def share_prompts(batch: PreferenceBatch | RankingBatch) -> PreferenceBatch | RankingBatch:
    """The same comparisons or rankings with their prompts shared; as they are where that would save nothing.

    Args:
      batch: a struct of numpy arrays, or of `Ragged` candidates, whose rows hold one segment each, the prompt first.
    """
    if isinstance(batch.candidates, RaggedBranches):
        return batch
    if isinstance(batch.candidates, Ragged):
        branches = shared_ragged(batch.candidates)
        return batch if branches is None else batch.replace(candidates=branches)
    rows = jax.tree.map(np.asarray, batch.candidates)
    branches = rows if isinstance(rows, BranchBatch) else shared(rows)
    if branches is None:
        return batch
    return batch.replace(candidates=branches)


def shared(rows: TokenBatch, *, always: bool = False) -> BranchBatch | None:
    """Candidates [N, K, T] as branches; None where prompts differ, rows are packed, or no column would be saved.

    The prompt is what stands before the first token that counts.

    Args:
      rows: numpy arrays.
      always: also where no column is saved.
    """
    real, length = rows.segment_ids > 0, rows.tokens.shape[-1]
    prompts, ends = np.argmax(rows.mask > 0, axis=-1), real.sum(axis=-1)
    cut, width = (max(-(-int(x.max()) // 8) * 8, 8) for x in (prompts, ends - prompts))
    if not always and cut + rows.tokens.shape[1] * width >= rows.tokens.shape[1] * length:
        return None
    packed = rows.segment_ids.max(initial=0) > 1 or not (real[..., :1].all() and (rows.mask.max(axis=-1) > 0).all())
    at = np.arange(cut) - (cut - prompts[..., None])
    heads = _take(rows, at, at >= 0)
    if packed or (prompts != prompts[:, :1]).any() or (heads.tokens != heads.tokens[:, :1]).any():
        return None
    at = prompts[..., None] + np.arange(width)
    responses = _take(rows, at, at < ends[..., None])
    prompt = jax.tree.map(lambda leaf: leaf[:, 0], heads)
    return BranchBatch(prompt=prompt.replace(mask=np.zeros_like(prompt.mask)), responses=responses)


def shared_ragged(rows: Ragged, *, always: bool = False) -> RaggedBranches | None:
    """The same of candidates that are not padded yet."""
    count, many = rows.shape
    lengths, begins = np.diff(rows.starts), rows.starts[:-1]
    if not lengths.all():
        return None
    place = np.where(rows.learned, np.arange(len(rows.ids)) - np.repeat(begins, lengths), len(rows.ids))
    prompts = np.minimum.reduceat(place, begins)
    cut, width, length = (max(-(-int(x.max()) // 8) * 8, 8) for x in (prompts, lengths - prompts, lengths))
    if not 0 < prompts.min() <= prompts.max() < len(rows.ids) or not (always or cut + many * width < many * length):
        return None
    for first in range(0, count * many, many):
        start = rows.ids[begins[first] : begins[first] + prompts[first]]
        for other in range(first + 1, first + many):
            if not np.array_equal(start, rows.ids[begins[other] : begins[other] + prompts[other]]):
                return None
    firsts, every = np.arange(0, count * many, many), np.arange(count * many)
    heads = rows.spans(firsts, begins[firsts], begins[firsts] + prompts[firsts], (count,))
    responses = rows.spans(every, begins + prompts, rows.starts[1:], rows.shape)
    return RaggedBranches(
        dataclasses.replace(heads, left=True, most=cut),
        dataclasses.replace(responses, offsets=prompts.astype(np.int32), most=width),
    )


def _take(rows, at, real):
    """Columns `at` of every row where `real`, and padding elsewhere."""
    at = np.clip(at, 0, rows.tokens.shape[-1] - 1)
    taken = jax.tree.map(lambda leaf: np.take_along_axis(leaf, at, axis=-1), rows)
    return TokenBatch(
        tokens=np.where(real, taken.tokens, 0).astype(np.int32),
        mask=np.where(real, taken.mask, 0.0).astype(np.float32),
        positions=np.where(real, taken.positions, 0).astype(np.int32),
        segment_ids=real.astype(np.int32),
    )
