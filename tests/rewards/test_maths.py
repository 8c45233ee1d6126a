"""Mathematical answers: found and compared exactly, against cases written by hand and GSM8K's graded solutions."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from rlax_ft.errors import InputError
from rlax_ft.rewards.maths import boxed, final_answer, last_number, maths, number, symbolic

ROOT = Path(__file__).parents[2]
GRADED = ROOT.parent / 'shared/data/gsm8k/example_model_solutions.jsonl'


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('42', 42),
        ('-7', -7),
        ('−7', -7),
        ('1,234,567.50', Fraction('1234567.5')),
        ('$1,000', 1000),
        ('-$5', -5),
        ('$42$.', 42),
        (r'\$18', 18),
        ('3/4', Fraction(3, 4)),
        ('-3/4', Fraction(-3, 4)),
        ('1 1/2', Fraction(3, 2)),
        (r'\frac{3}{4}', Fraction(3, 4)),
        (r'-\dfrac{3}{4}', Fraction(-3, 4)),
        (r'\frac{-3}{4}', Fraction(-3, 4)),
        (r'\frac12', Fraction(1, 2)),
        (r'2\frac{1}{2}', Fraction(5, 2)),
        ('.5', Fraction(1, 2)),
        ('1.5e3', 1500),
        (r'2 \times 10^{3}', 2000),
        (r'1{,}000', 1000),
        ('x = 5', 5),
        ('3 + 4 = 7', 7),
        ('12 dollars', 12),
        ('12 km/h', 12),
        (r'5\text{ cm}', 5),
        ('50%', 50),
        (r'50\%', 50),
        ('**42**', 42),
        (r'\(8\)', 8),
        (r'\[ 8 \]', 8),
        ('0.1', Fraction(1, 10)),
        ('2x', None),
        (r'5\pi', None),
        (r'\sqrt{2}', None),
        ('3^2', None),
        ('1/0', None),
        ('3, 4', None),
        ('x = 5, y = 3', None),
        ('1.2.3', None),
        ('9' * 5000, None),
        ('', None),
    ],
)
def test_numbers(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    ('text', 'answer'),
    [
        ('so 3 + 4 = 7.\n#### 7', '7'),
        ('A: 18', '18'),
        ('Thus \\boxed{\\frac{1}{2}} and \\boxed{3}. A: 9', '3'),
        ('\\boxed{\\frac{1}{\\sqrt{2}}}', '\\frac{1}{\\sqrt{2}}'),
        ('The answer is 12 apples, not 13.', '12'),
        ('**Answer:** 5', '5'),
        ('Final answer: -3', '-3'),
        ('first 3, then 10', '10'),
        ('10 - 4', '4'),
        ('a = 5 and so 7 remain', '7'),
        ('none', None),
        ('\\boxed{', None),
    ],
)
def test_final_answers(text, answer):
    assert final_answer(text) == answer


def test_rewards_compare_exactly():
    right = ['0.5', '1/2', '50/100', '\\frac12', '\\boxed{\\frac{2}{4}}', 'It is 0.50']
    assert maths([{'answer': '1/2'}] * 6, right) == [1.0] * 6
    assert maths([{'answer': '1/3'}], ['0.333333']) == [0.0]
    assert maths([{'answer': 42}, {'answer': ['7', 'seven']}], ['#### 42.0', '\\boxed{Seven}']) == [1.0, 1.0]
    assert maths([{'answer': 'so 2 + 2\n#### 4'}] * 2, ['4', '5']) == [1.0, 0.0]
    assert maths([{'answer': '(3, 4)'}] * 2, ['\\boxed{(3,4)}', '\\boxed{(4,3)}']) == [1.0, 0.0]
    assert maths([{'gold': '4'}], ['4'], answer='gold') == [1.0]
    assert maths([{'answer': 'B'}] * 2, ['The answer is (b).', 'The answer is (C)']) == [1.0, 0.0]
    both = 'The answer is 4, or 5'
    assert (boxed([{'answer': '4'}], [both]), last_number([{'answer': '5'}], [both])) == ([0.0], [1.0])
    assert boxed([{'answer': '4'}], ['\\boxed{4}, not 5']) == [1.0]


def test_a_record_without_an_answer_is_named():
    with pytest.raises(InputError, match=r'no field "answer"; found \'prompt\''):
        maths([{'prompt': 'x'}], ['no number'])
    with pytest.raises(InputError, match='field "answer" is None'):
        maths([{'answer': None}], ['4'])


def test_symbolic():
    pytest.importorskip('math_verify', reason="math-verify is not installed: pip install 'rlax_ft[math]'")
    records = [{'answer': r'\frac{\sqrt{2}}{2}'}, {'answer': r'x^2+2x+1'}, {'answer': '1/3'}, {'answer': 'x+1'}]
    texts = [r'\boxed{\frac{1}{\sqrt{2}}}', r'\boxed{(x+1)^2}', r'\boxed{\frac{2}{6}}', r'\boxed{x-1}']
    assert symbolic(records, texts) == [1.0, 1.0, 1.0, 0.0]
    assert maths(records, texts) == [0.0, 0.0, 1.0, 0.0]


@pytest.mark.skipif(not GRADED.exists(), reason="GSM8K's graded solutions are not here")
def test_graded_solutions_of_gsm8k():
    command = [sys.executable, ROOT / 'experiments/benchmarks/gsm8k_rewards.py', f'--data={GRADED}']
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1].split()
    assert int(last[3]) == 5276 and int(last[1]) >= 5276 - 26
    assert len(done.stdout.splitlines()) == 1 + int(last[3]) - int(last[1])
