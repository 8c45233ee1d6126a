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
    assert read_prompts(path) == [{'prompt': 'p'}] * 2


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
        (['[' * 100_000], 'line 1: not JSON that can be read (maximum recursion'),
        (['{"prompt": ' + '1' * 5000 + '}'], 'line 1: not JSON that can be read (Exceeds the limit'),
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
    kept = {name: record[name] for name in ('prompt_id', 'label', 'answer') if name in record}
    assert read_demonstrations(file_of(tmp_path, record)) == [{'prompt': prompt, 'completion': completion, **kept}]


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
    kept = {'messages': record['messages']} if 'messages' in record else {}
    assert read_pairs(path) == [{'prompt': [USER], 'chosen': [ANSWER], 'rejected': [OTHER], **kept}]
    assert read_demonstrations(path) == [{'prompt': [USER], 'completion': [ANSWER], **kept}]


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
        ({'instruction': 'q', 'input': 5, 'output': 'a'}, 'field "input" is a number; a text was expected'),
        ({'instruction': 'q', 'output': 'a', 'history': 5}, 'field "history" is a number; a list of pairs'),
        ({'question': 'q', 'answer': 'a', 'system': 5}, 'field "system" is a number; a text was expected'),
        ({'conversations': [{'from': [], 'value': ''}]}, 'turn 1: "from" is []; use one of'),
        ({'instruction': 'q', 'response1': 'a', 'response2': 'b', 'annotator1': [1]}, 'must be 0 (a tie), 1 or 2'),
        ({'messages': [USER, {**ANSWER, 'tool_calls': 'f'}]}, 'message 2: "tool_calls" is a text; a list of objects'),
        (
            {'messages': [USER, {**ANSWER, 'weight': 0.5}]},
            'message 2: "weight" is 0.5; use 1 (learned) or 0 (only read)',
        ),
        ({'messages': [USER, {**ANSWER, 'weight': 0}]}, 'every message of the assistant has the weight 0'),
        ({'messages': [{**USER, 'train': True}, ANSWER]}, 'message 1: "train" is set for the role user'),
        ({'messages': [USER, {**ANSWER, 'train_detail': []}]}, 'message 2: "train_detail" names parts of a message'),
        ({'messages': [USER, {**ANSWER, 'role': 'model'}]}, "message 2: the role is 'model'; what is learned has"),
        ({'messages': [USER, ANSWER], 'tools': '{'}, 'field "tools" is a text that is not JSON'),
        ({'messages': [USER, ANSWER], 'tools': f'[{"1" * 5000}]'}, 'field "tools" is a text that is not JSON'),
        ({'messages': [USER, ANSWER], 'functions': 3}, 'field "functions" is a number; a list of schemas'),
        ({'messages': [USER, ANSWER], 'tools': {'name': 'f'}}, 'field "tools" is an object; a list of schemas'),
        ({'prompt': 'p', 'completions': ['a', 'b'], 'ranks': [0, 2**40]}, '"ranks" must be a list of whole numbers'),
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


OTHERS = {'answer': '42', 'tests': ['t'], 'id': 7, 'meta': {'deep': [1, {}]}}


@pytest.mark.parametrize(
    'form',
    [
        {'prompt': 'p', 'chosen': 'a', 'rejected': 'b', 'label': 0.75, 'margin': 2, 'weight': 0.5},
        {'prompt': 'p', 'completions': ['a', 'b'], 'ranks': [0, 1], 'weight': 3},
        {'chosen': [USER, ANSWER], 'rejected': [USER, OTHER], 'weight': 1.5},
        {'conversations': [{'from': 'human', 'value': 'q'}], 'chosen': {'from': 'gpt', 'value': 'a'},
         'rejected': {'from': 'gpt', 'value': 'b'}, 'weight': 2},
        {'instruction': 'q', 'input': '', 'chosen': 'a', 'rejected': 'b', 'margin': -1},
        {'question': 'q', 'chosen': 'a', 'rejected': 'b', 'label': True},
        {'instruction': 'q', 'response1': 'a', 'response2': 'b', 'annotator1': 1, 'weight': 2},
    ],
)  # fmt: skip
def test_comparisons_keep_all_other_fields_whatever_reads_them(tmp_path, form):
    path = file_of(tmp_path, {**form, **OTHERS})
    numbers = {name: form[name] for name in ('label', 'margin', 'weight') if name in form}
    (pair,), (ranking,), (shown,), (prompt,) = (
        reader(path) for reader in (read_pairs, read_rankings, read_demonstrations, read_prompts)
    )
    for record, names in ((pair, {'chosen', 'rejected'}), (ranking, {'completions', 'ranks'}), (prompt, set())):
        assert record == {'prompt': pair['prompt'], **OTHERS, **numbers, **{name: record[name] for name in names}}
    assert ranking_pairs(ranking) == [pair]
    # What compares both sides says nothing of one alone.
    weight = {name: value for name, value in numbers.items() if name == 'weight'}
    assert shown == {'prompt': pair['prompt'], 'completion': pair['chosen'], **OTHERS, **weight}
    if 'completions' not in form and 'response1' not in form:
        good, bad = read_judged(path)
        assert good == {**shown, 'label': True}
        assert bad == {**good, 'completion': pair['rejected'], 'label': False}


