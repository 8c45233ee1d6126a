"""Records of every form as the few that training knows, checked one by one.

The forms are TRL's, and one of ours for rankings; forms.py turns others into them:

    {"prompt", "completion"}                    a demonstration
    {"prompt", "completion", "label"}           a judged completion, true for a good one
    {"prompt", "chosen", "rejected"}            a comparison; the prompt may be implicit, the common beginning
    {"prompt", "completions": [..], "ranks": [..]}   a ranking, rank 0 is best, equal ranks are ties
    {"prompt"}                                  a prompt

Prompts and answers are texts, or lists of messages {"role", "content"}, both of one kind within a record. A form with
more can stand in for one with less. All other fields of a record stay in it; "tools" (schemas) also travel with a
prompt of messages. Leaves out files (sources.py) and tokens (codec.py).
"""

import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from rlax_ft.data.feedback import as_records
from rlax_ft.data.forms import FIELDS, convert, found, text
from rlax_ft.data.messages import is_learned, message_list, parse_tools, with_tools
from rlax_ft.data.sources import kind, read_raw
from rlax_ft.errors import InputError

# In dialogues such as hh-rlhf's, the response is what follows the last turn marker that both texts share.
_TURN = '\n\nAssistant:'
_LARGEST = float(np.finfo(np.float32).max)


def read_demonstrations(source: str | Path) -> list[dict]:
    """Records as {"prompt", "completion"}.

    Of a comparison the chosen answer, and of a ranking the best, is demonstrated; of judged completions the good ones.

    Args:
      source: a file, or the id of a data set on the hub; see sources.py.

    Raises:
      InputError: naming file and line, here as in every reader below.
    """
    records = _read(source, demonstration, 'demonstrations')
    kept = [record for record in records if record is not None]
    if not kept:
        raise InputError(f'{source}: every completion has the label false; nothing is demonstrated')
    if len(kept) < len(records):
        logging.warning('%s: %d completions with the label false left out', source, len(records) - len(kept))
    if weighed := sum(record.get('weight', 1) != 1 for record in kept):
        logging.warning(
            '%s: the field "weight" of %d records has no effect: demonstrations count alike', source, weighed
        )
    return kept


def demonstration(record: dict, where: str) -> dict | None:
    """One converted record as {"prompt", "completion"}; None where its completion is judged bad."""
    if _is_ranking(record):
        ranking = _ranking(record, where)
        best = min(range(len(ranking['ranks'])), key=ranking['ranks'].__getitem__)
        return _other(ranking) | {'prompt': ranking['prompt'], 'completion': ranking['completions'][best]}
    if 'completion' in record:
        # A class beside plain text is no judgement.
        judged = 'label' in record and (record.get('prompt') != '' or isinstance(record['label'], bool))
        if judged and not _judged(record, where)['label']:
            return None
        return _answers(record, ('completion',), where)
    pair = _better_first(_pair(record, where, 'a demonstration {"prompt", "completion"}'))
    return _of_one_side(pair) | {'prompt': pair['prompt'], 'completion': pair['chosen']}


def read_judged(source: str | Path) -> list[dict]:
    """Records as {"prompt", "completion", "label"}; a comparison gives a good and a bad completion."""

    def convert_record(record, where):
        if 'chosen' in record or 'rejected' in record:
            pair = _better_first(_compared(_pair(record, where, ''), where, ('weight',)))
            return [
                _of_one_side(pair) | {'prompt': pair['prompt'], 'completion': pair[side], 'label': side == 'chosen'}
                for side in ('chosen', 'rejected')
            ]
        return [_judged(record, where)]

    return list(itertools.chain.from_iterable(_read(source, convert_record, 'flat')))


def read_pairs(source: str | Path, weigh: Callable | None = None) -> list[dict]:
    """Records as {"prompt", "chosen", "rejected"}; a ranking gives all its pairs of unequal rank.

    A pair may have "label" (the probability that "chosen" wins), "margin" and "weight". Rows of feedback (feedback.py)
    are joined by item, their annotators' votes as `weigh(rows) -> {annotator: weight}` says, or equally.
    """
    return list(itertools.chain.from_iterable(read_pair_groups(source, weigh)))


