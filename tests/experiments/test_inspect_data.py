"""inspect_data.py: what it prints of each kind of record, with and without colours, and that its counts are right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlax_ft.errors import InputError
from rlax_ft.harness.loading import load_script

SCRIPTS = Path(__file__).parents[2] / 'experiments'
inspect_data = load_script(SCRIPTS / 'inspect_data.py')
InspectSettings, inspect = inspect_data.InspectSettings, inspect_data.inspect

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / 'shared'
USER, ANSWER, OTHER = ({'role': r, 'content': c} for r, c in (('user', 'q?'), ('assistant', 'aa'), ('assistant', 'b')))


def look(tmp_path, *records, **given):
    path = tmp_path / 'data.jsonl'
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return inspect(InspectSettings(data=str(path), **{'tokenizer': 'bytes', **given}))


@pytest.mark.parametrize(
    ('record', 'shown'),
    [
        ({'prompt': 'p', 'completion': ' c'}, ['1 demonstrations', '[<bos>p]{ c<eos>}', '2 + 3 tokens, 3 learned']),
        ({'prompt': 'p', 'completion': 'c', 'label': False}, ['1 judged', 'record 0, label false', '[<bos>p]{c<eos>}']),
        ({'prompt': 'p', 'chosen': 'a', 'rejected': 'b'}, ['1 pairs', 'chosen: 2 + 2', '[<bos>p]{a<eos>}', '{b<eos>}']),
        ({'prompt': 'p', 'completions': ['a', 'b'], 'ranks': [1, 0]}, ['1 rankings', 'rank 1', 'rank 0', '{b<eos>}']),
        ({'prompt': 'p', 'completion': 'c', 'score': 0.5}, ['1 ratings', 'record 0, score 0.5', '[<bos>p]{c<eos>}']),
        (
            {'prompt': 'p', 'completions': ['a', 'b'], 'ratings': [3, 1]},
            ['2 ratings', 'score 3', 'score 1', '{b<eos>}'],
        ),
        ({'prompt': 'p', 'steps': ['a', 'b'], 'labels': [1, 0]}, ['1 solutions', 'labels 1, 0', '{a\nb\n<eos>}']),
        ({'prompt': 'p'}, ['1 prompts', 'prompt: 2 + 0 tokens', '[<bos>p]']),
        (
            {'messages': [USER, ANSWER, USER, OTHER]},
            ['[<bos>\n\nHuman: q?\n\nAssistant:]{ aa<eos>}(\n\nHuman: q?\n\nAssistant:){ b<eos>}'],
        ),
    ],
)
def test_every_kind(tmp_path, capsys, record, shown):
    look(tmp_path, record)
    out = capsys.readouterr().out
    for text in ('[prompt]  {response, learned}  (response, masked)', *shown):
        assert text in out


def test_colours_on_a_terminal_only(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv('NO_COLOR', raising=False)
    monkeypatch.setattr(inspect_data, 'wants_colour', lambda stream: True)
    look(tmp_path, {'messages': [USER, ANSWER, USER, OTHER]})
    out = capsys.readouterr().out
    assert '\x1b[1;32m aa<eos>\x1b[0m\x1b[33m\n\nHuman: q?' in out and '{' not in out


def test_no_color_is_heeded(monkeypatch):
    from rlax_ft.data.show import wants_colour

    class Terminal:
        def isatty(self):
            return True

    monkeypatch.delenv('NO_COLOR', raising=False)
    assert wants_colour(Terminal())
    monkeypatch.setenv('NO_COLOR', '1')
    assert not wants_colour(Terminal())


def test_counts(tmp_path, capsys):
    short, long = ({'prompt': 'p' * n, 'completion': 'c' * m} for n, m in ((3, 4), (30, 40)))
    limits = {'max_prompt_tokens': 16, 'max_new_tokens': 16}
    numbers = look(tmp_path, short, short, long, {**short, 'prompt': 'p' * 30}, **limits)
    # Rows of 4 + 5, 4 + 5 and 16 + 5 tokens: padded to 24, and packed into two rows of 32.
    assert numbers == {
        'records': 4,
        'left_out': 1,
        'cut_prompts': 1,
        'padding_share': pytest.approx(1 - 39 / 72),
        'padding_share_packed': pytest.approx(1 - 39 / 64),
    }
    out = capsys.readouterr().out
    assert '1 of 4 records left out (response over 16), 1 prompts cut at 16' in out
    assert 'padding 45.8% of all positions, packed 39.1%' in out


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(InputError, match='--data: give the records'):
        inspect(InspectSettings())
    with pytest.raises(InputError, match='--chat_template=zephyr: no such template or file; use plain, chatml'):
        look(tmp_path, {'prompt': 'p'}, chat_template='zephyr')
    (tmp_path / 'x.jsonl').write_text('{"messages": [{"role": "user"}]}\n')
    command = [sys.executable, 'experiments/inspect_data.py', f'--data={tmp_path}/x.jsonl']
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 2
    assert result.stderr.strip().endswith('line 1: field "messages", message 1: no "content"; a text was expected')
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ('name', 'kind', 'count'),
    [
        ('hh-rlhf/harmless-base-test.jsonl.gz', 'pairs', 2312),
        ('gsm8k/test.jsonl', 'demonstrations', 1319),
        ('llama-factory-demos/alpaca_en_demo.json', 'demonstrations', 999),
        ('llama-factory-demos/dpo_en_demo.json', 'pairs', 300),
        ('llama-factory-demos/kto_en_demo.json', 'judged', 300),
    ],
)
def test_real_data_with_a_real_tokenizer(capsys, name, kind, count):
    if not SHARED.exists():
        pytest.skip('the shared data sets are not here')
    numbers = inspect(InspectSettings(data=str(SHARED / 'data' / name), model=str(SHARED / 'weights/stories260K')))
    out = capsys.readouterr().out
    assert f'{count:,} {kind}' in out and '</s>}' in out
    assert numbers['records'] == count and numbers['padding_share_packed'] < numbers['padding_share']