def test_demonstrations_judgements_and_prompts_keep_all_other_fields(tmp_path):
    path = file_of(tmp_path, {'question': 'q', 'answer': 'a #### 3', 'level': 'easy'})
    assert read_demonstrations(path)[0] == {
        'prompt': [USER],
        'completion': [{'role': 'assistant', 'content': 'a #### 3'}],
        'answer': 'a #### 3',
        'level': 'easy',
    }
    assert read_prompts(path) == [{'prompt': [USER], 'answer': 'a #### 3', 'level': 'easy'}]
    path = file_of(tmp_path, {'messages': [USER, ANSWER], 'label': False, **OTHERS})
    assert read_judged(path) == [{'prompt': [USER], 'completion': [ANSWER], 'label': False, **OTHERS}]
    path = file_of(tmp_path, {'text': 'once', 'label': 3})  # a class, no judgement
    assert read_demonstrations(path) == [{'prompt': '', 'completion': 'once', 'label': 3}]


def test_several_pairs_of_a_ranking_keep_its_fields_and_invent_none(tmp_path):
    path = file_of(tmp_path, {**RANKING, 'weight': 2, 'source': 's'})
    assert read_pairs(path) == [
        {'prompt': 'p', 'chosen': 'b', 'rejected': other, 'weight': 2, 'source': 's'} for other in 'ac'
    ]


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ('"label": NaN', 'field "label" is nan; the probability that "chosen" wins, 0 to 1, was expected'),
        ('"label": 1.5', 'field "label" is 1.5; the probability'),
        ('"label": "good"', 'field "label" is a text; the probability'),
        ('"margin": Infinity', 'field "margin" is inf; a finite number was expected'),
        ('"margin": 1e300', 'field "margin" is 1e+300; a finite number'),
        ('"weight": -1', 'field "weight" is -1; a finite number of at least 0 was expected'),
        ('"weight": [1]', 'field "weight" is a list; a finite number of at least 0'),
    ],
)
def test_numbers_of_a_comparison_are_checked(tmp_path, fields, message):
    path = file_of(tmp_path, PAIR, f'{json.dumps(PAIR)[:-1]}, {fields}}}')
    for reader in (read_pairs, read_rankings):
        with pytest.raises(InputError, match=re.escape(f'data.jsonl, line 2: {message}')):
            reader(path)


def test_a_pair_whose_label_says_that_rejected_is_better_is_turned_for_whoever_takes_a_side(tmp_path, caplog):
    record = {'prompt': 'p', 'chosen': 'a', 'rejected': 'b', 'label': 0.25, 'margin': 2.0, 'weight': 3.0}
    path = file_of(tmp_path, record)
    turned = {'prompt': 'p', 'chosen': 'b', 'rejected': 'a', 'label': 0.75, 'margin': -2.0, 'weight': 3.0}
    assert read_pairs(path) == [turned]
    assert read_rankings(path)[0]['completions'] == ['b', 'a']
    assert [(r['completion'], r['label']) for r in read_judged(path)] == [('b', True), ('a', False)]
    assert read_demonstrations(path)[0]['completion'] == 'b'
    assert '"weight" of 1 records has no effect' in caplog.text


