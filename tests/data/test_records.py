"""Records: every form, and one clear line for every way to get them wrong."""

import gzip
import json
import re
import sys
from pathlib import Path

import pytest

from rlax_ft.data.records import (
    plain_text,
    ranking_pairs,
    read_demonstrations,
    read_judged,
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


USER, ANSWER, OTHER = ({'role': r, 'content': c} for r, c in (('user', 'q'), ('assistant', 'a'), ('assistant', 'b')))
SYSTEM = {'role': 'system', 'content': 's'}


@pytest.mark.parametrize(
    ('record', 'prompt', 'completion'),
    [
        ({'prompt': [USER], 'completion': [ANSWER]}, [USER], [ANSWER]),
        ({'prompt': [USER], 'completion': 'a'}, [USER], [ANSWER]),
        ({'prompt': 'q', 'completion': [ANSWER]}, [USER], [ANSWER]),
        ({'messages': [SYSTEM, USER, ANSWER, USER, OTHER, USER]}, [SYSTEM, USER], [ANSWER, USER, OTHER]),
        ({'prompt_id': 3, 'prompt': 'q', 'messages': [USER, ANSWER]}, [USER], [ANSWER]),
        ({'conversations': [{'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'a'}]}, [USER], [ANSWER]),
        (
            {'system': 's', 'conversations': [{'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'a'}]},
            [SYSTEM, USER],
            [ANSWER],
        ),
        ({'instruction': 'q', 'input': '', 'output': 'a'}, [USER], [ANSWER]),
        (
            {'instruction': 'do', 'input': 'this', 'output': 'a', 'system': 's', 'history': [['q', 'b']]},
            [SYSTEM, USER, OTHER, {'role': 'user', 'content': 'do\n\nthis'}],
            [ANSWER],
        ),
        ({'question': 'q', 'answer': 'a'}, [USER], [ANSWER]),
        ({'text': 'once'}, '', 'once'),
        ({'messages': [USER, ANSWER], 'label': True}, [USER], [ANSWER]),
    ],
)
def test_other_peoples_demonstrations(tmp_path, record, prompt, completion):
    assert read_demonstrations(file_of(tmp_path, record)) == [{'prompt': prompt, 'completion': completion}]


@pytest.mark.parametrize(
    'record',
    [
        {'prompt': [USER], 'chosen': [ANSWER], 'rejected': [OTHER]},
        {'chosen': [USER, ANSWER], 'rejected': [USER, OTHER]},
        {'prompt': 'q', 'chosen': [USER, ANSWER], 'rejected': [USER, OTHER], 'messages': [USER, ANSWER]},
        {
            'conversations': [{'from': 'human', 'value': 'q'}],
            'chosen': {'from': 'gpt', 'value': 'a'},
            'rejected': {'from': 'gpt', 'value': 'b'},
        },
        {'instruction': 'q', 'input': '', 'chosen': 'a', 'rejected': 'b'},
        {'question': 'q', 'chosen': 'a', 'rejected': 'b'},
        {'prompt': [USER], 'completions': [[OTHER], 'a'], 'ranks': [1, 0]},
        {'instruction': 'q', 'input': '', 'response1': 'a', 'response2': 'b', 'annotator1': 1, 'annotator2': 1},
    ],
)
def test_other_peoples_comparisons(tmp_path, record):
    path = file_of(tmp_path, record)
    assert read_pairs(path) == [{'prompt': [USER], 'chosen': [ANSWER], 'rejected': [OTHER]}]
    assert read_demonstrations(path) == [{'prompt': [USER], 'completion': [ANSWER]}]


def test_an_implicit_prompt_of_messages_ends_before_the_answer_in_which_they_part(tmp_path):
    again = {'role': 'user', 'content': 'again'}
    path = file_of(tmp_path, {'chosen': [USER, ANSWER, again, ANSWER], 'rejected': [USER, ANSWER, again, OTHER]})
    assert read_pairs(path) == [{'prompt': [USER, ANSWER, again], 'chosen': [ANSWER], 'rejected': [OTHER]}]
    # They part in what the user says: the answer before it starts both sides.
    path = file_of(tmp_path, {'chosen': [USER, ANSWER, USER, ANSWER], 'rejected': [USER, ANSWER, again, OTHER]})
    assert read_pairs(path)[0] == {
        'prompt': [USER],
        'chosen': [ANSWER, USER, ANSWER],
        'rejected': [ANSWER, again, OTHER],
    }


def test_judged_completions(tmp_path):
    kto = {'messages': [USER, ANSWER, USER, OTHER], 'label': False}
    path = file_of(tmp_path, kto, {'prompt': 'p', 'completion': 'c', 'label': True}, PAIR)
    assert read_judged(path) == [
        {'prompt': [USER, ANSWER, USER], 'completion': [OTHER], 'label': False},
        {'prompt': 'p', 'completion': 'c', 'label': True},
        {'prompt': 'p', 'completion': 'good', 'label': True},
        {'prompt': 'p', 'completion': 'bad', 'label': False},
    ]
    assert [plain_text(r['completion']) for r in read_demonstrations(path)] == ['c', 'good']
    with pytest.raises(InputError, match='every completion has the label false'):
        read_demonstrations(file_of(tmp_path, kto))


def test_pandalm_majorities(tmp_path):
    vote = {'instruction': 'q', 'response1': 'a', 'response2': True}
    ranks = {(1, 1, 2): [0, 1], (2, 2, 0): [1, 0], (0, 0, 0): [0, 0], (0, 1, 2): [0, 0]}
    records = [{**vote, **{f'annotator{i + 1}': v for i, v in enumerate(votes)}} for votes in ranks]
    assert [r['ranks'] for r in read_rankings(file_of(tmp_path, *records))] == list(ranks.values())


def test_arrays_parquet_and_folders(tmp_path):
    (tmp_path / 'x.json').write_text(json.dumps([PAIR, PAIR], indent=1))
    assert read_pairs(tmp_path / 'x.json') == [PAIR, PAIR]
    (tmp_path / 'lines.json').write_text((json.dumps(PAIR) + '\n') * 3)  # JSONL under the wrong name
    assert len(read_pairs(tmp_path / 'lines.json')) == 3
    pytest.importorskip('datasets', reason='Parquet files and data sets of the hub need `datasets`')
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / 'set'
    folder.mkdir()
    record = {'prompt': [USER], 'chosen': [ANSWER], 'rejected': [OTHER]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record] * 3), folder / 'train.parquet')
    assert read_pairs(folder / 'train.parquet') == read_pairs(folder) == [record] * 3
    (folder / 'train.parquet').write_bytes(b'PAR1 and no more')
    with pytest.raises(InputError, match=r'train.parquet: cannot be read as Parquet after record 0'):
        read_pairs(folder / 'train.parquet')


def test_without_datasets_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(InputError, match=r'somebody/something:main:test: .*pip install "rlax_ft\[data\]"'):
        read_pairs('somebody/something:main:test')
    (tmp_path / 'x.parquet').write_bytes(b'')
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(InputError, match=r'x.parquet: .*pip install "rlax_ft\[data\]"'):
        read_pairs(tmp_path / 'x.parquet')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('[{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p"}]', 'x.json, record 2: expected a comp'),
        ('[{"prompt": "p",\n "chosen" "a"}]', "x.json: not JSON (Expecting ':' delimiter at line 2, column 11)"),
        ('[3]', 'x.json, record 1: found a number where an object'),
        ('', 'x.json: the file holds no record'),
    ],
)
def test_mistakes_in_arrays_name_the_record(tmp_path, text, message):
    (tmp_path / 'x.json').write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        read_pairs(tmp_path / 'x.json')


@pytest.mark.parametrize(
    ('record', 'message'),
    [
        ({'messages': [USER, {'role': 'assistant'}]}, 'line 1: field "messages", message 2: no "content"'),
        ({'messages': [{'role': 3, 'content': ''}]}, 'field "messages", message 1: "role" is a number; a text was'),
        ({'messages': []}, 'field "messages" must be a list of messages'),
        ({'conversations': [{'from': 'me', 'value': ''}]}, 'field "conversations", turn 1: "from" is \'me\'; use one'),
        ({'instruction': 'q', 'output': None}, 'field "output" is null; a text was expected'),
        ({'instruction': 'q', 'output': 'a', 'history': [['q']]}, 'field "history", entry 1: a pair of texts'),
        ({'question': 'q', 'answer': 3}, 'field "answer" is a number; a text was expected'),
        ({'prompt': [USER], 'completion': [USER]}, 'field "completion" has no message of the role assistant'),
        ({'messages': [USER]}, 'line 1: expected a demonstration'),
        ({'messages': [USER, ANSWER], 'label': 1}, 'field "label" is a number; true (good) or false (bad)'),
        ({'chosen': [ANSWER], 'rejected': [OTHER]}, '"chosen" and "rejected" share no first message'),
        ({'prompt': [USER], 'chosen': [ANSWER], 'rejected': 'b'}, 'field "chosen" is a list; a text was expected'),
        ({'instruction': 'q', 'response1': 'a', 'response2': 'b', 'annotator1': 7}, 'must be 0 (a tie), 1 or 2'),
    ],
)
def test_mistakes_in_other_forms_name_the_field(tmp_path, record, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read_demonstrations(file_of(tmp_path, record))


@pytest.mark.parametrize(
    ('reader', 'name', 'count'),
    [
        (read_demonstrations, 'gsm8k/train.jsonl', 7473),
        (read_prompts, 'gsm8k/test.jsonl', 1319),
        (read_demonstrations, 'llama-factory-demos/alpaca_en_demo.json', 999),
        (read_pairs, 'llama-factory-demos/dpo_en_demo.json', 300),
        (read_judged, 'llama-factory-demos/kto_en_demo.json', 300),
        (read_rankings, 'pandalm/testset-v1.json', 999),
    ],
)
def test_real_files(reader, name, count):
    path = HH.parents[1] / name
    if not path.exists():
        pytest.skip('the shared data sets are not here')
    assert len(reader(path)) == count
