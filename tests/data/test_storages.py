"""The same records from every storage, and content in parts: what is read is equal, or refused in one line."""

import csv
import gzip
import json

import pytest

from rlax_ft.data.records import read_demonstrations, read_pairs, read_prompts, read_rankings
from rlax_ft.data.sources import read_raw
from rlax_ft.errors import InputError

USER, ANSWER = {'role': 'user', 'content': 'hi, "you"\n'}, {'role': 'assistant', 'content': 'hello'}
RECORDS = {
    'demonstration': (read_demonstrations, {'prompt': 'a,\n"b"', 'completion': ' c', 'answer': '5'}),
    'messages': (read_demonstrations, {'messages': [USER, ANSWER, USER, {**ANSWER, 'weight': 0}]}),
    'pair': (read_pairs, {'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'label': 0.25, 'margin': -1.0}),
    'pair of messages': (read_pairs, {'prompt': [USER], 'chosen': [ANSWER], 'rejected': [{**ANSWER, 'content': 'x'}]}),
    'ranking': (read_rankings, {'prompt': 'a', 'completions': ['b', 'c'], 'ranks': [1, 0]}),
    'tools': (read_prompts, {'prompt': [USER], 'tools': [{'type': 'function', 'function': {'name': 'f'}}]}),
}


def store(path, records):
    kind = path.name.split('.', 1)[1]
    inner = kind.split('.')[0]
    if kind == 'parquet':
        parquet = pytest.importorskip('pyarrow.parquet')
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
        return path
    if inner in ('csv', 'tsv'):
        import io

        file = io.StringIO()
        table = csv.writer(file, delimiter=',' if inner == 'csv' else '\t')
        cells = [[v if isinstance(v, str) else json.dumps(v) for v in record.values()] for record in records]
        table.writerows([list(records[0]), *cells])
        content = ('\ufeff' * (kind == 'csv') + file.getvalue()).encode()
    else:
        content = (json.dumps(records) if inner == 'json' else ''.join(json.dumps(r) + '\n' for r in records)).encode()
    if kind.endswith('gz'):
        content = gzip.compress(content)
    if kind.endswith('zst'):
        content = pytest.importorskip('pyarrow').compress(content, 'zstd', asbytes=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize('form', RECORDS)
def test_every_storage_gives_the_same_records(form, tmp_path):
    reader, record = RECORDS[form]
    wanted = reader(store(tmp_path / 'x.jsonl', [record, record]))
    for kind in ('json', 'json.gz', 'jsonl.zst', 'csv', 'csv.gz', 'tsv', 'tsv.zst', 'parquet'):
        assert reader(store(tmp_path / f'x.{kind}', [record, record])) == wanted, kind


def test_lists_that_a_column_holds_as_json(tmp_path):
    for record, reader in (
        ({'messages': json.dumps([USER, ANSWER])}, read_demonstrations),
        ({'prompt': 'a', 'completions': '["b", "c"]', 'ranks': '[1, 0]'}, read_rankings),
    ):
        plain = {name: json.loads(value) if value[:1] == '[' else value for name, value in record.items()}
        assert reader(store(tmp_path / 'x.parquet', [record])) == reader(store(tmp_path / 'y.jsonl', [plain]))
    call = {'role': 'assistant', 'tool_calls': json.dumps([{'function': {'name': 'f'}}])}
    read = read_demonstrations(store(tmp_path / 'x.jsonl', [{'messages': [USER, call]}]))
    assert read[0]['completion'][0]['tool_calls'] == [{'function': {'name': 'f'}}]
    # A surrogate that JSON text within a record names is found, too.
    broken = {'messages': '[{"role": "user", "content": "\\ud83d"}]', 'tools': '[{"name": "\\ud83d"}]'}
    read = read_prompts(store(tmp_path / 'x.jsonl', [broken]))[0]
    assert read['prompt'][0]['content'] == read['tools'][0]['name'] == '\ufffd'


@pytest.mark.parametrize(
    'name, content, match',
    [
        ('x.jsonl', b'{"prompt": "a", "prompt": "b"}', r"x.jsonl, line 1: .*the key 'prompt' is there twice"),
        ('x.csv', b'a,b\n1\n', r'x.csv, line 2: 1 cells, and the first line names 2'),
        ('x.csv', b'a,a\n1,2\n', r"x.csv, line 1: two columns are called 'a'"),
        ('x.csv', b'prompt\n"a\n', r'x.csv, after line \d: no table'),
        ('x.csv', b'prompt\n\xff\n', r'x.csv: cannot be read as a UTF-8 table'),
        ('x.jsonl.gz', gzip.compress(b'{"prompt": "a"}\n' * 50, mtime=0)[:40], r'x.jsonl.gz: cannot be read'),
        ('x.jsonl.gz', b'\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03' + b'\xff' * 40, r'x.jsonl.gz: cannot be read'),
        ('x.jsonl.zst', b'nothing', r'x.jsonl.zst: cannot be read'),
        ('x.parquet', b'PAR1nothing', r'x.parquet: cannot be read as Parquet'),
    ],
)
def test_broken_files_are_one_line(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=match) as caught:
        list(read_raw(tmp_path / name))
    assert '\n' not in str(caught.value)


def test_content_in_parts_is_its_text(tmp_path):
    parts = [{'type': 'text', 'text': 'hel'}, {'type': 'text', 'text': 'lo'}]
    record = {'messages': [USER, {'role': 'assistant', 'content': parts}]}
    assert read_demonstrations(store(tmp_path / 'x.jsonl', [record]))[0]['completion'] == [ANSWER]
    for part, found in (
        ({'type': 'image_url', 'image_url': {'url': 'x'}}, "of the type 'image_url'"),
        ({'type': 'thinking', 'thinking': 'x'}, "of the type 'thinking'"),
        (5, 'a number'),
    ):
        record = {'messages': [USER, {'role': 'assistant', 'content': [parts[0], part]}]}
        with pytest.raises(InputError, match=f'message 2: part 2 of "content" is {found}; only texts are read'):
            read_demonstrations(store(tmp_path / 'x.jsonl', [record]))


def test_what_the_record_says_stands_above_a_guess(tmp_path):
    sides = {'chosen': [USER, ANSWER], 'rejected': [USER, {**ANSWER, 'content': 'x'}]}
    pair = read_pairs(store(tmp_path / 'x.jsonl', [{'prompt': USER['content'], **sides}]))[0]
    assert (pair['prompt'], pair['chosen']) == ([USER], [ANSWER])
    with pytest.raises(InputError, match='"prompt" is none of the messages that they share'):
        read_pairs(store(tmp_path / 'x.jsonl', [{'prompt': 'Answer in French.', **sides}]))
    # An answer that is the whole conversation does not say its prompt twice.
    record = read_demonstrations(store(tmp_path / 'x.jsonl', [{'prompt': [USER], 'completion': [USER, ANSWER]}]))[0]
    assert (record['prompt'], record['completion']) == ([USER], [ANSWER])