def test_nulls_are_absent_everywhere(tmp_path):
    call = {'role': 'assistant', 'content': None, 'tool_calls': [{'function': {'name': 'f'}}], 'weight': None}
    records = [
        {**PAIR, 'label': None, 'margin': None, 'completions': None, 'messages': None},
        {'messages': [{**USER, 'tool_calls': None}, call], 'label': None, 'tools': None, 'prompt': None},
    ]
    assert read_pairs(file_of(tmp_path, records[0])) == [PAIR]
    called = {'role': 'assistant', 'tool_calls': [{'function': {'name': 'f'}}]}
    assert read_demonstrations(file_of(tmp_path, records[1])) == [{'prompt': [USER], 'completion': [called]}]
    assert read_prompts(file_of(tmp_path, {'instruction': 'q', 'output': None})) == [{'prompt': [USER]}]
    pytest.importorskip('pyarrow')
    import pyarrow
    import pyarrow.parquet

    # One schema for all rows: every key that another row has is null in this one, at any depth.
    rows = [
        {'messages': [USER, {'role': 'assistant', 'tool_calls': [{'function': {'name': 'f', 'arguments': {'x': 1}}}]}]},
        {'messages': [USER, {'role': 'assistant', 'tool_calls': [{'function': {'name': 'g', 'arguments': {'y': 2}}}]}]},
        {'messages': [USER, ANSWER], 'label': True, 'answer': 'a'},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_struct_array(pyarrow.array(rows)), tmp_path / 'x.parquet')
    read = read_demonstrations(tmp_path / 'x.parquet')
    assert [r['completion'] for r in read] == [row['messages'][1:] for row in rows]
    assert [set(r) for r in read] == [{'prompt', 'completion'}] * 2 + [{'prompt', 'completion', 'label', 'answer'}]


def test_what_a_record_says_overrules_a_guess(tmp_path):
    # The sides begin with a user's message of their own: the prompt is the one that the record gives.
    follow = {'role': 'user', 'content': 'and?'}
    pair = {'prompt': [USER, ANSWER], 'chosen': [follow, ANSWER], 'rejected': [follow, OTHER]}
    assert read_pairs(file_of(tmp_path, pair)) == [pair]
    # What a prompt ends with stands in it once, and what is compared answers one prompt.
    talk, system = [USER, ANSWER, follow], {'role': 'system', 'content': 's'}
    for repeated in ({'chosen': [follow, OTHER], 'rejected': [*talk, ANSWER]}, {'chosen': [follow, OTHER]}):
        pair = {'prompt': [system, *talk], 'rejected': [ANSWER], **repeated}
        sides = {'chosen': [OTHER], 'rejected': [ANSWER]}
        assert read_pairs(file_of(tmp_path, pair)) == [{'prompt': pair['prompt'], **sides}]
    pair = {'prompt': [USER], 'chosen': [follow, OTHER], 'rejected': [ANSWER]}
    with pytest.raises(InputError, match='"chosen" and "rejected" begin with other messages'):
        read_pairs(file_of(tmp_path, pair))
    # Answers that are only to be read stand in the prompt.
    read_only = {**ANSWER, 'weight': 0}
    talk = [USER, read_only, USER, OTHER, USER, read_only]
    assert read_demonstrations(file_of(tmp_path, {'messages': talk})) == [{'prompt': talk[:3], 'completion': talk[3:4]}]


def test_tools_are_read_from_every_storage_and_travel_with_the_prompt(tmp_path):
    tools = [{'type': 'function', 'function': {'name': 'f', 'parameters': {'type': 'object'}}}]
    for stored in (tools, json.dumps(tools), [json.dumps(tools[0])]):
        record = read_demonstrations(file_of(tmp_path, {'messages': [USER, ANSWER], 'tools': stored}))[0]
        assert record['tools'] == tools and record['prompt'] == [USER] and record['prompt'].tools == tools
    for empty in ([], '', '[]', 'null'):
        record = read_demonstrations(file_of(tmp_path, {'messages': [USER, ANSWER], 'tools': empty}))[0]
        assert record == {'prompt': [USER], 'completion': [ANSWER]}
    old = {'messages': [USER, {'role': 'assistant', 'content': None, 'function_call': {'name': 'f'}}]}
    record = read_demonstrations(file_of(tmp_path, {**old, 'functions': [tools[0]['function']]}))[0]
    assert record['tools'] == tools and record['completion'] == [{'role': 'assistant', 'function_call': {'name': 'f'}}]
    # Beside a text it is a field like any other.
    assert read_prompts(file_of(tmp_path, {'prompt': 'p', 'tools': 'a saw'})) == [{'prompt': 'p', 'tools': 'a saw'}]
