"""`calculator`: arithmetic that is too long to guess, and a tool that does one operation at a time.

The prompt is an expression of three numbers, such as `(37+58)*9`. What the assistant says is a call of the tool where
it ends with `=` (`37+58=`, answered with 95), and else its final answer: 1 where it is right, 0 otherwise.
"""

import re

import numpy as np

from rlax_ft.envs.text import TextEnvironment, TextStep

MAX_TURNS = 4
# Numbers that the calculator takes: no assistant may fill memory with one.
_CALL = re.compile(r'(-?\d{1,9})([-+*])(-?\d{1,9})=')


def calculate(call: str) -> str:
    """The calculator's answer to `a+b=`, `a-b=` or `a*b=`; `error` to anything else."""
    match = _CALL.fullmatch(call)
    if match is None:
        return 'error'
    a, b = int(match[1]), int(match[3])
    return str({'+': a + b, '-': a - b, '*': a * b}[match[2]])


def _solution(expression):
    """The calls that lead to the value, and the value, as texts."""
    first, operation, last = re.fullmatch(r'\((.+)\)([-+*])(\d+)', expression).groups()
    inner = calculate(f'{first}=')
    second = f'{inner}{operation}{last}='
    return [f'{first}=', second], calculate(second)


def _records(count, seed):
    rng = np.random.default_rng([seed, 2])
    records = []
    for a, b, c in rng.integers(10, 100, size=(count, 3)).tolist():
        one, two = rng.choice(['+', '-', '*'], size=2)
        expression = f'({a}{one}{b}){two}{c}'
        records.append({'prompt': [_says('user', expression)], 'answer': _solution(expression)[1]})
    return records


def _reset(record):
    return (str(record['answer']), 0), record['prompt']


def _step(state, text):
    answer, turn = state
    said = re.sub(r'\s+', '', text)
    if said.endswith('='):
        return TextStep((answer, turn + 1), [_says('tool', calculate(said))], 0.0, turn + 1 >= MAX_TURNS)
    return TextStep((answer, turn + 1), [], float(said == answer), True)


def _demonstrate(record, rng):
    """One in four guesses; the others call the tool, and misread each number that they write once in four."""
    calls, answer = _solution(record['prompt'][0]['content'])
    if rng.random() < 1 / 4:
        guess = str(rng.integers(10 ** (len(answer.lstrip('-')) - 1), 10 ** len(answer.lstrip('-'))))
        return [_says('assistant', guess)]
    messages, result = [], ''
    for call in calls:
        a, operation, b = re.fullmatch(r'(-?\d+)([-+*])(\d+)=', call).groups()
        call = f'{_misread(result or a, rng)}{operation}{_misread(b, rng)}='
        result = calculate(call)
        messages += [_says('assistant', call), _says('tool', result)]
    return [*messages, _says('assistant', _misread(result, rng))]


def _misread(number, rng):
    """The number, once in four with another digit somewhere."""
    if rng.random() >= 1 / 4:
        return number
    at = int(rng.choice([i for i, letter in enumerate(number) if letter.isdigit()]))
    return number[:at] + str((int(number[at]) + int(rng.integers(1, 10))) % 10) + number[at + 1 :]


def _says(role, content):
    return {'role': role, 'content': content}


CALCULATOR = TextEnvironment(
    'calculator', _reset, _step, MAX_TURNS, records=_records, demonstrate=_demonstrate, optimum=lambda records: 1.0
)
