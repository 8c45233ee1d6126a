"""Other people's record forms, turned into the fields of records.py: one small function and one table row each.

    {"messages": [{"role", "content"}, ..]}                     a conversation, its answers are demonstrated
    {"messages": .., "label"}                                   the same, its last answer judged good or bad
    {"conversations": [{"from", "value"}, ..]}                  ShareGPT; with "chosen" and "rejected", or "kto_tag"
    {"instruction", "input", "output"}                          Alpaca; or "chosen" and "rejected" for "output"
    {"instruction", "input", "response1", "response2", ..}      PandaLM: up to three annotators' 0 (tie), 1 or 2; the
                                                                share that agrees is "agreement", where not all do
    {"question", "answer"}                                      GSM8K; or "chosen" and "rejected" for "answer"
    {"text"}                                                    plain text, all of it learned

What is a conversation by nature becomes message lists, so that the chat template applies to it. Leaves out checks of
the fields that records.py reads.
"""

from collections import Counter

from rlax_ft.data.messages import is_learned, message_list
from rlax_ft.data.sources import kind, parsed
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
_SPEAKERS = {role for role, ours in _ROLES.items() if ours == 'assistant'} | {'model', 'bot', 'ai', 'chatbot'}


def convert(record: dict, where: str) -> dict:
    """The record with the fields "prompt" and "completion", "chosen" and "rejected", or "completions" and "ranks".

    All its other fields stay; of those that a form is made of, only GSM8K's "answer" does, for a reward to check. A
    field that is null is as if it were absent: column formats write null where a record has no such field.

    Args:
      record: as it stands in the file.
      where: file and line, for messages.

    Raises:
      InputError: a field is missing or of the wrong kind.
    """
    record = {name: _listed(name, value) for name, value in record.items() if value is not None}
    for fields, function, used in _FORMS:
        if fields <= record.keys():
            rest = {k: v for k, v in record.items() if k not in used and k not in FIELDS} if used else record
            return {**function(record, where), **rest}
    return record


def _listed(name, value):
    """A list that a column holds as JSON text, in a field that is a list in every form."""
    if name not in _LISTS or not isinstance(value, str) or not value.lstrip().startswith('['):
        return value
    try:
        return parsed(value)
    except (ValueError, RecursionError):
        return value  # What reads the field says that it is a text.


def _sharegpt(record, where):
    messages = _system(record, where) + _turns(record['conversations'], where, 'conversations')
    if 'chosen' in record or 'rejected' in record:
        return {'prompt': messages} | {
            side: _turns([record[side]] if isinstance(record[side], dict) else record[side], where, side)
            for side in ('chosen', 'rejected')
            if side in record
        }
    label = record.get('kto_tag', record.get('label'))
    return _messages({'messages': messages, **({} if label is None else {'label': label})}, where)


def _messages(record, where):
    messages = message_list(record['messages'], where, 'messages')
    answers = [i for i, message in enumerate(messages) if message['role'] == 'assistant']
    if not answers:
        _check_roles(messages, where)
        return {'prompt': messages}
    if 'label' in record:
        return {'prompt': messages[: answers[-1]], 'completion': [messages[answers[-1]]], 'label': record['label']}
    learned = [i for i in answers if is_learned(messages[i])]
    if not learned:
        raise InputError(
            f'{where}: field "messages": every message of the assistant has the weight 0; nothing to learn'
        )
    # What stands before the first answer that is learned is read only; what follows the last one teaches nothing.
    return {'prompt': messages[: learned[0]], 'completion': messages[learned[0] : learned[-1] + 1]}


def _check_roles(messages, where):
    """Refuses a conversation that ends with words under a role that other forms call the assistant."""
    role = messages[-1]['role']
    if role != 'assistant' and (role.lower() == 'assistant' or role.lower() in _SPEAKERS):
        raise InputError(
            f'{where}: field "messages", message {len(messages)}: the role is {role!r}; what is learned has the role '
            'assistant'
        )


