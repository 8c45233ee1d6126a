"""Rewards on how a completion is written: choices, patterns, formats, lengths, repetition, JSON.

Each is `f(records, completions, *, options) -> a number for each`, and is named by --reward with its options.
"""

import collections
import functools
import importlib
import json
import re

from rlax_ft.errors import InputError
from rlax_ft.rewards.fields import field_of
from rlax_ft.rewards.maths import last_boxed

_THINKING = r'\s*<think>.*?</think>\s*<answer>.*?</answer>\s*'
_FENCE = re.compile(r'```(?:json)?[ \t]*\n(.*?)```', re.DOTALL)
_LABELS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'


def exact(records, completions, *, answer='answer', **_):
    """1 where the completion is the field's text but for blanks at its ends and for case, else 0."""
    return [
        float(text.strip().casefold() == str(field_of(record, answer)).strip().casefold())
        for record, text in zip(records, completions)
    ]


def choice(records, completions, *, answer='answer', choices='choices', **_):
    """1 where the chosen option of a multiple-choice question is the right one, else 0.

    The choice is a letter: in the last \\boxed{}, else behind the last `answer is` or `answer:`, else standing alone
    (`B`, `(b)`, `B.`, `**B**`) on the last line that has one. Where the text has no letter, the one option whose words
    it repeats is taken.

    Args:
      records: with `choices`, a list of texts, or ARC's {"text": [..], "label": [..]}; without, letters alone count.
      completions: texts.
      answer: the field with the right option: its letter, its number from 0, or its text.
      choices: the field with the options.
    """
    scores = []
    for record, text in zip(records, completions):
        labels, options = _options(record.get(choices), choices)
        right = _right_option(field_of(record, answer), labels, options, answer)
        scores.append(float(_chosen(text, labels, options) == right))
    return scores


def regex(records, completions, *, pattern, whole=False, **_):
    """1 where the pattern (of Python's `re`, `.` matches line ends too) is found, or matches the whole text, else 0."""
    compiled = _compiled(pattern)
    found = compiled.fullmatch if whole else compiled.search
    return [float(found(text) is not None) for text in completions]


def format(records, completions, *, pattern=_THINKING, **_):
    """1 where the whole text is <think>..</think><answer>..</answer>, each tag once, or matches the pattern, else 0."""
    tags = ('<think>', '</think>', '<answer>', '</answer>') if pattern == _THINKING else ()
    matched = regex(records, completions, pattern=pattern, whole=True)
    return [m * float(all(text.count(tag) == 1 for tag in tags)) for m, text in zip(matched, completions)]


def length(records, completions, *, at_most=0, at_least=0, unit='words', **_):
    """1 for texts within the limits; limit / length above `at_most`, length / limit below `at_least`.

    Args:
      records: are not read.
      completions: texts.
      at_most: 0 for no limit.
      at_least: 0 for no limit.
      unit: words or characters.
    """
    if unit not in ('words', 'characters') or not (at_most or at_least) or min(at_most, at_least) < 0:
        raise InputError(
            f'length(at_most={at_most}, at_least={at_least}, unit={unit!r}): give at_most or at_least, and unit words '
            'or characters'
        )
    counts = [len(text.split()) if unit == 'words' else len(text) for text in completions]
    return [
        min(1.0, at_most / max(count, 1) if at_most else 1.0, count / at_least if at_least else 1.0) for count in counts
    ]


def repetition(records, completions, *, n=3, **_):
    """The share of distinct n-grams of words less 1: 0 where none repeats, near -1 in a loop (arXiv 2502.03373)."""
    if n < 1:
        raise InputError(f'repetition(n={n}): n is at least 1')
    scores = []
    for text in completions:
        words = text.split()
        grams = collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        scores.append(len(grams) / grams.total() - 1.0 if grams else 0.0)
    return scores


def json_schema(records, completions, *, schema='schema', file='', **_):
    """1 where the text, or its one fenced block, is JSON that the schema allows; 0.5 where it is other JSON; else 0.

    Args:
      records: whose field `schema` holds a JSON schema, an object or its text, unless there is a file.
      completions: texts.
      schema: the field's name.
      file: of one schema for all.

    Raises:
      InputError: jsonschema (the extra `json`) is not installed, or a schema is none.
    """
    scores = []
    for record, text in zip(records, completions):
        validator = _validator(_read(file) if file else _as_text(field_of(record, schema)), file or f'field "{schema}"')
        try:
            value = json.loads(_fenced(text), parse_constant=_refuse)
        except (ValueError, RecursionError):
            scores.append(0.0)
            continue
        scores.append(1.0 if validator.is_valid(value) else 0.5)
    return scores


