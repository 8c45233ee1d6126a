"""Records: every form, and one clear line for every way to get them wrong."""

import gzip
import json
import re
from pathlib import Path

import pytest

from rlax_ft.data.records import (
    ranking_pairs,
    read_demonstrations,
    read_pairs,
    read_prompts,
    read_rankings,
    write_records,
)
from rlax_ft.errors import InputError

PAIR = {'prompt': 'p', 'chosen': 'good', 'rejected': 'bad'}
RANKING = {'prompt': 'p', 'completions': ['a', 'b', 'c'], 'ranks': [1, 0, 1]}
HH = Path(__file__).parents[2].parent / 'shared/data/hh-rlhf/harmless-base-test.jsonl.gz'


def file_of(tmp_path, *records, name='data.jsonl'):
    path = tmp_path / name
    path.write_text(''.join((r if isinstance(r, str) else json.dumps(r)) + '\n' for r in records))
    return path


def test_forms_stand_in_for_each_other(tmp_path):
    path = file_of(tmp_path, PAIR, '', RANKING)
    assert read_pairs(path) == [
        PAIR,
        {'prompt': 'p', 'chosen': 'b', 'rejected': 'a'},
        {'prompt': 'p', 'chosen': 'b', 'rejected': 'c'},
    ]
    assert read_rankings(path)[0] == {'prompt': 'p', 'completions': ['good', 'bad'], 'ranks': [0, 1]}
    assert [r['completion'] for r in read_demonstrations(path)] == ['good', 'b']
    assert read_prompts(path) == ['p', 'p']


def test_a_ranking_gives_no_pair_of_ties_or_of_equal_texts():
    assert ranking_pairs({'prompt': '', 'completions': ['a', 'a', 'b'], 'ranks': [0, 1, 1]}) == [
        {'prompt': '', 'chosen': 'a', 'rejected': 'b'}
    ]


def test_implicit_prompts(tmp_path):
    dialogue = '\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:'
    path = file_of(
        tmp_path,
        {'chosen': dialogue + ' I do not know.', 'rejected': dialogue + " I won't say."},
        {'chosen': 'the cat sat', 'rejected': 'the car sat'},
    )
    first, second = read_pairs(path)
    assert first == {'prompt': dialogue, 'chosen': ' I do not know.', 'rejected': " I won't say."}
    assert second == {'prompt': 'the', 'chosen': ' cat sat', 'rejected': ' car sat'}


def test_gzip_and_atomic_writing(tmp_path):
    write_records(tmp_path / 'x.jsonl', [PAIR])
    (tmp_path / 'x.jsonl.gz').write_bytes(gzip.compress((tmp_path / 'x.jsonl').read_bytes()))
    assert read_pairs(tmp_path / 'x.jsonl.gz') == [PAIR]


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        ([PAIR] * 6 + ['{"prompt": '], 'data.jsonl, line 7: not JSON'),
        ([PAIR, {'prompt': 'p', 'chosen': 'a'}], "line 2: no field \"rejected\"; found 'prompt', 'chosen'"),
        ([{**PAIR, 'rejected': 'good'}], 'line 1: "chosen" equals "rejected"'),
        ([{**PAIR, 'chosen': 3}], 'line 1: field "chosen" is a number; a text was expected'),
        ([{**PAIR, 'chosen': [{'role': 'user'}]}], 'line 1: field "chosen" is a list; a text was expected'),
        (['[1]'], 'line 1: found a list where an object'),
        ([], 'data.jsonl: the file holds no record'),
        ([{'prompt': 'p'}], 'line 1: expected a comparison'),
        ([{**RANKING, 'ranks': [0, 1]}], 'line 1: 3 completions and 2 ranks'),
        ([{**RANKING, 'ranks': [0, 1, 'x']}], 'field "ranks" must be a list of whole numbers'),
        ([{**RANKING, 'ranks': [0, 0, 0]}], 'every ranking is one tie'),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, lines, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read_pairs(file_of(tmp_path, *lines))


def test_a_missing_or_broken_file(tmp_path):
    with pytest.raises(InputError, match=r'nowhere.jsonl: no such file'):
        read_pairs(tmp_path / 'nowhere.jsonl')
    (tmp_path / 'broken.jsonl.gz').write_bytes(b'not gzip')
    with pytest.raises(InputError, match=r'broken.jsonl.gz: cannot be read'):
        read_pairs(tmp_path / 'broken.jsonl.gz')


def test_real_human_comparisons():
    if not HH.exists():
        pytest.skip('the shared human comparisons are not here')
    pairs = read_pairs(HH)
    assert len(pairs) == 2312
    assert all(pair['prompt'].endswith('\n\nAssistant:') for pair in pairs)
