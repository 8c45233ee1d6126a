"""Samples are read, filtered, paired and drawn without a loss, and cannot steer the terminal."""

import json

import pytest

from rlax_ft.errors import InputError
from rlax_ft.evaluate.samples import make_filter, numbers, read_samples, side_by_side
from rlax_ft.evaluate.viewer import (
    ansi,
    columns,
    plain,
    printable,
    render,
    text_width,
    token_table,
    token_values,
    views_of,
    wrap,
)

FULL = {
    'step': 20,
    'prompt': [{'role': 'user', 'content': 'Go on.'}],
    'completion': 'a b',
    'reward': 1.5,
    'rewards': {'gold': 2.0, 'length': -0.5},
    'tokens': ['a', ' b'],
    'logps': [-0.5, -5.0],
    'ref_logps': [-1.0, -4.0],
    'advantages': [0.0, float('nan')],
}
BARE = {'prompt': 'Say a', 'completion': 'b'}


def write(path, *lines, end='\n'):
    path.write_text('\n'.join(lines) + end)
    return path


def test_files_and_folders_are_read_whole(tmp_path):
    odd = {**BARE, 'completion': 'one\u2028line\x85 only'}
    file = write(tmp_path / 'samples.jsonl', *(json.dumps(r, ensure_ascii=False) for r in (BARE, odd)))
    assert read_samples(tmp_path) == read_samples(file) == ([BARE, odd], False)
    # A run that is writing: the last line is cut off, and only that one may be.
    write(file, json.dumps(BARE), '{"prompt": "x', end='')
    assert read_samples(file) == ([BARE], True)
    with pytest.raises(InputError, match=r'cannot be read'):
        read_samples('a' * 5000)
    write(file, '{"reward": ' + '1' * 5000 + '}', json.dumps(BARE))
    with pytest.raises(InputError, match=r'samples.jsonl:1: not JSON'):
        read_samples(file)
    write(file, '{"prompt": "x', json.dumps(BARE))
    with pytest.raises(InputError, match=r'samples.jsonl:1: not JSON'):
        read_samples(file)


@pytest.mark.parametrize(
    'record, match',
    [
        (None, 'has the fields "prompt" and "completion"'),
        ({'prompt': 'x'}, 'has the fields "prompt" and "completion"'),
        ({**BARE, 'completion': 3}, '"completion" is int'),
        ({**BARE, 'prompt': [3]}, 'neither a text nor a list of messages'),
        ({**BARE, 'rewards': [1]}, '"rewards" must be an object'),
        ({**BARE, 'tokens': [1]}, '"tokens" must be a list of texts'),
        ({**FULL, 'logps': [-1.0]}, '"logps" has 1 numbers for 2 tokens'),
        ({**FULL, 'advantages': ['x', 'y']}, '"advantages" must be a list of numbers'),
        ({**BARE, 'logps': [-1.0]}, '"logps" has 1 numbers for 0 tokens'),
    ],
)
def test_a_record_that_is_no_sample_is_refused_with_its_line(tmp_path, record, match):
    with pytest.raises(InputError, match=rf'samples.jsonl:2: .*{match}'):
        read_samples(write(tmp_path / 'samples.jsonl', json.dumps(BARE), json.dumps(record)))


def test_filters():
    records = [FULL, {**BARE, 'reward': -1.0}, BARE]
    kept = lambda where: [make_filter(where, records)(record) for record in records]  # noqa: E731
    assert numbers(FULL) == {'step': 20, 'reward': 1.5, 'rewards.gold': 2.0, 'rewards.length': -0.5}
    assert kept('reward<0') == [False, True, False] and kept('reward != 0') == [True, True, False]
    assert kept('reward>=1.5,rewards.gold==2') == [True, False, False]
    assert kept('SAY') == [False, True, True] and kept('go on') == [True, False, False]
    with pytest.raises(InputError, match=r"no sample has a number 'gold'; found reward, rewards\.gold"):
        make_filter('gold<0', records)
    with pytest.raises(InputError, match="'low' is no number"):
        make_filter('reward<low', records)


def test_two_runs_are_paired_by_prompt_and_step():
    a = [{**BARE, 'step': 1}, {**BARE, 'step': 2}, {**FULL, 'step': 2}]
    b = [{**BARE, 'step': 2, 'completion': 'c'}, {'prompt': 'other', 'completion': 'd', 'step': 2}]
    assert side_by_side(a, b) == [(a[0], None), (a[1], b[0]), (a[2], None), (None, b[1])]
    # Where no step is shared, prompts are enough.
    assert side_by_side(a[:1], [BARE]) == [(a[0], BARE)]


def test_tokens_are_coloured_by_their_numbers():
    assert views_of([FULL]) == ['logp', 'kl', 'advantage'] and views_of([BARE]) == []
    assert token_values(FULL, 'kl') == [0.5, -1.0]
    styles = lambda view: [style for line in render(FULL, view=view) for text, style in line if text in ('a', ' b')]  # noqa: E731
    assert styles('logp') == ['', '38;5;16;48;5;208'] and styles('advantage') == ['', '7']
    likelier, less = styles('kl')
    assert likelier.endswith('217') and less.endswith('69')  # Half of the strongest, and the strongest.
    assert [row.split() for row in token_table(FULL)[1:]] == [
        ["'a'", '-0.500', '0.500', '0.000'],
        ["'", "b'", '-5.000', '-1.000', 'nan'],
    ]
    text = '\n'.join(plain(line) for line in render(FULL, view='kl'))
    assert 'rewards.gold 2' in text and '[user] Go on.' in text and 'strongest at 1 nats' in text
    assert token_table(BARE) == [] and 'b' in [plain(line) for line in render(BARE)]


def test_lines_fit_and_lose_nothing():
    text = 'the plot was funny, 音楽は素晴らしい and averyveryverylongword\n\nend'
    lines = [plain(line) for line in wrap([(text, '')], 12)]
    assert max(map(text_width, lines)) <= 12
    assert ''.join(lines).replace('⏎', '') == text.replace('\n', '')
    both = columns(render(FULL, width=20), render(None, width=20), 20)
    assert len({text_width(plain(line).partition(' │ ')[0]) for line in both}) == 1


def test_a_sample_cannot_steer_the_terminal():
    text = 'a\x1b[2Jb\x07\x9b\u202e\ud83d\tc'
    assert printable(text) == 'a␛[2Jb␇\ufffd\ufffd\ufffd' + ' ' * (len(printable(text)) - 11) + 'c'
    record = {**BARE, 'completion': text, 'prompt': text, '\x1b[2J': 1.0}
    drawn = ''.join(ansi(line) for line in render(record))
    assert '\x1b[2J' not in drawn and drawn.count('\x1b[') % 2 == 0
