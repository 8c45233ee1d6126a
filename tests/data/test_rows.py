"""Batches: one BOS, EOS learned, PAD never, prompts and labels in their places; and the loader's resumable order."""

import json

import numpy as np
import pytest

from rlax_ft.data.codec import Codec
from rlax_ft.data.loader import batch_indices, split_rows, whole_batch
from rlax_ft.data.rows import fitting, preference_rows, prompt_arrays, ranking_rows, token_rows
from rlax_ft.data.tokenizers import train_tokenizer, word_tokenizer
from rlax_ft.errors import InputError

CODEC = Codec(word_tokenizer('abcde'), max_prompt=4, max_new_tokens=4)
PAD, BOS, EOS = 0, 1, 2
FULL, FITS = {'prompt': 'a', 'completion': 'b b b b'}, {'prompt': 'a', 'completion': 'b b b'}


def test_rows_by_hand():
    rows = token_rows(CODEC, ['a b', 'a'], ['c', 'd e'])
    assert rows.tokens.tolist() == [[BOS, 3, 4, 5, EOS, 0, 0, 0], [BOS, 3, 6, 7, EOS, 0, 0, 0]]
    assert rows.mask.tolist() == [[0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0, 0]]
    assert rows.segment_ids.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]] * 2
    assert rows.positions[0].tolist() == list(range(8))


def test_pad_is_not_eos_and_eos_is_counted():
    tokenizer = word_tokenizer('ab')
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    rows = token_rows(CODEC, ['a'], ['b'])
    assert (rows.tokens[rows.mask > 0] == EOS).sum() == 1
    assert not (rows.tokens[rows.mask > 0] == PAD).any()


def test_prompts_are_left_padded():
    tokens, mask = prompt_arrays(CODEC, ['a', 'a b c'])
    assert tokens.tolist() == [[0, 0, BOS, 3], [BOS, 3, 4, 5]]
    assert mask.tolist() == [[False, False, True, True], [True] * 4]


def test_too_long_is_an_error_or_is_cut():
    with pytest.raises(InputError, match=r"'a b c d'... has 5 tokens and the context has room for 4; raise --max_p"):
        prompt_arrays(CODEC, ['a', 'a b c d'])
    with pytest.raises(InputError, match=r"the response 'b b b b b'... has 6 tokens .*--max_new_tokens.*--truncate"):
        token_rows(CODEC, ['a'], ['b b b b b'])
    # Four words and EOS do not fit into four tokens, but a sampler that cut them off has filled its room.
    with pytest.raises(InputError, match=r"the response 'b b b b'... has 5 tokens and the context has room for 4"):
        token_rows(CODEC, ['a'], ['b b b b'])
    assert fitting(Codec(CODEC.tokenizer, 4, 4, truncate=True), [FULL, FITS]) == [FITS]
    sampled = Codec(CODEC.tokenizer, 4, 4, cut_off=True)
    assert token_rows(sampled, ['a'], ['b b b b']).tokens[0, :6].tolist() == [BOS, 3, 4, 4, 4, 4]
    cut = Codec(CODEC.tokenizer, 4, 4, truncate=True)
    rows = token_rows(cut, ['a b c d'], ['a b'])
    assert rows.tokens.tolist() == [[BOS, 4, 5, 6, 3, 4, EOS, 0]]  # BOS, the prompt's end, the whole response
    assert rows.mask.tolist() == [[0] * 4 + [1] * 3 + [0]]
    with pytest.raises(InputError, match='the response'):
        token_rows(cut, ['a'], ['a b c d e'])  # never cut: `fitting` leaves such records out


def test_an_empty_response_is_an_error_only_without_eos():
    assert token_rows(CODEC, ['a'], ['']).mask.sum() == 1
    with pytest.raises(InputError, match=r'record 1: the response is empty'):
        token_rows(Codec(CODEC.tokenizer, 4, 4, ends=False), ['a'], [''])


def test_a_record_whose_response_has_no_token_is_left_out_and_counted(caplog):
    """A sampler without EOS may draw what decodes to nothing; a ranking loses that candidate alone."""
    codec = Codec(CODEC.tokenizer, 4, 4, ends=False)
    pair, empty = ({'prompt': 'a', 'chosen': 'b', 'rejected': text} for text in ('c', ''))
    ranking = {'prompt': 'a', 'completions': ['b', '', 'c'], 'ranks': [0, 1, 2]}
    kept = fitting(codec, [pair, empty, ranking])
    assert kept[0] == pair and kept[1]['completions'] == ['b', 'c'] and len(kept) == 2
    assert '1 of 3 records left out: a response has no token' in caplog.text


