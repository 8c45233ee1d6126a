"""Rows without padding: memory follows the tokens, widths the rows of a batch; the numbers are those of padded rows."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_ft.data.codec import Codec
from rlax_ft.data.loader import whole_batch
from rlax_ft.data.packing import pack_pairs, pack_rows, row_lengths
from rlax_ft.data.ragged import Ragged, batch_width, join
from rlax_ft.data.rows import (
    preference_rows,
    prompt_arrays,
    prompt_rows,
    ragged_rows,
    ranking_rows,
    share_prompts,
    token_rows,
)
from rlax_ft.data.tokenizers import train_tokenizer

CODEC = Codec(train_tokenizer('bytes', ['a']), 4096, 4096)
WIDTHS = {*(width * 2**n for width in (32, 48) for n in range(7)), 4016}


def nbytes(struct):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(struct))


def test_one_long_row_neither_widens_the_batches_nor_fills_the_memory():
    """2,000 rows of 17 tokens and one of 4,010: padded to one width they took 96 MB or more, 236 times their tokens."""
    rows = ragged_rows(CODEC, ['a'] * 2001, [' ' * 14] * 2000 + ['b' * 4007])
    assert rows.lengths.tolist() == [17] * 2000 + [4010]
    assert rows.nbytes < 2 * 2**18  # half a megabyte for 38,010 tokens
    widths = [whole_batch(rows, step, batch_size=16, seed=0).tokens.shape[1] for step in range(125)]
    assert set(widths) == {32, 4016} and widths.count(4016) == 1
    positions = sum(16 * width for width in widths)
    assert positions < 4 * 2000 * 17 and positions < 2001 * 4016 / 30
    pairs = [{'prompt': 'a', 'chosen': ' ' * 14, 'rejected': 'x'}] * 2000
    pairs += [{'prompt': 'a', 'chosen': 'b' * 4007, 'rejected': 'x'}]
    batch = preference_rows(CODEC, pairs, ragged=True)
    assert sum(x.nbytes for x in batch.candidates.arrays()) < 2**20
    widths = {whole_batch(batch, step, batch_size=16, seed=0).candidates.tokens.shape[2] for step in range(125)}
    assert widths == {32, 4016}


def test_widths_are_few():
    assert {batch_width(longest, 4010) for longest in range(1, 4011)} == WIDTHS
    assert (
        batch_width(5, 3) == 8
        and batch_width(17, 17) == 24
        and batch_width(17, 1000) == 32
        and batch_width(33, 1000) == 48
    )


lengths = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(lengths, st.randoms(use_true_random=False))
def test_a_batch_has_the_tokens_of_its_rows(sizes, random):
    rows = [([random.randrange(3, 99) for _ in range(a + b)], [False] * a + [True] * b) for a, b in sizes]
    for left in (False, True):
        ragged = Ragged.of(rows, pad_id=1, left=left)
        index = np.asarray([random.randrange(len(rows)) for _ in range(3)])
        batch = ragged[index]
        for row, number in enumerate(index):
            real = batch.segment_ids[row] > 0
            ids, learned = rows[number]
            assert batch.tokens[row][real].tolist() == ids and batch.mask[row][real].tolist() == learned
            assert batch.positions[row][real].tolist() == list(range(len(ids)))
            assert real[0] or left, 'padding stands on the right'
            assert real[-1] or not left, 'padding stands on the left'
            assert (batch.tokens[row][~real] == 1).all() and not batch.mask[row][~real].any()
        again = join([ragged.take(slice(0, 1)), ragged.take(slice(1, None))])
        assert (
            all(np.array_equal(a, b) for a, b in zip(again.arrays(), ragged.arrays())) and again.shape == ragged.shape
        )


PAIRS = [{'prompt': 'one ' * 40, 'chosen': 'yes', 'rejected': 'no' * n, 'margin': n} for n in (1, 5, 20)] + [
    {'prompt': 'p', 'chosen': 'a' * 60, 'rejected': 'b'}
]


def test_the_same_numbers_as_padded_rows():
    plain, ragged = preference_rows(CODEC, PAIRS), preference_rows(CODEC, PAIRS, ragged=True)
    everything = np.arange(len(PAIRS))
    jax.tree.map(np.testing.assert_array_equal, whole(ragged, everything), plain)
    texts = [pair['prompt'] for pair in PAIRS], [pair['chosen'] for pair in PAIRS]
    rows = ragged_rows(CODEC, *texts)
    jax.tree.map(np.testing.assert_array_equal, rows[everything], token_rows(CODEC, *texts))
    assert row_lengths(rows).tolist() == row_lengths(token_rows(CODEC, *texts)).tolist()
    for pack, struct, other in ((pack_rows, rows, token_rows(CODEC, *texts)), (pack_pairs, ragged, plain)):
        jax.tree.map(np.testing.assert_array_equal, pack(struct, 240), pack(other, 240))
    rankings = [{'prompt': 'p' * 40, 'completions': ['a', 'b' * 9, 'c'], 'ranks': [0, 1, 2]}] * 2
    rankings[1] = {**rankings[1], 'completions': ['a', 'b'], 'ranks': [1, 0]}
    jax.tree.map(
        np.testing.assert_array_equal,
        whole(ranking_rows(CODEC, rankings, ragged=True), np.arange(2)),
        ranking_rows(CODEC, rankings),
    )


def whole(batch, index):
    return jax.tree.map(lambda leaf: leaf[index], batch)


def test_shared_prompts_are_those_of_padded_rows():
    plain, ragged = (share_prompts(preference_rows(CODEC, PAIRS, ragged=ragged)) for ragged in (False, True))
    batch = whole(ragged, np.arange(len(PAIRS)))
    jax.tree.map(np.testing.assert_array_equal, batch, plain)
    short = whole(ragged, np.asarray([3, 3]))
    assert short.candidates.prompt.tokens.shape == (2, 32) and short.candidates.responses.tokens.shape == (2, 2, 64)
    differing = [{'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}]
    kept = preference_rows(CODEC, differing, ragged=True)
    assert share_prompts(kept) is kept  # nothing would be saved


def test_prompts_for_the_sampler():
    prompts = ['a' * n for n in (1, 30, 7)]
    tokens, mask = prompt_arrays(CODEC, prompts)
    assert tokens.shape == (3, 4096) and mask.sum() == 41
    batch = prompt_rows(CODEC, prompts)[np.asarray([0, 2])]
    assert batch.tokens.shape == (2, 32)
    np.testing.assert_array_equal(batch.tokens, tokens[[0, 2], -32:])
    np.testing.assert_array_equal(batch.segment_ids > 0, mask[[0, 2], -32:])


@pytest.mark.parametrize('hosts', [1, 2])
def test_every_host_has_the_width_of_the_whole_batch(monkeypatch, hosts):
    from rlax_ft.data import loader

    rows = ragged_rows(CODEC, ['a'] * 5, ['b' * n for n in (1, 1, 1, 1, 50)])
    shapes = set()
    for host in range(hosts):
        monkeypatch.setattr(jax, 'process_count', lambda: hosts)
        monkeypatch.setattr(jax, 'process_index', lambda host=host: host)
        wholes = (loader.whole_batch(rows, step, batch_size=4, seed=0) for step in range(5))
        shapes |= {loader.local_rows(whole).tokens.shape for whole in wholes}
    assert {shape[0] for shape in shapes} == {4 // hosts} and {shape[1] for shape in shapes} == {32, 56}
