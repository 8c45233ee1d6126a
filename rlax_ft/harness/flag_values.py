"""What the value of a flag is held against, before anything is made of it.

Leaves out what a flag's definition says (settings.py), and what flags say together, which each script checks.
"""

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any

from rlax_ft.errors import InputError

_MOST = 2**31 - 1  # Of an integer that has no other bound: what jax counts with.
_LARGEST = 1e12  # Of a number that has no other bound: its products are still within float32.


def check_value(settings: Any, field: dataclasses.Field) -> None:
    """Refuses what a flag was given, by what its definition says (`settings.flag`).

    Raises:
      InputError: out of its choices or bounds, without the flag that it needs, or naming a function that is not there.
    """
    value, (at_least, above, at_most) = getattr(settings, field.name), field.metadata['bounds']
    name = f'--{field.name}={value}'
    if field.metadata['choices'] and value not in field.metadata['choices']:
        raise InputError(f'{name}: must be one of {", ".join(filter(None, field.metadata["choices"]))}')
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f'{name}: must be a finite number')
    if isinstance(value, str):
        if '\0' in value:
            raise InputError(f'--{field.name}={value[:40]!r}: has a NUL character, which no name has')
        _check_functions(name, value)
    if isinstance(value, int | float) and at_most is None:
        at_most = _LARGEST if isinstance(value, float) else _MOST
    if isinstance(value, float) and at_least is None and above is None:
        at_least = -_LARGEST
    for bound, words, good in (
        (at_least, 'at least', lambda b: value >= b),
        (above, 'above', lambda b: value > b),
        (at_most, 'at most', lambda b: value <= b),
    ):
        if bound is not None and not good(bound):
            raise InputError(f'{name}: must be {words} {bound:.10g}')
    needs = field.metadata['needs']
    other, equals, wanted = needs.partition('=')
    met = not needs or (getattr(settings, other) == wanted if equals else getattr(settings, other))
    if value != field.default and not met:
        raise InputError(f'{name}: has no effect without --{needs}; give that, or leave it out')
    beside = field.metadata['beside']
    if beside and value != field.default and getattr(settings, beside):
        raise InputError(f'{name}: has no effect beside --{beside}={getattr(settings, beside)}; leave one out')


def _check_functions(name, value):
    """Refuses a mistyped FILE.py:FUNCTION before anything is made; the file itself is run where it is needed."""
    for file, function in re.findall(r'([^\s,;=*+]+\.py):(\w+)', value):
        if not os.path.isfile(file):  # Path's own raises where a name is too long.
            raise InputError(f'{name}: {file}: no such file')
        if not re.search(rf'\b{function}\b', Path(file).read_text(errors='replace')):
            raise InputError(f'{name}: {file} has no function {function!r}')
