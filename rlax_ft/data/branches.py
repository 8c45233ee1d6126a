"""From rows that repeat a prompt to branches that share it, so that the model reads each prompt once.

Leaves out what is then computed: models/scoring.py gives the same numbers for both.
"""

import jax
import numpy as np

from rlax_ft.types import BranchBatch, PreferenceBatch, RankingBatch, TokenBatch


def share_prompts(batch: PreferenceBatch | RankingBatch) -> PreferenceBatch | RankingBatch:
    """The same comparisons or rankings with their prompts shared; as they are where that would save nothing.

    Args:
      batch: a struct of numpy arrays whose rows hold one segment each, the prompt first.
    """
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