def read_pair_groups(source: str | Path, weigh: Callable | None = None) -> list[list[dict]]:
    """The pairs of `read_pairs`, those of one ranking together: who holds some out keeps a ranking whole."""

    def convert_record(record, where):
        if 'pairs' in record and 'prompt' not in record:
            return [_better_first(_compared(_pair(pair, where, ''), where)) for pair in record['pairs']]
        if _is_ranking(record):
            return ranking_pairs(_compared(_ranking(record, where), where))
        pair = _pair(record, where, 'a comparison {"prompt", "chosen", "rejected"}')
        return [_better_first(_compared(pair, where))]

    groups = _read(source, convert_record, 'pairs', weigh)
    if not any(groups):
        raise InputError(f'{source}: every ranking is one tie; give at least one record that prefers something')
    return groups


def read_rankings(source: str | Path) -> list[dict]:
    """Records as {"prompt", "completions", "ranks"}; a comparison is a ranking of two."""

    def convert_record(record, where):
        if _is_ranking(record):
            return _compared(_ranking(record, where), where)
        pair = _better_first(_compared(_pair(record, where, 'a ranking {"prompt", "completions", "ranks"}'), where))
        sides = {'completions': [pair['chosen'], pair['rejected']], 'ranks': [0, 0 if pair.get('label') == 0.5 else 1]}
        return {'prompt': pair['prompt'], **sides, **_other(pair)}

    return _read(source, convert_record, 'rankings')


def read_prompts(source: str | Path, *, optional: bool = False) -> list[dict]:
    """Records of any form as {"prompt"}, a text or a message list, with all fields that are no answers.

    Args:
      source: as `read_raw` takes it.
      optional: a record may have no prompt: who reads it has words of its own, as a text environment does.
    """

    def convert_record(record, where):
        if optional and not {'prompt', 'chosen'} & record.keys():
            return _other(record)
        if 'prompt' not in record and 'chosen' in record:
            pair = _pair(record, where, 'a prompt {"prompt"}')
            return {'prompt': pair['prompt'], **_other(pair)}
        return _tooled({'prompt': _value(record, 'prompt', where), **_other(record)}, where)

    return _read(source, convert_record, 'prompts')


def ranking_pairs(ranking: dict) -> list[dict]:
    """The comparisons {"prompt", "chosen", "rejected"} that a ranking implies, ties left out, with its other fields."""
    ranked = list(zip(ranking['ranks'], ranking['completions']))
    return [
        {'prompt': ranking['prompt'], 'chosen': a if i < j else b, 'rejected': b if i < j else a, **_other(ranking)}
        for (i, a), (j, b) in itertools.combinations(ranked, 2)
        if i != j and a != b
    ]


def plain_text(value) -> str:
    """A text as it is; of messages what they say, a paragraph each."""
    return value if isinstance(value, str) else '\n\n'.join(message.get('content') or '' for message in value)


def record_texts(records: Iterable[dict]) -> list[str]:
    """All that the records say, for who must count or learn words."""
    texts = []
    for record in records:
        answers = record.get('completions') or [record[k] for k in ('completion', 'chosen', 'rejected') if k in record]
        texts += [plain_text(record['prompt']) + plain_text(answer) for answer in answers]
    return texts


def write_records(path: str | Path, records: list[dict]) -> None:
    """Writes a JSONL file whole or not at all."""
    path = Path(path)
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records))
    os.replace(temporary, path)


def _read(source, convert_record: Callable, view: str, weigh: Callable | None = None) -> list:
    raws = as_records(source, read_raw(source), view, weigh)
    records = [_converted(raw, where, convert_record) for raw, where in raws]
    if not records:
        raise InputError(f'{source}: the file holds no record; give at least one JSON object on a line of its own')
    return records


def _converted(raw, where, convert_record):
    try:
        return convert_record(convert(raw, where), where)
    except InputError as error:
        nulls = ', '.join(f'field "{name}" is null' for name, value in raw.items() if value is None)
        raise InputError(f'{error}; {nulls}; a text was expected') if nulls else error from error


