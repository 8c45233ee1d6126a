"""A run's samples.jsonl: read and checked, filtered, and two runs put side by side.

A record is one sample; everything but `prompt` and `completion` is optional, and so are further fields:

    {"step": 20, "prompt": text or messages, "completion": text, "reward": 1.5, "rewards": {"gold": 2, "length": -0.5},
     "kl": 0.8, "tokens": ["the", " cat"], "logps": [-0.1, -2.3], "ref_logps": [-0.2, -1.1], "advantages": [0.3, -0.4]}

`tokens` are the texts of the completion's tokens, and the lists beside it have a number for each. viewer.py draws them.
"""

import json
import operator
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from rlax_ft.errors import InputError

# Lists with a number for each token.
PER_TOKEN = ('logps', 'ref_logps', 'advantages')
_COMPARE = {
    '<=': operator.le,
    '>=': operator.ge,
    '==': operator.eq,
    '!=': operator.ne,
    '<': operator.lt,
    '>': operator.gt,
}


def read_samples(path: str | Path) -> tuple[list[dict], bool]:
    """(records, whether a last line that was cut off in writing is left out) of a run folder or a JSONL file.

    Raises:
      InputError: no such file, no record, or one that is not as above, with file and line.
    """
    file = Path(path)
    try:
        file = file / 'samples.jsonl' if file.is_dir() else file
        # Not splitlines: a completion may hold other characters that end a line.
        lines = file.read_text(encoding='utf-8').split('\n')
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f'{file}: cannot be read ({error}); give a run folder with samples, or a .jsonl file'
        ) from error
    records, cut = [], False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # Also a number of thousands of digits.
            cut = number == len(lines) and number > 1
            if not cut:
                raise InputError(f'{file}:{number}: not JSON ({error}); give one object a line') from error
            continue
        check_sample(record, f'{file}:{number}')
        records.append(record)
    if not records:
        raise InputError(f'{file}: holds no sample; give a file with at least one line')
    return records, cut


def check_sample(record, where: str) -> None:
    """Refuses a record that is not a sample.

    Raises:
      InputError: naming the place and the field.
    """
    if not isinstance(record, dict) or not {'prompt', 'completion'} <= record.keys():
        raise InputError(f'{where}: a sample has the fields "prompt" and "completion"')
    if not isinstance(record['completion'], str):
        raise InputError(f'{where}: field "completion" is {type(record["completion"]).__name__}; it must be a text')
    prompt = record['prompt']
    messages = isinstance(prompt, list) and all(isinstance(m, dict) for m in prompt)
    if not isinstance(prompt, str) and not messages:
        raise InputError(f'{where}: field "prompt" is neither a text nor a list of messages')
    if not isinstance(record.get('rewards') or {}, dict):
        raise InputError(f'{where}: field "rewards" must be an object of numbers by name')
    if not isinstance(record.get('step'), int | float | None):
        raise InputError(f'{where}: field "step" must be a number')
    tokens = record.get('tokens')
    if tokens is not None and not (isinstance(tokens, list) and all(isinstance(t, str) for t in tokens)):
        raise InputError(f'{where}: field "tokens" must be a list of texts')
    for name in PER_TOKEN:
        values = record.get(name)
        if values is None:
            continue
        if not isinstance(values, list) or not all(_is_number(v) for v in values):
            raise InputError(f'{where}: field "{name}" must be a list of numbers')
        if len(values) != len(tokens or ()):
            raise InputError(f'{where}: field "{name}" has {len(values)} numbers for {len(tokens or ())} tokens')


def prompt_text(prompt: str | list[dict]) -> str:
    """A prompt as text; of messages each one's role and content."""
    if isinstance(prompt, str):
        return prompt
    return '\n'.join(f'[{m.get("role", "?")}] {m.get("content") or ""}' for m in prompt)


def numbers(record: dict) -> dict[str, float]:
    """The numbers of a sample by name: its own fields, then `rewards.NAME` of each part of the reward."""
    own = {name: value for name, value in record.items() if _is_number(value)}
    parts = {f'rewards.{name}': value for name, value in (record.get('rewards') or {}).items() if _is_number(value)}
    return own | parts


def make_filter(where: str, records: list[dict]) -> Callable[[dict], bool]:
    """`f(record) -> bool` of `reward<0`, `rewards.gold>=1`, `step==20`, several with commas; or of a text to be found.

    A record without the number is not kept.

    Raises:
      InputError: no record has a number of that name, or what it is compared with is no number.
    """
    conditions = [re.fullmatch(r'\s*([\w./-]+)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*', part) for part in where.split(',')]
    if not all(conditions):
        return lambda record: where.lower() in f'{prompt_text(record["prompt"])}\n{record["completion"]}'.lower()
    known = sorted({name for record in records for name in numbers(record)})
    tests = []
    for name, compare, text in (condition.groups() for condition in conditions):
        if name not in known:
            raise InputError(f'--where={where}: no sample has a number {name!r}; found {", ".join(known) or "none"}')
        try:
            tests.append((name, _COMPARE[compare], float(text)))
        except ValueError as error:
            raise InputError(f'--where={where}: {text!r} is no number; give one such as {name}{compare}0') from error

    def keep(record):
        have = numbers(record)
        return all(name in have and compare(have[name], value) for name, compare, value in tests)

    return keep


def side_by_side(left: list[dict], right: list[dict]) -> list[tuple[dict | None, dict | None]]:
    """Samples of two runs for the same prompt, at the same step where both have that step, in the order of the first.

    What has no partner stands alone, with None beside it.
    """
    shared = {record.get('step') for record in left} & {record.get('step') for record in right}

    def key(record):
        return prompt_text(record['prompt']), record.get('step') if shared else None

    waiting = defaultdict(list)
    for record in right:
        waiting[key(record)].append(record)
    pairs = [(record, waiting[key(record)].pop(0) if waiting[key(record)] else None) for record in left]
    return pairs + [(None, record) for rest in waiting.values() for record in rest]


def _is_number(value):
    return isinstance(value, int | float)
