"""Judgements that are no comparisons: answers with a rating, and solutions whose steps are right or wrong.

    {"prompt", "completion", "score"}                   a rated answer; "rating" is the same
    {"prompt", "completions": [..], "scores": [..]}     several of one prompt; "ratings" is the same
    {"prompt", "completions": [..], "labels": [..]}     a solution's steps (TRL's form); "steps" is the same

Leaves out what is learned from them.
"""

import itertools
import logging
import math
from pathlib import Path

import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.forms import convert, found, text
from rlax_ft.data.messages import message_list
from rlax_ft.data.rows import prompt_of, ragged_rows
from rlax_ft.data.sources import kind, read_raw
from rlax_ft.data.tokenizers import encode_continuations
from rlax_ft.errors import InputError
from rlax_ft.types import ScoredBatch, StepBatch, TokenBatch


def read_scored(source: str | Path) -> list[dict]:
    """Rated answers as {"prompt", "completion", "score"}, with their other fields.

    Raises:
      InputError: naming file and line, here as in `read_steps`.
    """
    return list(itertools.chain.from_iterable(_each(source, _rated)))


def read_steps(source: str | Path) -> list[dict]:
    """Solutions as {"prompt", "steps": [..], "labels": [..]}, labels as probabilities that a step is right."""
    return _each(source, _solution)


def scored_rows(codec: Codec, records: list[dict], *, ragged: bool = False) -> ScoredBatch:
    """Rated answers as a ScoredBatch [N], the scores as they are; `ragged` as in `rows.preference_rows`."""
    rows = ragged_rows(codec, [prompt_of(record) for record in records], [record['completion'] for record in records])
    scores = np.asarray([record['score'] for record in records], np.float32)
    return ScoredBatch(rows if ragged else rows[np.arange(len(records))], scores)


def step_rows(codec: Codec, solutions: list[dict], separator: str = '\n') -> StepBatch:
    """Solutions as a StepBatch [N]: the steps one after another, a separator behind each, and the end of the response.

    A step's label stands at its last token, which is the separator's where the tokenizer has one; the end has the last
    step's. What is longer than a response may be is left out, and counted in a warning.

    Raises:
      InputError: none is short enough, or one is not and `codec.truncate` is off.
    """
    prompts = codec.encode_prompts([prompt_of(solution) for solution in solutions])
    steps = iter(encode_continuations(codec.tokenizer, [s + separator for one in solutions for s in one['steps']]))
    end = list(codec.eos_ids[:1]) if codec.ends else []
    kept = []
    for prompt, solution in zip(prompts, solutions):
        parts = [(next(steps), label) for label in solution['labels']] + [(end, solution['labels'][-1])]
        ids = [i for part, _ in parts for i in part]
        if len(ids) <= codec.max_new_tokens:
            kept.append((prompt, [part for part in parts if part[0]], ids))
        elif not codec.truncate:
            raise codec.too_long('solution', ids, codec.max_new_tokens, '--max_new_tokens')
    left = len(solutions) - len(kept)
    if not kept:
        raise InputError(f'--max_new_tokens={codec.max_new_tokens}: all {left} solutions are longer; raise it')
    if left:
        logging.warning(
            '%d of %d records left out: a solution has more than %d tokens; raise --max_new_tokens to keep them',
            left,
            len(solutions),
            codec.max_new_tokens,
        )
    return _filled(codec, kept)


def step_ends(codec: Codec, batch: StepBatch, separator: str = '\n') -> tuple[int, ...]:
    """The tokens that end a step of the batch and say so: their text ends with the separator."""
    at = np.asarray(batch.rows.mask) > 0
    ids = np.unique(np.asarray(batch.rows.tokens)[at]).tolist()
    texts = codec.tokenizer.batch_decode([[i] for i in ids])
    return tuple(i for i, text in zip(ids, texts) if text.endswith(separator))


def _filled(codec, kept):
    length = -(-max(len(prompt) + len(ids) for prompt, _, ids in kept) // 8) * 8
    tokens = np.full((len(kept), length), codec.pad_id, np.int32)
    mask, labels = np.zeros(tokens.shape, np.float32), np.zeros(tokens.shape, np.float32)
    segment_ids = np.zeros(tokens.shape, np.int32)
    for row, (prompt, parts, ids) in enumerate(kept):
        whole = prompt + ids
        tokens[row, : len(whole)], segment_ids[row, : len(whole)] = whole, 1
        ends = len(prompt) - 1 + np.cumsum([len(part) for part, _ in parts])
        mask[row, ends], labels[row, ends] = 1.0, [label for _, label in parts]
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return StepBatch(TokenBatch(tokens, mask, positions, segment_ids), labels)


def _each(source, read):
    records = [read(convert(raw, where), where) for raw, where in read_raw(source)]
    if not records:
        raise InputError(f'{source}: the file holds no record; give at least one JSON object on a line of its own')
    return records


def _rated(record, where):
    several = 'completions' in record
    names = ('scores', 'ratings') if several else ('score', 'rating')
    name = next((name for name in names if name in record), None)
    if name is None or not ('completion' in record or several):
        raise InputError(
            f'{where}: expected {{"prompt", "completion", "score"}} or {{"prompt", "completions", "scores"}}; found '
            f'{found(record)}'
        )
    answers, scores = (record['completions'], record[name]) if several else ([record['completion']], [record[name]])
    if not isinstance(answers, list) or not isinstance(scores, list) or len(answers) != len(scores) or not answers:
        raise InputError(f'{where}: fields "completions" and "{name}" must be lists of one length')
    for score in scores:
        _number(score, where, name, -math.inf, math.inf, 'a finite number')
    used = ('prompt', 'completion', 'completions', *names)
    rest = {key: value for key, value in record.items() if key not in used}
    prompt = _prompt(record, where)
    return [
        {**rest, 'prompt': prompt, 'completion': _answer(a, prompt, where), 'score': float(s)}
        for a, s in zip(answers, scores)
    ]


def _solution(record, where):
    name = 'steps' if 'steps' in record else 'completions'
    steps, labels = record.get(name), record.get('labels')
    if not isinstance(steps, list) or not isinstance(labels, list):
        raise InputError(f'{where}: expected {{"prompt", "steps": [..], "labels": [..]}}; found {found(record)}')
    if not steps or len(steps) != len(labels):
        raise InputError(f'{where}: {len(steps)} steps and {len(labels)} labels; give one label a step')
    for step in steps:
        if not isinstance(step, str) or not step.strip():
            raise InputError(f'{where}: field "{name}" holds {kind(step)}; a text that is not empty was expected')
    for label in labels:
        _number(label, where, 'labels', 0, 1, 'true, false or a number from 0 to 1')
    rest = {key: value for key, value in record.items() if key not in ('prompt', 'labels', name)}
    return {**rest, 'prompt': _prompt(record, where), 'steps': steps, 'labels': [float(label) for label in labels]}


def _number(value, where, name, low, high, expected):
    if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        shown = value if isinstance(value, int | float) else kind(value)
        raise InputError(f'{where}: field "{name}" holds {shown}; {expected} was expected')


def _prompt(record, where):
    if isinstance(record.get('prompt'), list):
        return message_list(record['prompt'], where, 'prompt')
    return text(record, 'prompt', where)


def _answer(answer, prompt, where):
    if isinstance(answer, str):
        return answer if isinstance(prompt, str) else [{'role': 'assistant', 'content': answer}]
    if isinstance(prompt, str) or not isinstance(answer, list):
        raise InputError(f'{where}: a completion is {kind(answer)}; a text was expected, as the prompt is one')
    return message_list(answer, where, 'completion')