def test_pairs_share_their_prompt_and_rankings_mask_the_missing():
    pairs = preference_rows(CODEC, [{'prompt': 'a', 'chosen': 'b', 'rejected': 'c d'}])
    assert pairs.candidates.tokens.shape == (1, 2, 8)
    assert pairs.label.tolist() == [1.0] and pairs.margin is None and pairs.weight is None
    told = preference_rows(
        CODEC, [{'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'label': 0.7, 'margin': 2, 'weight': 3}]
    )
    np.testing.assert_allclose([told.label[0], told.margin[0], told.weight[0]], [0.7, 2, 3], rtol=1e-6)
    rankings = ranking_rows(
        CODEC,
        [
            {'prompt': 'a', 'completions': ['b', 'c'], 'ranks': [1, 0]},
            {'prompt': 'a', 'completions': ['b', 'c', 'd'], 'ranks': [0, 1, 1]},
        ],
    )
    assert rankings.candidates.tokens.shape == (2, 3, 8)
    assert rankings.mask.tolist() == [[True, True, False], [True] * 3]
    assert rankings.candidates.tokens[1, 2].tolist() == [BOS, 3, 6, EOS, 0, 0, 0, 0]


def test_trained_tokenizers_lose_nothing():
    text = 'naïve café\n\nHuman: 3 < 5?'
    for kind in ('bytes', 'bpe:300'):
        tokenizer = train_tokenizer(kind, [text] * 20)
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
        assert tokenizer(text).input_ids.count(BOS) == 1  # for whoever opens the saved tokenizer elsewhere
    assert len(train_tokenizer('bytes', [text])) == 259
    with pytest.raises(InputError, match=r'--tokenizer=bpe:10: use bytes, or bpe:SIZE'):
        train_tokenizer('bpe:10', [text])


def test_batches_are_a_function_of_seed_and_step():
    size, batch = 10, 4
    stream = np.concatenate([batch_indices(size, s, batch_size=batch, seed=1) for s in range(10)])
    epochs = stream.reshape(4, size)
    for epoch in epochs:
        assert sorted(epoch) == list(range(size))
    assert len({tuple(epoch) for epoch in epochs}) == 4  # a fresh permutation each epoch
    assert (batch_indices(size, 7, batch_size=batch, seed=1) == stream[28:32]).all()
    assert (batch_indices(size, 0, batch_size=batch, seed=2) != stream[:4]).any()


def test_a_batch_takes_rows_of_every_leaf():
    data = {'x': np.arange(6), 'y': np.arange(6) * 10}
    batch = whole_batch(data, 3, batch_size=5, seed=0)
    assert (batch['y'] == batch['x'] * 10).all() and batch['x'].shape == (5,)


def test_split_holds_out_and_loses_nothing():
    train, held_out = split_rows(list(range(30)), seed=0)
    assert len(held_out) == 3 and sorted(train + held_out) == list(range(30))
    assert split_rows(list(range(30)), seed=0) == (train, held_out)


def test_a_held_out_prompt_is_never_trained_on():
    talk = lambda i: [{'role': 'user', 'content': f'question {i}'}]  # noqa: E731
    records = [{'prompt': f'p{i % 50}' if i % 2 else talk(i % 50), 'n': i} for i in range(400)]
    train, held_out = split_rows(records, seed=0)
    sides = [{json.dumps(r['prompt']) for r in side} for side in (train, held_out)]
    assert not sides[0] & sides[1] and len(held_out) == 40 and len(sides[1]) == 5
    assert sorted(train + held_out, key=lambda r: r['n']) == records
    assert [r['n'] for r in train] == sorted(r['n'] for r in train)
    assert split_rows(records, seed=0) == (train, held_out) != split_rows(records, seed=1)
    # One prompt with nearly all records: something is left to train on, and to measure on.
    lopsided = [{'prompt': 'p'}] * 99 + [{'prompt': 'q'}]
    for seed in range(4):
        assert [len(side) for side in split_rows(lopsided, seed=seed)] == [99, 1]
    assert [len(side) for side in split_rows([*lopsided[:9], *[{'prompt': 'q'}] * 5], seed=0)] == [9, 5]
    by_record = split_rows(records, seed=0, by_prompt=False)[1]
    assert len(by_record) == 40 and len({json.dumps(r['prompt']) for r in by_record}) > 20
    # Plain text has no prompt, and one prompt for all divides nothing.
    for prompt in ('', 'p'):
        sides = split_rows([{'prompt': prompt, 'completion': str(i)} for i in range(20)], seed=0)
        assert [len(side) for side in sides] == [18, 2] and not any(r in sides[0] for r in sides[1])
    assert split_rows([{'prompt': 'p'}], seed=0) == ([{'prompt': 'p'}],) * 2
