"""Texts and tokens of a completion: with its prompt it is the whole text, and written again the same characters."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rlax_ft.data.codec import Codec
from rlax_ft.data.tokenizers import decode_continuations, encode_continuations, train_tokenizer, word_tokenizer
from rlax_ft.types import Rollout

STORIES = Path(__file__).parents[2].parent / 'shared/weights/stories260K'


@pytest.fixture(scope='module')
def sentencepiece():
    if not STORIES.exists():
        pytest.skip('the shared tokenizer is not here')
    return AutoTokenizer.from_pretrained(STORIES)


def rollout_of(rows, width=40):
    tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    return Rollout(None, None, tokens, mask, None)


def test_a_completion_keeps_its_leading_blank(sentencepiece):
    codec = Codec(sentencepiece, 64, 64)
    whole = 'Once upon a time, there was a girl.'
    (prompt,) = codec.encode_prompts(['Once upon'])
    ids = sentencepiece(whole).input_ids
    assert ids[: len(prompt)] == prompt
    texts, ended = codec.decode(rollout_of([ids[len(prompt) :] + [sentencepiece.eos_token_id]]))
    assert texts == [' a time, there was a girl.'] and ended == [True]
    # Alone it would have lost it, and become other tokens.
    assert codec.encode(['Once upon'], texts)[0].response == ids[len(prompt) :] + [sentencepiece.eos_token_id]


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec='utf-8', exclude_characters='\x00\r<>'), max_size=12))
def test_any_text_is_itself_again(text):
    made = [train_tokenizer('bytes', ['a'])]
    if STORIES.exists():
        made.append(AutoTokenizer.from_pretrained(STORIES))
    for tokenizer in made:
        codec = Codec(tokenizer, 99, 99)
        row = codec.encode(['Once'], [text])[0]
        assert codec.decode(rollout_of([row.response], 99))[0] == [text]
        # What a sampler may draw, too: whatever it is, its text is that of the same tokens.
        (again,) = encode_continuations(tokenizer, [text])
        assert decode_continuations(tokenizer, [again]) == [text]


def test_words_are_decoded_as_before():
    tokenizer = word_tokenizer('abc')
    assert decode_continuations(tokenizer, [[3, 4, 2], []]) == ['a b', '']


def test_an_answer_of_exactly_the_longest_length_does_not_fit():
    """`max_new_tokens` counts EOS: it is never cut off, but refused, or left out and counted."""
    from rlax_ft.data.rows import fitting
    from rlax_ft.errors import InputError

    tokenizer = train_tokenizer('bytes', ['a'])
    tokenizer.chat_template = '{% for m in messages %}{{ m.content }}{% endfor %}'
    user = [{'role': 'user', 'content': 'q'}]
    said = lambda text: [{'role': 'assistant', 'content': text}]  # noqa: E731
    records = [{'prompt': 'q', 'completion': 'abc'}, {'prompt': 'q', 'completion': 'abcd'}]
    records += [{'prompt': user, 'completion': said(text)} for text in ('abc', 'abcd')]
    codec = Codec(tokenizer, 8, 4, truncate=True)
    kept = fitting(codec, records)
    assert kept == [records[0], records[2]]
    rows = codec.encode([r['prompt'] for r in kept], [r['completion'] for r in kept])
    assert all(row.response[-1] == tokenizer.eos_token_id and row.learned == [True] * 4 for row in rows)
    strict = Codec(tokenizer, 8, 4)
    from rlax_ft.data.rows import ragged_rows

    for record in (records[1], records[3]):
        with pytest.raises(InputError, match='has 5 tokens and the context has room for 4'):
            ragged_rows(strict, [record['prompt']], [record['completion']])
