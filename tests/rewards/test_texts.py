"""Rewards on how a text is written, against cases written by hand."""

import pytest

from rlax_ft.errors import InputError
from rlax_ft.rewards.texts import choice, exact, format, json_schema, length, regex, repetition

COLOURS = {'choices': ['red', 'green', 'dark blue'], 'answer': 'C'}


@pytest.mark.parametrize(
    ('text', 'score'),
    [
        ('C', 1),
        ('(c)', 1),
        ('C. dark blue', 1),
        ('**C**', 1),
        ('The answer is (C).', 1),
        ('Answer: C', 1),
        ('The answer is c.', 1),
        ('\\boxed{C}', 1),
        ('\\boxed{\\text{C}}', 1),
        ('\\boxed{dark blue}', 1),
        ('It must be dark blue, I think.', 1),
        ('A is wrong and B is wrong.\nC', 1),
        ('The answer is C. No, wait: the answer is B.', 0),
        ('Red or dark blue', 0),
        ('A', 0),
        ('Cats are fine', 0),
        ('The answer is a dog', 0),
        ('', 0),
    ],
)
def test_choice(text, score):
    assert choice([COLOURS], [text]) == [score]


def test_right_options_in_every_form():
    arc = {'choices': {'text': ['one', 'two'], 'label': ['1', '2']}, 'answer': '2'}
    forms = [
        {**COLOURS, 'answer': 2},
        {**COLOURS, 'answer': 'Dark blue'},
        {**COLOURS, 'answer': '(c)'},
        arc,
        {'answer': 'C'},
    ]
    assert choice(forms, ['C', 'C', 'C', 'The answer is 2', 'C']) == [1.0] * 5
    for wrong in ({**COLOURS, 'answer': 'pink'}, {**COLOURS, 'answer': 7}, {'choices': 'red', 'answer': 'A'}):
        with pytest.raises(InputError, match='field "'):
            choice([wrong], ['C'])


def test_patterns():
    assert exact([{'answer': 'Yes'}] * 2, [' yes\n', 'yes!']) == [1.0, 0.0]
    assert regex([{}] * 3, ['ab 12', 'b', '12'], pattern=r'\d+') == [1.0, 0.0, 1.0]
    assert regex([{}] * 2, ['ab 12', '12'], pattern=r'\d+', whole=True) == [0.0, 1.0]
    with pytest.raises(InputError, match='no regular expression'):
        regex([{}], ['a'], pattern='(')
    good = '<think>a\nb</think>\n<answer>4</answer>'
    assert format([{}] * 3, [good, good + ' more', good.replace('a', '<think>')]) == [1.0, 0.0, 0.0]
    assert format([{}] * 2, ['#### 4', 'so 4'], pattern=r'.*#### -?\d+') == [1.0, 0.0]


def test_length_and_repetition():
    assert length([{}] * 3, ['a b', 'a b c d', ''], at_most=2) == [1.0, 0.5, 1.0]
    assert length([{}] * 2, ['a b', 'a'], at_least=2) == [1.0, 0.5]
    assert length([{}], ['abcd'], at_most=2, unit='characters') == [0.5]
    with pytest.raises(InputError, match='give at_most or at_least'):
        length([{}], ['a'])
    # Bigrams of `a b a b`: ab, ba, ab, of which 2 of 3 are distinct.
    assert repetition([{}] * 3, ['a b a b', 'a b c', ''], n=2) == [pytest.approx(2 / 3 - 1), 0.0, 0.0]


def test_json_schema(tmp_path):
    pytest.importorskip('jsonschema', reason="jsonschema is not installed: pip install 'rlax_ft[json]'")
    schema = {'type': 'object', 'required': ['a'], 'properties': {'a': {'type': 'integer'}}}
    texts = ['{"a": 1}', '```json\n{"a": 2}\n```', '{"a": "x"}', '{"a": NaN}', 'no']
    assert json_schema([{'schema': schema}] * 5, texts) == [1.0, 1.0, 0.5, 0.0, 0.0]
    (tmp_path / 's.json').write_text('{"type": "array"}')
    assert json_schema([{}], ['[1]'], file=str(tmp_path / 's.json')) == [1.0]
    with pytest.raises(InputError, match='is no JSON schema'):
        json_schema([{'schema': {'type': 7}}], ['1'])