def _other(record):
    """The fields that are neither prompt nor answers."""
    return {name: value for name, value in record.items() if name not in FIELDS}


def _of_one_side(pair):
    """The other fields of a pair that say something of an answer alone."""
    return {name: value for name, value in _other(pair).items() if name not in ('label', 'margin')}


def _better_first(pair):
    """The pair with the likelier answer as "chosen": for a loss (`pair_loss`) the same, for who takes one side not."""
    label = pair.get('label', 1.0)
    if not isinstance(label, int | float) or not 0 <= label < 0.5:
        return pair
    turned = {**pair, 'chosen': pair['rejected'], 'rejected': pair['chosen'], 'label': 1.0 - label}
    return turned | ({'margin': -pair['margin']} if isinstance(pair.get('margin'), int | float) else {})


def _is_ranking(record):
    return 'completions' in record and ('ranks' in record or not record.keys() & {'completion', 'chosen'})


def _tooled(record, where):
    """The record with its tools read, and in its prompt, too; beside a text "tools" is a field like any other."""
    if isinstance(record['prompt'], str) or not record.keys() & {'tools', 'functions'}:
        return record
    tools = parse_tools(record, where)
    rest = {name: value for name, value in record.items() if name not in ('tools', 'functions')}
    return {**rest, 'prompt': with_tools(record['prompt'], tools), 'tools': tools} if tools else rest


def _compared(record, where, names=('label', 'margin', 'weight')):
    """The record, with those of its numbers checked.

    Raises:
      InputError: one of them is no number, or out of its bounds.
    """
    bounds = {'label': (0.0, 1.0), 'margin': (-_LARGEST, _LARGEST), 'weight': (0.0, _LARGEST)}
    wanted = {
        'label': 'the probability that "chosen" wins, 0 to 1,',
        'margin': 'a finite number',
        'weight': 'a finite number of at least 0',
    }
    for name in names:
        low, high = bounds[name]
        # A NaN is within no bounds.
        if name in record and not (isinstance(record[name], int | float) and low <= record[name] <= high):
            value = str(record[name])[:40] if isinstance(record[name], int | float) else kind(record[name])
            raise InputError(f'{where}: field "{name}" is {value}; {wanted[name]} was expected')
    return record


def _value(record, field, where):
    """A text, or a list of messages."""
    if isinstance(record.get(field), list):
        return message_list(record[field], where, field)
    return text(record, field, where)


def _answers(record, fields, where):
    """The record with its prompt and the answers in `fields`, texts all, or message lists all, and no other answers."""
    values = {field: _value(record, field, where) for field in ('prompt', *fields)}
    if any(isinstance(value, list) for value in values.values()):
        for field in fields:
            values[field] = _as_messages(values[field], 'assistant')
            if not any(message['role'] == 'assistant' for message in values[field]):
                raise InputError(f'{where}: field "{field}" has no message of the role assistant; nothing to learn')
            if not any(map(is_learned, values[field])):
                raise InputError(f'{where}: field "{field}": every message of the assistant has the weight 0')
        prompt = values['prompt'] = _as_messages(values['prompt'], 'user')
        for field in fields:
            values[field] = values[field][_repeated(prompt, values[field]) :]
        leads = [_lead(values[field]) for field in fields]
        other = next((field for field, lead in zip(fields, leads) if lead != leads[0]), '')
        if other:
            raise InputError(
                f'{where}: fields "{fields[0]}" and "{other}" begin with other messages before the assistant\'s first; '
                'what is compared must answer the same prompt'
            )
    return _tooled({**_other(record), **values}, where)


def _repeated(prompt, answer):
    """How many messages of a whole conversation the prompt has already: all of its own, or those at its end."""
    if len(answer) > len(prompt) and answer[: len(prompt)] == prompt:
        return len(prompt)
    if answer[0]['role'] == 'assistant':
        return 0
    counts = range(min(len(prompt), len(answer) - 1), 0, -1)
    return next((count for count in counts if prompt[-count:] == answer[:count]), 0)


def _lead(messages):
    return list(itertools.takewhile(lambda message: message['role'] != 'assistant', messages))


