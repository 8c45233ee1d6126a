"""The reference's log-probabilities are computed once for the same data and reference, and again for any other."""

import types

import jax
import numpy as np

from rlax_ft.harness.comparisons import with_reference
from rlax_ft.types import PreferenceBatch, RankingBatch, TokenBatch


def rows(seed):
    tokens = np.random.default_rng(seed).integers(0, 9, (3, 4)).astype(np.int32)
    return TokenBatch(tokens, np.ones((3, 4), np.float32), tokens, np.ones_like(tokens))


def pairs_of(*seeds):
    sides = [rows(seed) for seed in seeds]
    return PreferenceBatch(jax.tree.map(lambda *x: np.stack(x, axis=1), *sides), np.ones(3, np.float32))


def test_kept_by_content(tmp_path):
    run, calls = types.SimpleNamespace(folder=tmp_path), []

    def reference(params, candidates):
        calls.append(candidates.tokens.shape)
        return candidates.tokens.sum(axis=-1).astype(np.float32)

    pairs, params = pairs_of(0, 1), {'w': np.arange(3.0)}
    first = with_reference(run, reference, params, pairs, 2)
    sums = [rows(i).tokens.sum(axis=1) for i in (0, 1)]
    np.testing.assert_array_equal(first.ref_logps, np.stack(sums, axis=1))
    done = len(calls)
    again = with_reference(run, reference, params, pairs, 2)
    np.testing.assert_array_equal(again.ref_logps, first.ref_logps)
    assert len(calls) == done
    with_reference(run, reference, {'w': np.arange(3.0) + 1}, pairs, 2)
    assert len(calls) > done
    done = len(calls)
    with_reference(run, reference, params, pairs_of(0, 2), 2)
    assert len(calls) > done and len(list(tmp_path.glob('reference-*.npy'))) == 3
    candidates = pairs.candidates
    ranked = with_reference(run, reference, params, RankingBatch(candidates, np.zeros((3, 2)), np.ones((3, 2))), 2)
    assert ranked.ref_logps.shape == (3, 2)
    done = len(calls)
    with_reference(run, reference, params, pairs, 2, how='dtype=bfloat16')
    assert len(calls) > done
