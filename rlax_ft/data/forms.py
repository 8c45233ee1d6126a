"""Other people's record forms, turned into the fields of records.py: one small function and one table row each.

    {"messages": [{"role", "content"}, ..]}                     a conversation, its answers are demonstrated
    {"messages": .., "label"}                                   the same, its last answer judged good or bad
    {"conversations": [{"from", "value"}, ..]}                  ShareGPT; with "chosen" and "rejected", or "kto_tag"
    {"instruction", "input", "output"}                          Alpaca; or "chosen" and "rejected" for "output"
    {"instruction", "input", "response1", "response2", ..}      PandaLM: up to three annotators' 0 (tie), 1 or 2
    {"question", "answer"}                                      GSM8K; or "chosen" and "rejected" for "answer"
    {"text"}                                                    plain text, all of it learned

What is a conversation by nature becomes message lists, so that the chat template applies to it. Leaves out checks of
the fields that records.py reads.
"""

from collections import Counter

from rlax_ft.data.sources import kind
from rlax_ft.errors import InputError

# The roles that ShareGPT files use, as transformers' templates call them.
_ROLES = {
    'human': 'user',
    'user': 'user',
    'gpt': 'assistant',
    'assistant': 'assistant',
    'chatgpt': 'assistant',
    'bing': 'assistant',
    'bard': 'assistant',
    'function_call': 'assistant',
    'system': 'system',
    'observation': 'tool',
    'tool': 'tool',
}


def convert(record: dict, where: str) -> dict:
    """The record with the fields "prompt" and "completion", "chosen" and "rejected", or "completions" and "ranks".

    Args:
      record: as it stands in the file.
      where: file and line, for messages.

    Raises:
      InputError: a field is missing or of the wrong kind.
    """
    for fields, function in _FORMS:
        if fields <= record.keys():
            return function(record, where)
    return record


def _sharegpt(record, where):
    messages = _system(record, where) + _turns(record['conversations'], where, 'conversations')
    if 'chosen' in record or 'rejected' in record:
        return {'prompt': messages} | {
            side: _turns([record[side]] if isinstance(record[side], dict) else record[side], where, side)
            for side in ('chosen', 'rejected')
            if side in record
        }
    label = {'label': record['kto_tag']} if 'kto_tag' in record else {}
    return _messages({'messages': messages, **label}, where)


def _messages(record, where):
    messages = message_list(record['messages'], where, 'messages')
    answers = [i for i, message in enumerate(messages) if message['role'] == 'assistant']
    if not answers:
        return {'prompt': messages}
    if 'label' in record:
        return {'prompt': messages[: answers[-1]], 'completion': [messages[answers[-1]]], 'label': record['label']}
    # What follows the last answer teaches nothing.
    return {'prompt': messages[: answers[0]], 'completion': messages[answers[0] : answers[-1] + 1]}


def _alpaca(record, where):
    question = '\n\n'.join(filter(None, [text(record, 'instruction', where), record.get('input')]))
    history = []
    for i, pair in enumerate(record.get('history') or [], 1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise InputError(f'{where}: field "history", entry {i}: a pair of texts was expected')
        history += [_message('user', pair[0]), _message('assistant', pair[1])]
    return _answered(record, where, _system(record, where) + history + [_message('user', question)], 'output')


def _pandalm(record, where):
    prompt = _alpaca({k: v for k, v in record.items() if k in ('instruction', 'input')}, where)
    votes = Counter(record[name] for name in ('annotator1', 'annotator2', 'annotator3') if name in record)
    if not votes or not votes.keys() <= {0, 1, 2}:
        raise InputError(f'{where}: fields "annotator1" to "annotator3" must be 0 (a tie), 1 or 2')
    # Rank 0 is best; without a majority for either it is a tie.
    ranks = [int(votes[2] > votes[1]), int(votes[1] > votes[2])]
    # In the published file a few answers have become true, false or a number.
    completions = [[_message('assistant', str(record[field]))] for field in ('response1', 'response2')]
    return {**prompt, 'completions': completions, 'ranks': ranks}


def _question(record, where):
    prompt = _system(record, where) + [_message('user', text(record, 'question', where))]
    return _answered(record, where, prompt, 'answer')


def _answered(record, where, prompt, answer):
    fields = {answer: 'completion', 'chosen': 'chosen', 'rejected': 'rejected'}
    answers = {
        name: [_message('assistant', text(record, field, where))] for field, name in fields.items() if field in record
    }
    return {'prompt': prompt, **answers, **({'label': record['label']} if 'label' in record else {})}


def _plain_text(record, where):
    return {'prompt': '', 'completion': text(record, 'text', where)}


def _as_it_is(record, where):
    return record


# The first row whose fields a record has says what it is.
_FORMS = (
    ({'prompt', 'completion'}, _as_it_is),
    ({'prompt', 'completions'}, _as_it_is),
    ({'prompt', 'chosen'}, _as_it_is),
    ({'conversations'}, _sharegpt),
    ({'instruction', 'response1', 'response2'}, _pandalm),
    ({'instruction'}, _alpaca),
    ({'question', 'answer'}, _question),
    ({'question', 'chosen'}, _question),
    ({'chosen'}, _as_it_is),
    ({'messages'}, _messages),
    ({'text'}, _plain_text),
)


def text(record: dict, field: str, where: str) -> str:
    """The text in a field.

    Raises:
      InputError: there is none.
    """
    if field not in record:
        raise InputError(f'{where}: no field "{field}"; found {found(record)}')
    if not isinstance(record[field], str):
        raise InputError(f'{where}: field "{field}" is {kind(record[field])}; a text was expected')
    return record[field]


def found(record: dict) -> str:
    """The names of a record's fields, for messages."""
    return ', '.join(map(repr, record)) or 'an empty object'


def message_list(value, where: str, field: str) -> list[dict]:
    """Checks a list of {"role", "content"}.

    Raises:
      InputError: it is not one.
    """
    if not isinstance(value, list) or not value:
        raise InputError(f'{where}: field "{field}" must be a list of messages {{"role", "content"}}')
    for number, message in enumerate(value, 1):
        place = f'{where}: field "{field}", message {number}'
        if not isinstance(message, dict):
            raise InputError(f'{place} is {kind(message)}; an object {{"role", "content"}} was expected')
        for part in ('role', 'content'):
            # A call of a tool may come without content.
            if not isinstance(message.get(part), str) and not (part == 'content' and message.get('tool_calls')):
                state = f'"{part}" is {kind(message[part])}' if part in message else f'no "{part}"'
                raise InputError(f'{place}: {state}; a text was expected')
    return value


def _turns(value, where, field):
    if not isinstance(value, list) or not value:
        raise InputError(f'{where}: field "{field}" must be a list of turns {{"from", "value"}}')
    messages = []
    for number, turn in enumerate(value, 1):
        place = f'{where}: field "{field}", turn {number}'
        if isinstance(turn, dict) and 'role' in turn:
            turn = {'from': turn['role'], 'value': turn.get('content')}
        if not isinstance(turn, dict) or not isinstance(turn.get('value'), str):
            raise InputError(f'{place}: an object {{"from", "value"}} of texts was expected')
        if turn.get('from') not in _ROLES:
            raise InputError(f'{place}: "from" is {turn.get("from")!r}; use one of {", ".join(_ROLES)}')
        messages.append(_message(_ROLES[turn['from']], turn['value']))
    return messages


def _system(record, where):
    return [_message('system', text(record, 'system', where))] if record.get('system') else []


def _message(role, content):
    return {'role': role, 'content': content}