def _options(value, field):
    """(labels, texts) of the options; 26 letters and no texts where the record has none."""
    if value is None:
        return list(_LABELS), []
    if isinstance(value, dict) and isinstance(value.get('text'), list) and isinstance(value.get('label'), list):
        labels, options = [str(label).upper() for label in value['label']], value['text']
    elif isinstance(value, list):
        labels, options = list(_LABELS[: len(value)]), value
    else:
        raise InputError(
            f'field "{field}" is {value!r}; a list of texts, or {{"text": [..], "label": [..]}} was expected'
        )
    if len(labels) != len(options) or not options:
        raise InputError(f'field "{field}" has {len(options)} options and {len(labels)} labels; give as many, up to 26')
    return labels, [str(option) for option in options]


def _right_option(value, labels, options, field):
    """The label of the right option."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(labels):
        return labels[value]
    named = str(value).strip()
    if named.strip('().').upper() in labels:
        return named.strip('().').upper()
    same = [label for label, option in zip(labels, options) if option.strip().casefold() == named.casefold()]
    if len(same) != 1:
        raise InputError(
            f'field "{field}" is {value!r}, which is no option; give its letter, its number from 0, or its text'
        )
    return same[0]


def _chosen(text, labels, options):
    """The label that the text chooses; None where it chooses none."""
    letter = '(' + '|'.join(map(re.escape, labels)) + ')'
    boxed = last_boxed(text)
    if boxed is not None:
        inside = re.fullmatch(rf'(?:\\text\s*\{{)?\s*\(?{letter}\)?\s*\}}?', boxed, re.IGNORECASE)
        return inside[1].upper() if inside else _repeated(boxed, labels, options)
    # After the words a small letter counts only in brackets or alone: `the answer is a dog` chooses nothing.
    small = letter.lower()
    said = re.findall(
        rf'(?i:answer\**(?:\s+is|\s*:)\**:?\s*(?:option\s*)?)[\s*$]*(?:{letter}\b(?!\')|\(({letter[1:-1]}|{small[1:-1]})\)|{small}(?=[.\s]*$))',
        text,
        re.MULTILINE,
    )
    if said:
        return next(filter(None, said[-1])).upper()
    for line in reversed(text.splitlines()):
        alone = re.fullmatch(rf'[\s*(]*{letter}(?:[).:*]+.*|\s*)', line, re.IGNORECASE)
        if alone:
            return alone[1].upper()
    return _repeated(text, labels, options)


def _repeated(text, labels, options):
    """The one option whose words stand in the text."""
    said = [
        label
        for label, option in zip(labels, options)
        if re.search(rf'(?<!\w){re.escape(option.strip())}(?!\w)', text, re.IGNORECASE)
    ]
    return said[0] if len(said) == 1 else None


@functools.lru_cache(maxsize=64)
def _compiled(pattern):
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise InputError(f'the pattern {pattern!r} is no regular expression ({error})') from error


def _fenced(text):
    blocks = _FENCE.findall(text)
    return blocks[0] if len(blocks) == 1 else text


def _refuse(constant):
    raise ValueError(constant)  # NaN and Infinity are Python's, not JSON's.


def _as_text(schema):
    return schema if isinstance(schema, str) else json.dumps(schema)


@functools.lru_cache(maxsize=16)
def _read(file):
    try:
        with open(file, encoding='utf-8') as lines:
            return lines.read()
    except OSError as error:
        raise InputError(f'json_schema(file={file!r}): cannot be read ({error.strerror})') from error


@functools.lru_cache(maxsize=1024)
def _validator(text, where):
    try:
        jsonschema = importlib.import_module('jsonschema')
    except ImportError as error:
        raise InputError(
            "json_schema: needs jsonschema, which is not installed; pip install 'rlax_ft[json]'"
        ) from error
    try:
        schema = json.loads(text)
        kind = jsonschema.validators.validator_for(schema)
        kind.check_schema(schema)
    except (ValueError, jsonschema.SchemaError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f'{where} is no JSON schema: {reason}') from error
    return kind(schema)