def _as_messages(value, role):
    return [{'role': role, 'content': value}] if isinstance(value, str) else value


def _judged(record, where):
    if not isinstance(record.get('label'), bool):
        state = f'is {kind(record["label"])}' if 'label' in record else f'is missing; found {found(record)}'
        raise InputError(f'{where}: field "label" {state}; true (good) or false (bad) was expected')
    return _answers(_compared(record, where, ('weight',)), ('completion',), where)


def _pair(record, where, expected):
    if not record.keys() & {'chosen', 'rejected'}:
        raise InputError(f'{where}: expected {expected}; found {found(record)}')
    chosen, rejected = (record.get(side) for side in ('chosen', 'rejected'))
    if isinstance(chosen, list) and isinstance(rejected, list):
        chosen, rejected = (message_list(record[side], where, side) for side in ('chosen', 'rejected'))
    else:
        chosen, rejected = text(record, 'chosen', where), text(record, 'rejected', where)
    if chosen == rejected:
        raise InputError(f'{where}: "chosen" equals "rejected"; a comparison needs two different texts')
    prompt = _value(record, 'prompt', where) if 'prompt' in record else None
    if prompt is not None and not _whole(prompt, chosen, rejected):
        return _answers(record, ('chosen', 'rejected'), where)
    split = _implicit_messages if isinstance(chosen, list) else _implicit_prompt
    start = split(chosen, rejected)
    if isinstance(chosen, list) and not start:
        raise InputError(f'{where}: "chosen" and "rejected" share no first message; give their "prompt"')
    if isinstance(prompt, str) and not any(m.get('content', '').strip() == prompt.strip() for m in chosen[:start]):
        raise InputError(
            f'{where}: "chosen" and "rejected" are conversations, and "prompt" is none of the messages that they share;'
            ' leave it out, or give answers alone'
        )
    pair = {'prompt': chosen[:start], 'chosen': chosen[start:], 'rejected': rejected[start:]}
    return _answers({**record, **pair}, ('chosen', 'rejected'), where)


def _whole(prompt, chosen, rejected):
    """Whether both sides are conversations that begin with the prompt, not answers to it."""
    if isinstance(chosen, str) or chosen[0]['role'] == 'assistant' or chosen[0] != rejected[0]:
        return False
    return isinstance(prompt, str) or all(side[: len(prompt)] == prompt for side in (chosen, rejected))


def _common(chosen, rejected):
    return next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))


def _implicit_prompt(chosen, rejected):
    """Length of the prompt that two whole texts share."""
    common = _common(chosen, rejected)
    turn = chosen.rfind(_TURN, 0, common)
    if turn >= 0:
        return turn + len(_TURN)
    # Otherwise up to the last blank before they part, so that no word is cut.
    return max(chosen.rfind(' ', 0, common), chosen.rfind('\n', 0, common), 0)


def _implicit_messages(chosen, rejected):
    """How many messages the prompt of two whole conversations has: up to the answer in which they part."""
    common = _common(chosen, rejected)
    while common and not all(rest[common:] and rest[common]['role'] == 'assistant' for rest in (chosen, rejected)):
        common -= 1
    return common


def _ranking(record, where):
    completions, ranks = record['completions'], record.get('ranks')
    if not isinstance(completions, list) or not all(isinstance(c, str | list) for c in completions):
        raise InputError(f'{where}: field "completions" must be a list of texts')
    whole = lambda rank: isinstance(rank, int) and not isinstance(rank, bool) and abs(rank) < 2**31  # noqa: E731
    if not isinstance(ranks, list) or not all(map(whole, ranks)):
        raise InputError(f'{where}: field "ranks" must be a list of whole numbers, 0 for the best')
    if len(completions) != len(ranks) or len(ranks) < 2:
        raise InputError(f'{where}: {len(completions)} completions and {len(ranks)} ranks; give two or more of each')
    numbered = {f'completions[{i}]': completion for i, completion in enumerate(completions)}
    values = _answers({**record, **numbered}, tuple(numbered), where)
    rest = {name: value for name, value in values.items() if name not in numbered}
    return {**rest, 'completions': [values[name] for name in numbered], 'ranks': ranks}