def _alpaca(record, where):
    parts = [text(record, field, where) for field in ('instruction', 'input') if field in record]
    question = '\n\n'.join(filter(None, parts))
    turns, history = record.get('history', []), []
    if not isinstance(turns, list):
        raise InputError(f'{where}: field "history" is {kind(turns)}; a list of pairs of texts was expected')
    for i, pair in enumerate(turns, 1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise InputError(f'{where}: field "history", entry {i}: a pair of texts was expected')
        history += [_message('user', pair[0]), _message('assistant', pair[1])]
    return _answered(record, where, _system(record, where) + history + [_message('user', question)], 'output')


def _pandalm(record, where):
    prompt = _alpaca({k: v for k, v in record.items() if k in ('instruction', 'input')}, where)
    given = [record[name] for name in ('annotator1', 'annotator2', 'annotator3') if name in record]
    votes = Counter(vote for vote in given if isinstance(vote, int))
    if not given or votes.total() < len(given) or not votes.keys() <= {0, 1, 2}:
        raise InputError(f'{where}: fields "annotator1" to "annotator3" must be 0 (a tie), 1 or 2')
    # Rank 0 is best; without a majority for either it is a tie.
    ranks = [int(votes[2] > votes[1]), int(votes[1] > votes[2])]
    # A vote for a tie is half a vote for each.
    agreement = (max(votes[1], votes[2]) + votes[0] / 2) / len(given)
    # In the published file a few answers have become true, false or a number.
    completions = [[_message('assistant', str(record[field]))] for field in ('response1', 'response2')]
    parted = {'agreement': agreement} if agreement < 1 else {}
    return {**prompt, 'completions': completions, 'ranks': ranks, **parted}


def _question(record, where):
    prompt = _system(record, where) + [_message('user', text(record, 'question', where))]
    return _answered(record, where, prompt, 'answer')


def _answered(record, where, prompt, answer):
    answers = {side: side for side in ('chosen', 'rejected') if side in record} or {answer: 'completion'}
    answered = {
        name: [_message('assistant', text(record, field, where))] for field, name in answers.items() if field in record
    }
    # Beside a comparison the one answer of a file is a field like any other.
    kept = {answer: record[answer]} if 'completion' not in answered and answer in record else {}
    return {'prompt': prompt, **kept, **answered}


def _plain_text(record, where):
    return {'prompt': '', 'completion': text(record, 'text', where)}


def _as_it_is(record, where):
    return record


# What records.py reads; the form alone says what stands in them.
FIELDS = ('prompt', 'completion', 'chosen', 'rejected', 'completions', 'ranks')
_LISTS = ('messages', 'conversations', 'completions', 'ranks', 'history')
_ALPACA = ('instruction', 'input', 'output', 'system', 'history')
_PANDALM = ('response1', 'response2', 'annotator1', 'annotator2', 'annotator3')

# The first row whose fields a record has says what it is: (fields, function, fields that it uses up).
_FORMS = (
    ({'prompt', 'completion'}, _as_it_is, ()),
    ({'prompt', 'completions'}, _as_it_is, ()),
    ({'prompt', 'chosen'}, _as_it_is, ()),
    ({'conversations'}, _sharegpt, ('conversations', 'system', 'kto_tag')),
    ({'instruction', 'response1', 'response2'}, _pandalm, (*_ALPACA, *_PANDALM)),
    ({'instruction'}, _alpaca, _ALPACA),
    ({'question', 'answer'}, _question, ('question', 'system')),
    ({'question', 'chosen'}, _question, ('question', 'system')),
    ({'chosen'}, _as_it_is, ()),
    ({'messages'}, _messages, ('messages',)),
    ({'text'}, _plain_text, ('text',)),
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


def _turns(value, where, field):
    if not isinstance(value, list) or not value:
        raise InputError(f'{where}: field "{field}" must be a list of turns {{"from", "value"}}')
    messages = []
    for number, turn in enumerate(value, 1):
        place = f'{where}: field "{field}", turn {number}'
        if not isinstance(turn, dict):
            raise InputError(f'{place}: an object {{"from", "value"}} of texts was expected')
        role, content = turn.get('from', turn.get('role')), turn.get('value', turn.get('content'))
        if not isinstance(content, str) and not (content is None and turn.get('tool_calls')):
            raise InputError(f'{place}: an object {{"from", "value"}} of texts was expected')
        if not isinstance(role, str) or role not in _ROLES:
            raise InputError(f'{place}: "from" is {role!r}; use one of {", ".join(_ROLES)}')
        rest = {k: v for k, v in turn.items() if k not in ('from', 'value', 'role', 'content')}
        messages.append({'role': _ROLES[role], 'content': content, **rest})
    return message_list(messages, where, field)


def _system(record, where):
    content = text(record, 'system', where) if 'system' in record else ''
    return [_message('system', content)] if content else []


def _message(role, content):
    return {'role': role, 'content': content}
