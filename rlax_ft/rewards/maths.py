"""Mathematical answers: found in what the model wrote, and compared exactly.

The right answer is the record's field `answer`: a number, a text (`42`, `3/4`, `\\frac{3}{4}`, GSM8K's solution that
ends with `#### 42`), or a list of answers of which each is right. Numbers are compared as fractions, so that 0.5, 1/2,
50/100 and \\frac12 are one number, and 0.333 is not 1/3; what is no number is compared as text without LaTeX's layout,
or by `symbolic` as an expression.
"""

import importlib
import itertools
import re
import threading
from fractions import Fraction

from rlax_ft.errors import InputError
from rlax_ft.rewards.fields import field_of

_SIGN, _DIGITS = r'[-+−]?', r'(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)'
_DECIMAL = rf'(?:{_DIGITS}(?:\.\d+)?|\.\d+)'
_LONGEST = 400  # Digits of a number.
# A mixed number, a fraction, or a decimal number with an exponent: the forms that `number` reads.
_NUMBER = re.compile(
    rf'(?<![\w.])(?P<sign>{_SIGN})\$?(?:(?P<whole>\d+)\s+(?P<up>\d+)\s*/\s*(?P<down>\d+)'
    rf'|(?P<over>{_DECIMAL})\s*/\s*(?P<under>{_DECIMAL})'
    rf'|(?P<decimal>{_DECIMAL})(?:[eE](?P<e>[-+]?\d{{1,3}})|\s*(?:×|\*)\s*10\s*(?:\^|\*\*)\s*(?P<power>[-+−]?\d{{1,3}}))?)'
)
# What stands before a final answer, the last of which counts.
_MARKERS = re.compile(r'####|^\s*A:|(?i:\banswer\**(?:\s+is|\s*[:=])\s*:?)', re.MULTILINE)
_LAYOUT = re.compile(r'\\(?:left|right|displaystyle|[,!;: ])|\\(?:text|mathrm|textbf|mathbf)\s*\{\s*\}|~')


def maths(records, completions, *, answer='answer', **_):
    """1 where the final answer is the record's, else 0.

    The final answer is what the last \\boxed{} holds; without one, what follows the last `####`, `Answer:`, `A:` or
    `the answer is`; without those, the last number.

    Args:
      records: with the right answer.
      completions: texts.
      answer: the field that holds it.
    """
    return _graded(records, completions, answer, final_answer)


def boxed(records, completions, *, answer='answer', **_):
    """1 where what the last \\boxed{} (or \\fbox{}) holds is the record's answer; 0 without one."""
    return _graded(records, completions, answer, last_boxed)


def last_number(records, completions, *, answer='answer', **_):
    """1 where the last number of the text is the record's answer, else 0."""
    return _graded(records, completions, answer, _last_number)


def symbolic(records, completions, *, answer='answer', seconds=5, **_):
    """1 where the final answer equals the record's as an expression, by math-verify (the extra `math`), else 0.

    Args:
      records: with the right answer.
      completions: texts.
      answer: the field that holds it.
      seconds: for each comparison; one that takes longer gives 0.

    Raises:
      InputError: math-verify is not installed.
    """
    try:
        verifier = importlib.import_module('math_verify')
    except ImportError as error:
        raise InputError(
            "symbolic: needs math-verify, which is not installed; pip install 'rlax_ft[math]', or use maths"
        ) from error
    # Its own limit is an alarm, which only the main thread can set.
    seconds = seconds if threading.current_thread() is threading.main_thread() else None

    def right(gold, text):
        found = final_answer(text)
        if found is None:
            return False
        if same_answer(gold, found):
            return True
        # A list [text] is taken as the answer itself, whatever is around it; \boxed{} makes it one expression.
        parsed = [verifier.parse(f'\\boxed{{{part}}}', parsing_timeout=seconds) for part in (gold, found)]
        return bool(verifier.verify(*parsed, timeout_seconds=seconds))

    return [
        float(any(right(gold, text) for gold in right_answers(record, answer)))
        for record, text in zip(records, completions)
    ]


def right_answers(record: dict, field: str = 'answer') -> list[str]:
    """The right answers of a record as texts, without the solutions that lead to them.

    Raises:
      InputError: the field is missing, or holds none.
    """
    value = field_of(record, field)
    answers = value if isinstance(value, list) else [value]
    texts = []
    for one in answers:
        if isinstance(one, bool) or not isinstance(one, str | int | float) or not str(one).strip():
            raise InputError(f'field "{field}" is {value!r}; a number, a text or a list of them was expected')
        marked = last_boxed(str(one)) or _marked(str(one))
        texts.append(marked or str(one).strip())
    if not texts:
        raise InputError(f'field "{field}" is an empty list; it needs an answer')
    return texts


def final_answer(text: str) -> str | None:
    """The final answer in a text, as `maths` finds it; None where there is none."""
    return last_boxed(text) or _marked(text) or _last_number(text)


