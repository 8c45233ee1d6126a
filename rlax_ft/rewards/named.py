"""Rewards of ours by name, with options as in a call: `maths`, `length(at_most=200)`, `regex(pattern='^yes')`.

Leaves out models and functions of the user's, which the harness looks up.
"""

import ast
import functools
import inspect
import re
from collections.abc import Callable, Sequence

from rlax_ft.errors import InputError
from rlax_ft.rewards.code import code
from rlax_ft.rewards.judge import judge
from rlax_ft.rewards.maths import boxed, last_number, maths, symbolic
from rlax_ft.rewards.texts import choice, exact, format, json_schema, length, regex, repetition
from rlax_ft.types import RewardFn

_RULES = (
    maths,
    boxed,
    last_number,
    symbolic,
    choice,
    exact,
    regex,
    format,
    length,
    repetition,
    json_schema,
    code,
    judge,
)
NAMED: dict[str, Callable[..., Sequence[float]]] = {rule.__name__: rule for rule in _RULES}
_CALL = re.compile(r'(?P<name>[^()]*?)\s*(?P<arguments>\(.*\))?', re.DOTALL)


def split_parts(text: str) -> list[tuple[str, str]]:
    """The parts of a sum of rewards, `a*0.5, b(x=1)`, as (reward, weight or ''); commas in brackets part nothing."""
    parts, start, depth, quote = [], 0, 0, ''
    for i, character in enumerate(text):
        if quote:
            if character == quote and text[i - 1] != '\\':
                quote = ''
        elif depth and character in '\'"':
            quote = character
        elif character in '()':
            depth += 1 if character == '(' else -1
        elif character == ',' and not depth:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [_weighted(part.strip()) for part in parts if part.strip()]


def _weighted(part):
    """(reward, weight); a star within brackets is no weight's."""
    head, bracket, tail = part.rpartition(')')
    name, star, weight = (tail if bracket else part).rpartition('*')
    return (head + bracket + name, weight) if star else (part, '')


def parse_call(text: str, flag: str = 'reward') -> tuple[str, dict]:
    """`name(key=value, ...)` as (name, options); values are Python literals.

    Raises:
      InputError: it is no such call.
    """
    match = _CALL.fullmatch(text.strip())
    if match is None:
        raise InputError(f'--{flag}={text}: give NAME or NAME(option=value, ...), such as length(at_most=200)')
    if not match['arguments']:
        return match['name'], {}
    try:
        call = ast.parse(f'f{match["arguments"]}', mode='eval').body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError('an option without a name')
        return match['name'], {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f'--{flag}={text}: {reason}; options are NAME(option=value, ...), texts in quotes, such as '
            "regex(pattern='^yes')"
        ) from error


def with_options(function: Callable, options: dict, text: str, flag: str = 'reward') -> Callable:
    """The function with its options bound, each of the kind that its default has.

    Raises:
      InputError: one that it does not take, one that is missing, or a value of another kind.
    """
    takes = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY or (parameter.default is not parameter.empty)
    }
    known = ', '.join(takes) or 'none'
    for name, value in options.items():
        if name not in takes:
            raise InputError(f'--{flag}={text}: takes no option {name!r}; its options: {known}')
        default = takes[name].default
        kind = type(default)
        number = kind in (int, float) and isinstance(value, int | float) and not isinstance(value, bool)
        if default not in (takes[name].empty, None) and not number and not isinstance(value, kind):
            raise InputError(f'--{flag}={text}: {name} is {value!r}; a value such as {default!r} was expected')
    missing = [name for name, p in takes.items() if p.default is p.empty and name not in options]
    if missing:
        raise InputError(f'--{flag}={text}: needs {missing[0]}, as in {text.partition("(")[0]}({missing[0]}=...)')
    return functools.partial(function, **options) if options else function


def named_reward(text: str, flag: str = 'reward') -> RewardFn | None:
    """The reward of ours that `name(option=value, ...)` names; None where none has that name.

    Raises:
      InputError: the options are wrong.
    """
    name, options = parse_call(text, flag)
    return with_options(NAMED[name], options, text, flag) if name in NAMED else None
