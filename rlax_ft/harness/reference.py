"""Log-probabilities of a run's data under its reference policy: computed once, and kept in the run folder.

What is kept is named by its content, so that a resumed run finds it and any change of data or reference does not. A
reference that moves is scored in every step instead. Leaves out what is learned from them.
"""

import hashlib
import importlib.metadata

import jax
import numpy as np

from rlax_ft.data.ragged import Ragged, RaggedBranches
from rlax_ft.harness.run import Run
from rlax_ft.sampling.text import map_rows
from rlax_ft.types import PreferenceBatch, RankingBatch


def with_reference(run: Run, reference, params, rows: PreferenceBatch | RankingBatch, batch_size: int, how: str = ''):
    """The rows with the reference's log-probabilities of their candidates.

    Args:
      run: whose folder keeps them.
      reference: `f(candidates) -> float[B, K]`.
      params: of the reference, by which the file is named; None keeps no file.
      rows: comparisons or rankings, their prompts shared or not.
      batch_size: rows at once.
      how: what else the numbers depend on: the model's configuration with its dtype and kernel.
    """
    path = (
        None
        if params is None or jax.process_count() > 1
        else run.folder / f'reference-{_digest(params, rows, how)}.npy'
    )
    if path is not None and path.exists():
        logps = np.load(path)
    else:
        logps = map_rows(reference, rows.candidates, batch_size=batch_size)
        if path is not None:
            np.save(path.with_suffix('.tmp.npy'), logps)
            path.with_suffix('.tmp.npy').replace(path)
    return referred(rows, logps)


def referred(rows: PreferenceBatch | RankingBatch, logps):
    """The rows with these log-probabilities of their candidates, float[B, K], as the reference's."""
    return rows.replace(ref_logps=logps)


def _digest(params, rows, how) -> str:
    content = hashlib.blake2b(f'{importlib.metadata.version("rlax_ft")} {how}'.encode(), digest_size=8)
    unpadded = isinstance(rows.candidates, Ragged | RaggedBranches)
    for leaf in jax.tree.leaves((params, rows.candidates.arrays() if unpadded else rows.candidates)):
        content.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
    return content.hexdigest()
