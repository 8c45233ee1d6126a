"""Judged answers: comparisons taken apart, ratings, steps, and where a step's label stands."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlax_ft.data.codec import Codec
from rlax_ft.data.judged import compares, judged_answers, judged_rows, read_answers
from rlax_ft.data.records import read_judged, read_pairs, write_records
from rlax_ft.data.scored import read_scored, read_steps, step_ends, step_rows
from rlax_ft.data.tokenizers import train_tokenizer
from rlax_ft.errors import InputError

SHARED = Path(__file__).parents[2].parent / 'shared/data'
CODEC = Codec(train_tokenizer('bytes', []), 16, 32)


def written(tmp_path, *records):
    write_records(tmp_path / 'data.jsonl', list(records))
    return tmp_path / 'data.jsonl'


def test_rankings_are_taken_apart_by_the_share_that_an_answer_beats():
    ranking = {'prompt': 'p', 'completions': ['a', 'b', 'c', 'd'], 'ranks': [0, 2, 1, 1], 'id': 7}
    apart = judged_answers([ranking])
    # By hand: c and d tie, and each beats b: (1 + 0.5) / 3.
    assert [(r['completion'], r['label']) for r in apart] == [('a', 1.0), ('b', 0.0), ('c', 0.5), ('d', 0.5)]
    assert all(r['prompt'] == 'p' and r['id'] == 7 and 'ranks' not in r for r in apart)


def test_a_comparisons_own_label_is_that_of_its_better_answer(tmp_path):
    path = written(tmp_path, {'prompt': 'p', 'chosen': 'a', 'rejected': 'b', 'label': 0.8, 'weight': 2})
    assert compares(path)
    apart = judged_answers(read_answers(path))
    assert [(r['completion'], r['label'], r['weight']) for r in apart] == [('a', 0.8, 2), ('b', pytest.approx(0.2), 2)]


def test_thumbs_and_sharegpts_kto_tag(tmp_path):
    turns = [{'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'a'}]
    path = written(
        tmp_path, {'conversations': turns, 'kto_tag': False}, {'prompt': 'p', 'completion': 'c', 'label': True}
    )
    first, second = judged_answers(read_answers(path))
    assert first['completion'] == [{'role': 'assistant', 'content': 'a'}] and first['label'] == 0.0
    assert second['label'] == 1.0
    rows = judged_rows(CODEC, [second])
    assert rows.candidates.responses.mask.sum() == 2 and rows.weight is None  # one byte and EOS


def test_real_files_are_read():
    if not SHARED.exists():
        pytest.skip('the shared data sets are not here')
    judged = judged_answers(read_answers(SHARED / 'llama-factory-demos/kto_en_demo.json'))
    assert len(judged) == 300 and 0 < sum(r['label'] for r in judged) < 300
    votes = json.loads((SHARED / 'pandalm/testset-v1.json').read_text())
    pairs = read_pairs(SHARED / 'pandalm/testset-v1.json')
    given = {(r['annotator1'], r['annotator2'], r['annotator3']) for r in votes}
    assert len(pairs) > 700 and {round(p.get('agreement', 1) * 6) for p in pairs} <= {3, 4, 5, 6} and len(given) > 10


def test_agreement_counts_a_tie_as_half(tmp_path):
    form = {'instruction': 'q', 'input': '', 'response1': 'x', 'response2': 'y'}
    votes = dict(annotator1=2, annotator2=0, annotator3=2)
    [pair] = read_pairs(written(tmp_path, {**form, **votes}))
    assert pair['chosen'][0]['content'] == 'y' and pair['agreement'] == pytest.approx(2.5 / 3)


def test_ratings(tmp_path):
    path = written(
        tmp_path,
        {'prompt': 'p', 'completion': 'a', 'rating': 4, 'id': 1},
        {'prompt': 'q', 'completions': ['b', 'c'], 'scores': [1.5, -2]},
    )
    found = [(r['prompt'], r['completion'], r['score']) for r in read_scored(path)]
    assert found == [('p', 'a', 4.0), ('q', 'b', 1.5), ('q', 'c', -2.0)]


@pytest.mark.parametrize(
    ('reader', 'record', 'message'),
    [
        (read_scored, {'prompt': 'p', 'completion': 'a'}, r'line 1: expected .*"score"'),
        (read_scored, {'prompt': 'p', 'completion': 'a', 'score': 'good'}, r'"score" holds a text; a finite number'),
        (read_scored, {'prompt': 'p', 'completions': ['a'], 'scores': [1, 2]}, r'lists of one length'),
        (
            read_judged,
            {'prompt': 'p', 'completion': 'a', 'label': True, 'weight': [1]},
            r'"weight" is a list; a finite',
        ),
        (read_judged, {'prompt': 'p', 'completion': 'a', 'label': True, 'weight': -1}, r'"weight" is -1; a finite'),
        (read_judged, {'prompt': 'p', 'chosen': 'a', 'rejected': 'b', 'weight': 'x'}, r'"weight" is a text; a finite'),
        (read_steps, {'prompt': 'p', 'steps': ['a'], 'labels': [True, False]}, r'1 steps and 2 labels'),
        (read_steps, {'prompt': 'p', 'steps': ['a'], 'labels': [-1]}, r'"labels" holds -1; true, false or a number'),
        (read_steps, {'prompt': 'p', 'steps': ['a', ' '], 'labels': [1, 1]}, r'a text that is not empty'),
    ],
)
def test_mistakes_are_named(tmp_path, reader, record, message):
    with pytest.raises(InputError, match=message):
        reader(written(tmp_path, record))


def test_a_steps_label_stands_at_its_last_token(tmp_path):
    path = written(tmp_path, {'prompt': '1+1', 'completions': ['so 2', 'no 3'], 'labels': [True, False]})
    batch = step_rows(CODEC, read_steps(path))
    text = [CODEC.tokenizer.decode([i]) for i in batch.rows.tokens[0]]
    ends = np.flatnonzero(batch.rows.mask[0])
    newline, eos = text.index('\n'), int(np.flatnonzero(batch.rows.segment_ids[0])[-1])
    assert ends.tolist() == [newline, newline + 5, eos]
    assert batch.labels[0, ends].tolist() == [1.0, 0.0, 0.0]
    assert step_ends(CODEC, batch) == (int(batch.rows.tokens[0, newline]),)