def last_boxed(text: str) -> str | None:
    """What the last \\boxed{...} or \\fbox{...} that is closed holds; None without one."""
    for start in reversed([match.end() for match in re.finditer(r'\\f?boxed\s*\{', text)]):
        depth = 1
        for i in range(start, len(text)):
            depth += (text[i] == '{') - (text[i] == '}')
            if not depth:
                return text[start:i].strip() or None
    short = re.findall(r'\\boxed\s+([^\s$]+)', text)
    return short[-1] if short else None


def same_answer(gold: str, found: str) -> bool:
    """Whether two answers are one number, or, where the first is none, the same text but for layout."""
    number_of_gold = number(gold)
    if number_of_gold is not None:
        return number(found) == number_of_gold
    return plain(gold) == plain(found)


def number(text: str) -> Fraction | None:
    """The number that a text is, apart from a unit, a currency sign or `x =`; None where it holds none, or several.

    `1,234.5`, `-3/4`, `1 1/2`, `\\frac{3}{4}`, `1.5e3`, `2 \\times 10^3`, `.5`, `12 dollars`, `$5`; `50%` is 50.
    """
    left, _, text = plain(text, keep_blanks=True).rpartition('=')
    found = list(itertools.islice(_NUMBER.finditer(text), 2))
    if len(found) != 1 or re.search(r'[,;]\s|\band\b', left):
        return None
    before, after = text[: found[0].start()].strip(), text[found[0].end() :]
    # A letter, a root or an operation beside it makes it part of an expression; words behind it are a unit.
    unit = r'\s*[.)*]*|\s*[%°]\**|\s+[^\W\d_].{0,30}|[^\W\d_]{2,20}'
    return _value(found[0]) if re.fullmatch(r'[$€£¥(*]*', before) and re.fullmatch(unit, after) else None


def plain(text: str, *, keep_blanks: bool = False) -> str:
    """An answer without LaTeX's layout: \\frac{a}{b} is a/b, \\text{a} is a, dollars around it go, case is folded."""
    text = text.strip().replace('−', '-').replace('\\$', '$').replace('{,}', ',').replace('\\%', '%')
    text = re.sub(r'\^\s*\{?\s*\\circ\s*\}?', '°', text)
    text = re.sub(r'\\(?:times|cdot)(?![a-zA-Z])', '*', text)
    text = re.sub(r'10\s*\^\s*\{\s*([-+]?\d+)\s*\}', r'10^\1', text)
    text = re.sub(r'(\d)\s*\\[dt]?frac', r'\1 \\frac', text)
    text = re.sub(r'\\[dt]?frac\s*(\d)\s*(\d)', r'\1/\2', text)
    text = re.sub(r'\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}', _fraction, text)
    text = _LAYOUT.sub(' ', text)
    text = re.sub(r'\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}', r' \1', text)
    text = re.sub(r'^\\[(\[](.*)\\[)\]]$', r'\1', text.strip().rstrip('.'), flags=re.DOTALL)
    # One dollar is a currency, a pair of them is LaTeX's.
    text = text.strip('$ \n') if text.count('$') != 1 else text.strip()
    text = re.sub(r'^\(([a-zA-Z])\)$', r'\1', text)  # (B)
    return text if keep_blanks else re.sub(r'\s+', '', text).casefold()


def _fraction(match):
    parts = (part.strip() for part in match.groups())
    return '/'.join(part if re.fullmatch(r'-?[\w.]+', part) else f'({part})' for part in parts)


def _value(match) -> Fraction | None:
    """The fraction that a match of `_NUMBER` says; None where it divides by 0, or a model repeated a digit forever."""
    part = {name: text.replace(',', '') for name, text in match.groupdict().items() if text}
    if any(len(text) > _LONGEST for text in part.values()):
        return None
    sign = -1 if part.get('sign') in ('-', '−') else 1
    try:
        if 'whole' in part:
            return sign * (int(part['whole']) + Fraction(int(part['up']), int(part['down'])))
        if 'over' in part:
            return sign * Fraction(part['over']) / Fraction(part['under'])
    except ZeroDivisionError:
        return None
    power = int((part.get('e') or part.get('power') or '0').replace('−', '-'))
    return sign * Fraction(part['decimal']) * Fraction(10) ** power


def _marked(text):
    """What follows the last marker, up to the end of its line, or the last number there where it is a sentence."""
    found = list(_MARKERS.finditer(text))
    if not found:
        return None
    rest = text[found[-1].end() :].strip().split('\n', 1)[0].strip().strip('*').strip()
    if number(rest) is not None or not _NUMBER.search(rest):
        return rest.rstrip('.') or None
    # A sentence may go on behind the number: `the answer is 42 because ...`.
    first = _NUMBER.search(rest)
    return first[0].strip() if re.fullmatch(r'[^\w\\(\[{]*', rest[: first.start()]) and ' ' in rest else rest


def _last_number(text):
    # Between digits of a sum (3+4) a sign is an operation, in front of a number alone it is a sign.
    found = list(_NUMBER.finditer(plain(text, keep_blanks=True)))
    return found[-1][0].strip() if found else None


def _graded(records, completions, answer, find):
    grades = []
    for record, text in zip(records, completions):
        # The record is read whatever the text holds: a data set without answers does not pass for a weak model.
        right, found = right_answers(record, answer), find(text)
        grades.append(float(found is not None and any(same_answer(one, found) for one in right)))
    return grades
