"""Mutated records of every form, from every storage: rows whose text is the template's own, or one line."""

import csv
import gzip
import io
import json

import values

from rlax_ft.data.codec import Codec
from rlax_ft.data.judged import judged_answers, judged_rows, read_answers
from rlax_ft.data.known_templates import TEMPLATES
from rlax_ft.data.records import read_demonstrations, read_judged, read_pairs, read_prompts, read_rankings
from rlax_ft.data.rows import fitting, preference_rows, prompt_arrays, ragged_rows, ranking_rows
from rlax_ft.data.tokenizers import train_tokenizer

USER, ANSWER = {'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}
OTHER = {'role': 'assistant', 'content': 'bye'}
CALL = {'role': 'assistant', 'content': '', 'tool_calls': [{'function': {'name': 'f', 'arguments': {}}}]}
RECORDS = (
    {'prompt': 'a', 'completion': ' b', 'answer': '5'},
    {'prompt': 'a', 'completion': ' b', 'label': True},
    {'prompt': 'a', 'chosen': ' b', 'rejected': ' c', 'label': 0.5, 'margin': 1.5, 'weight': 2},
    {'chosen': 'Human: a Assistant: b', 'rejected': 'Human: a Assistant: c'},
    {'prompt': 'a', 'completions': [' b', ' c', ' d'], 'ranks': [1, 0, 1]},
    {'prompt': [USER], 'completion': [ANSWER]},
    {'prompt': [USER], 'chosen': [ANSWER], 'rejected': [OTHER]},
    {'chosen': [USER, ANSWER], 'rejected': [USER, OTHER]},
    {'prompt': [USER], 'completions': [[ANSWER], [OTHER]], 'ranks': [0, 1]},
    {'messages': [USER, {**ANSWER, 'weight': 0}, USER, ANSWER]},
    {'messages': [USER, {'role': 'assistant', 'content': [{'type': 'text', 'text': 'parts'}]}], 'label': False},
    {'messages': [USER, CALL, {'role': 'tool', 'content': 'x', 'name': 'f'}, ANSWER], 'tools': [{'type': 'function'}]},
    {'conversations': [{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'b'}], 'system': 's'},
    {'instruction': 'a', 'input': 'b', 'output': 'c', 'history': [['q', 'r']]},
    {'instruction': 'a', 'input': '', 'response1': 'b', 'response2': 'c', 'annotator1': 1, 'annotator2': 2},
    {'question': 'a', 'answer': 'b'},
    {'prompt': 'a', 'completion': ' b', 'label': 1.0, 'weight': 0.5},
    {'prompt': 'a', 'completion': ' b', 'rating': 4, 'score': 0.2},
    {'conversations': [{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'b'}], 'kto_tag': True},
    {'prompt': [USER], 'completion': [ANSWER], 'label': False, 'tools': [{'type': 'function'}]},
    {'conversations': [{'from': 'human', 'value': 'a'}], 'chosen': {'from': 'gpt', 'value': 'b'}, 'rejected': 'c'},
    {'text': 'all of it'},
    {'prompt': [USER, {'role': 'assistant', 'content': 'hel'}], 'completion': [{'role': 'assistant', 'content': 'lo'}]},
)
NAMES = (
    'prompt',
    'completion',
    'chosen',
    'rejected',
    'label',
    'ranks',
    'messages',
    'tools',
    'system',
    'weight',
    'train',
)
NAMES += (
    'content',
    'role',
    'tool_calls',
    'function_call',
    'reasoning_content',
    'thinking',
    'name',
    'kto_tag',
    'margin',
    'rating',
    'score',
    'annotators',
    'feedback',
)
READERS = (read_answers, read_demonstrations, read_judged, read_pairs, read_rankings, read_prompts)
CODECS = []


def codecs():
    """Codecs of two templates, made once."""
    for name in TEMPLATES if not CODECS else ():
        tokenizer = train_tokenizer('bytes', ['a'], ('<|im_start|>', '<|im_end|>'))
        tokenizer.chat_template = TEMPLATES[name]
        CODECS.append(Codec(tokenizer, 256, 256, truncate=True, vocab_size=len(tokenizer)))
    return CODECS


def mutation(rng, workdir):
    """Writes records, one of them mutated, reads them in some way, and makes rows."""
    base = rng.choice(RECORDS)
    records = [base, values.mutated(rng, base, NAMES)]
    path = write(rng, workdir, records)
    if rng.random() < 0.2:
        path.write_bytes(values.mutated_bytes(rng, path.read_bytes()))
    reader, codec = rng.choice(READERS), rng.choice(codecs())
    read = reader(path)
    if reader is read_prompts:
        prompt_arrays(codec, [record['prompt'] for record in read])
        return None
    kept = fitting(codec, read)
    if reader is read_answers:
        judged = judged_rows(codec, judged_answers(kept), ragged=True)
        fine = (judged.label >= 0).all() and (judged.label <= 1).all() and len(judged.label) >= len(kept)
        return None if fine else f'wrong: labels {judged.label} of {len(kept)} records'
    if reader is read_pairs:
        rows = preference_rows(codec, kept, ragged=True).candidates
    elif reader is read_rankings:
        rows = ranking_rows(codec, kept, ragged=True).candidates
    else:
        rows = ragged_rows(codec, [r['prompt'] for r in kept], [r['completion'] for r in kept])
        for i, record in enumerate(kept):
            ids, learned = rows.row(i)
            if isinstance(record['completion'], str):
                text = codec.tokenizer.decode(ids[learned], skip_special_tokens=True)
                if '<' not in record['completion'] and text != record['completion'].replace('\ud83d', '\ufffd'):
                    return f'wrong: {text!r} is learned of {record["completion"]!r}'
    return None if rows.ids.max() < codec.vocab_size and (rows.counts > 0).all() else 'wrong: ids or nothing learned'


def write(rng, folder, records):
    """The records in some storage."""
    kind = rng.choice(('jsonl', 'jsonl', 'json', 'csv', 'tsv', 'parquet', 'jsonl.gz', 'csv.gz', 'jsonl.zst'))
    path, inner = folder / f'x.{kind}', kind.partition('.')[0]
    if kind == 'parquet':
        import pyarrow
        import pyarrow.parquet

        try:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
            return path
        except Exception:  # Columns of mixed kinds, which no Parquet file has.
            path, inner = folder / 'x.jsonl', 'jsonl'
    if inner in ('csv', 'tsv') and all(isinstance(record, dict) for record in records):
        file = io.StringIO()
        table = csv.writer(file, delimiter=',' if inner == 'csv' else '\t')
        names = list(dict.fromkeys(name for record in records for name in record))
        cell = lambda value: value if isinstance(value, str) else '' if value is None else json.dumps(value)  # noqa: E731
        table.writerows([names, *([cell(record.get(name)) for name in names] for record in records)])
        text = file.getvalue()
    else:
        text = json.dumps(records) if inner == 'json' else ''.join(json.dumps(record) + '\n' for record in records)
    content = text.encode('utf-8', 'surrogatepass')
    if path.suffix == '.gz':
        content = gzip.compress(content)
    if path.suffix == '.zst':
        import pyarrow

        content = pyarrow.compress(content, 'zstd', asbytes=True)
    path.write_bytes(content)
    return path
