"""Sums and last entries by segment, against loops in numpy."""

import numpy as np

from rlax_ft.ops.segments import segment_last, segment_sums

IDS = np.array([[1, 1, 2, 2, 2, 3, 0], [1, 1, 1, 1, 0, 0, 0]])
MASK = np.array([[0, 1, 0, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0, 0]])
X = np.random.default_rng(0).normal(size=IDS.shape).astype(np.float32)


def test_sums_and_last_entries():
    sums, last = np.asarray(segment_sums(X, IDS, 3)), np.asarray(segment_last(X, MASK, IDS, 3))
    for row in range(2):
        for s in range(3):
            members = IDS[row] == s + 1
            assert np.isclose(sums[row, s], X[row][members].sum(), atol=1e-6)
            counted = X[row][members & (MASK[row] > 0)]
            assert np.isclose(last[row, s], counted[-1] if len(counted) else 0.0)


def test_padding_belongs_to_no_segment_even_if_it_is_nan():
    x = X.copy()
    x[:, -1] = np.nan
    assert np.isfinite(segment_sums(x, IDS, 3)).all() and np.isfinite(segment_last(x, MASK, IDS, 3)).all()
