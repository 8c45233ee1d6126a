"""Items: what people are asked about, a prompt with two or more responses, read from the files that hold samples.

    {"prompt", "completions": [..]}       also "responses"; texts, message lists, or objects {"text", "policy",
                                          "checkpoint", "score"}; beside them "policies", "checkpoints", "scores"
    {"prompt", "chosen", "rejected"}      and every other form of a comparison (rlax_ft/data/forms.py)
    {"prompt", "completion", "policy"}    one sample a line, such as a run's samples.jsonl: those of one prompt are
                                          put together, of different policies where there are several

Gold and training items also have "ranks", 0 for the best (or "chosen" and "rejected"), and may have a "why".
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from rlax_ft.data.feedback import content_hash
from rlax_ft.data.forms import FIELDS, convert
from rlax_ft.data.messages import message_list
from rlax_ft.data.sources import kind, read_raw
from rlax_ft.errors import InputError
from rlax_ft.feedback.judgements import dense

MOST_RESPONSES = 9  # One digit each.
_TEXT_NAMES = ('text', 'completion', 'content', 'response', 'output')
_USED = {
    *FIELDS,
    'responses',
    'policies',
    'checkpoints',
    'scores',
    'policy',
    'checkpoint',
    'why',
    'label',
    'margin',
    'id',
}


def read_items(sources: list[str], *, purpose: str = 'item', together: int = 2) -> Iterator[dict]:
    """Yields the items of files, each once, with "id", "hash", "purpose" and "content".

    Args:
      sources: files as above, or run folders, whose samples.jsonl is read.
      purpose: `item`, `gold` or `training`; the last two need answers.
      together: how many single samples of one prompt make an item.

    Raises:
      InputError: naming file and line.
    """
    hashes: dict[str, str] = {}
    singles, same = defaultdict(list), 0
    for source in sources:
        path = Path(source) / 'samples.jsonl' if Path(source).is_dir() else Path(source)
        default = (
            Path(source).name if Path(source).is_dir() else path.parent.name if path.name == 'samples.jsonl' else ''
        )
        for raw, where in read_raw(path):
            record = _converted(raw, where)
            if 'completion' in record and 'completions' not in record:
                sample = _single(record, where, default)
                singles[json.dumps(record['prompt'], sort_keys=True)].append(sample)
                continue
            item = _item(record, where, purpose)
            if item is None:
                same += 1
            elif _is_new(hashes, item, where):
                yield item
    for item in _joined(singles, together, ' and '.join(sources)):
        if _is_new(hashes, item, ' and '.join(sources)):
            yield item
    if same:
        logging.warning('%s: %d items left out whose responses are all the same', ' and '.join(sources), same)
    if not hashes:
        raise InputError(f'{" and ".join(sources)}: not one item with two different responses; give such')


def make_item(prompt, responses: list[dict], *, name: str = '', purpose: str = 'item', **content) -> dict:
    """An item of responses {"text", "policy", "checkpoint", "scores"}.

    Args:
      prompt: a text or a message list.
      responses: two or more.
      name: its id; the content's hash when empty.
      purpose: `item`, `gold` or `training`.
      **content: "answer" (ranks), "why", "fields".
    """
    texts = [response['text'] for response in responses]
    hashed = content_hash(prompt, texts)
    column = lambda key: [response.get(key) for response in responses]  # noqa: E731
    return {
        'id': name or hashed[:16],
        'hash': hashed,
        'purpose': purpose,
        'content': {
            'prompt': prompt,
            'completions': texts,
            'policies': column('policy'),
            'checkpoints': column('checkpoint'),
            'scores': column('scores'),
            'fields': {},
            **content,
        },
    }


def _converted(raw, where):
    if 'responses' in raw and 'completions' not in raw:
        raw = {**raw, 'completions': raw['responses']}
    record = convert(raw, where)
    if 'cmp_key' in raw and len(record.get('completions', ())) == 2 and '_' in str(raw['cmp_key']):
        record['policies'] = str(raw['cmp_key']).split('_', 1)  # PandaLM's name of the two models.
    if 'prompt' not in record:
        raise InputError(f'{where}: no field "prompt"; found {", ".join(map(repr, raw)) or "an empty object"}')
    if isinstance(record['prompt'], list):
        record['prompt'] = message_list(record['prompt'], where, 'prompt')
    elif not isinstance(record['prompt'], str):
        raise InputError(
            f'{where}: field "prompt" is {kind(record["prompt"])}; a text or a list of messages was expected'
        )
    return record


def _item(record, where, purpose):
    """An item of one record; None where all responses are the same."""
    ranks = record.get('ranks')
    if 'chosen' in record and 'rejected' in record:
        given, ranks = [record['chosen'], record['rejected']], [0, 1]
    else:
        given = record.get('completions')
    if not isinstance(given, list) or not 2 <= len(given) <= MOST_RESPONSES:
        raise InputError(f'{where}: 2 to {MOST_RESPONSES} "completions" (or "responses") were expected')
    responses = [_response(value, f'{where}: response {i}') for i, value in enumerate(given, 1)]
    for plural, name in (('policies', 'policy'), ('checkpoints', 'checkpoint'), ('scores', 'scores')):
        values = record.get(plural)
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != len(given):
            raise InputError(f'{where}: field "{plural}" must be a list of {len(given)}, one for each response')
        for response, value in zip(responses, values):
            response[name] = value
    for response in responses:
        _check_response(response, where)
    if len({json.dumps(response['text'], sort_keys=True) for response in responses}) == 1:
        return None
    content = {'fields': {k: v for k, v in record.items() if k not in _USED}}
    if purpose != 'item':
        content |= {'answer': _answer(ranks, responses, where, purpose), 'why': _text(record, 'why', where)}
    name = record.get('id', '')
    if not isinstance(name, str | int) or len(str(name)) > 200:
        raise InputError(f'{where}: field "id" must be a short text or a number')
    return make_item(record['prompt'], responses, name=str(name), purpose=purpose, **content)


def _answer(ranks, responses, where, purpose):
    good = isinstance(ranks, list) and len(ranks) == len(responses) and all(type(rank) is int for rank in ranks)
    if not good:
        raise InputError(
            f'{where}: a {purpose} item needs its answer: "ranks" of its {len(responses)} responses, 0 for the best, '
            'or "chosen" and "rejected"'
        )
    return dense([response['text'] for response in responses], ranks)


def _response(value, where):
    if isinstance(value, dict):
        name = next((name for name in _TEXT_NAMES if name in value), None)
        if name is None:
            raise InputError(f'{where}: no "text"; found {", ".join(map(repr, value)) or "an empty object"}')
        scores = value.get('scores', value.get('score'))
        known = {key: value.get(key) for key in ('policy', 'checkpoint')}
        return {'text': value[name], **known, 'scores': scores}
    return {'text': value}


def _check_response(response, where):
    text = response['text']
    if isinstance(text, list):
        response['text'] = message_list(text, where, 'completions')
    elif not isinstance(text, str):
        raise InputError(f'{where}: a response is {kind(text)}; a text or a list of messages was expected')
    policy, checkpoint = response.get('policy'), response.get('checkpoint')
    if not isinstance(policy, str | None) or not isinstance(checkpoint, str | int | None):
        raise InputError(f'{where}: "policy" must be a text, "checkpoint" a text or a number')
    scores = response.get('scores')
    scores = scores if isinstance(scores, list) or scores is None else [scores]
    if scores is not None and not all(isinstance(x, int | float) and abs(x) < 1e30 for x in scores):
        raise InputError(f'{where}: "scores" must be numbers: one of each response, or a list of several models\'')
    response['scores'] = scores


def _single(record, where, default):
    if not isinstance(record['completion'], str | list):
        raise InputError(f'{where}: field "completion" is {kind(record["completion"])}; a text was expected')
    response = {
        'text': record['completion'],
        'policy': record.get('policy', default or None),
        'checkpoint': record.get('checkpoint', record.get('step')),
        'scores': record.get('scores', record.get('score')),
    }
    _check_response(response, where)
    return record['prompt'], response


def _joined(singles, together, where) -> Iterator[dict]:
    """Items of single samples: those of a prompt, policies in turn, `together` at a time."""
    alone = 0
    for samples in singles.values():
        prompt, by_policy, texts = samples[0][0], defaultdict(list), set()
        for _, response in samples:
            text = json.dumps(response['text'], sort_keys=True)
            if text not in texts:
                texts.add(text)
                by_policy[response['policy'], response['checkpoint']].append(response)
        # One of each policy, then the second of each: neighbours are by different policies while there are several.
        queues, order = list(by_policy.values()), []
        while any(queues):
            order += [queue.pop(0) for queue in queues if queue]
        whole = len(order) - len(order) % together
        if len(order) - whole > 1:
            whole = len(order)
        alone += len(samples) - whole
        for start in range(0, whole, together):
            yield make_item(prompt, order[start : start + together])
    if alone:
        logging.warning('%s: %d samples left out: nothing to compare them with under their prompt', where, alone)


def _is_new(hashes, item, where):
    new = item['id'] not in hashes
    before = hashes.setdefault(item['id'], item['hash'])
    if before != item['hash']:
        raise InputError(f'{where}: the id {item["id"]!r} stands there twice for different items; give each its own')
    return new


def _text(record, name, where):
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(f'{where}: field "{name}" must be a text')
    return value
