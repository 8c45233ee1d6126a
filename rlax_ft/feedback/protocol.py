"""What the page and the server say to each other: posted judgements checked field by field, and items without secrets.

Everything that comes in is bounded in kind and size here; what is wrong is a `Refused` with one line. Leaves out HTTP
(app.py) and who may speak (security.py).
"""

import dataclasses
import json
import re
import time

from rlax_ft.data.sources import LONE_SURROGATES
from rlax_ft.feedback.judgements import dense, versions
from rlax_ft.feedback.queue import Task, chance

MOST_TEXT, MOST_NOTE, MOST_NAME = 200_000, 10_000, 64
_ID = re.compile(r'[0-9a-f-]{16,64}')
_LONGEST_MS = 2**52


class Refused(Exception):
    """A request that is not answered; `status` is HTTP's."""

    def __init__(self, message: str, status: int = 400):
        """Takes the line that the page shows."""
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Form:
    """What the page asks beside the choice.

    Attributes:
      criteria: names that each response is rated on, 1 to 5.
      strength: `off`, `optional` or `required`: how much better, 1 to 7.
      guideline: hash of the guidelines that annotators see.
      seed: of the sides.
    """

    criteria: tuple[str, ...] = ()
    strength: str = 'optional'
    guideline: str = ''
    seed: int = 0


def shown_order(form: Form, annotator: str, task: Task, count: int) -> list[int]:
    """Which response stands at which place: by seed, annotator, item and repetition."""
    keys = [chance(form.seed, 'side', annotator, task.item, task.repeat, i) for i in range(count)]
    return sorted(range(count), key=keys.__getitem__)


def item_for_page(form: Form, annotator: str, task: Task, item: dict) -> dict:
    """What the page is told of an item: no policy, no checkpoint, no score, no purpose but that of training."""
    order = shown_order(form, annotator, task, len(item['completions']))
    return {
        'item': task.item,
        'training': task.purpose == 'training',
        'prompt': shown_text(item['prompt']),
        'responses': [shown_text(item['completions'][i]) for i in order],
    }


def shown_text(value):
    """A text as it is; of messages what the page draws: role, content, and calls of tools as text."""
    if isinstance(value, str):
        return value

    def part(message):
        calls = message.get('tool_calls')
        text = {'calls': json.dumps(calls, ensure_ascii=False, indent=1)} if calls else {}
        return {'role': message['role'], 'content': message.get('content') or ''} | text

    return [part(message) for message in value]


def parsed(body: bytes) -> dict:
    """A JSON object, its texts without lone surrogates.

    Raises:
      Refused: it is none.
    """
    try:
        value = json.loads(body)
        text = json.dumps(value)  # Refuses what is nested too deeply before anything looks at it.
    except (ValueError, RecursionError) as error:
        raise Refused('not JSON') from error
    if not isinstance(value, dict):
        raise Refused('an object was expected')
    return _scrubbed(value) if '\\ud' in text else value


def checked_name(value) -> str:
    """An annotator's name.

    Raises:
      Refused: it is empty, too long or has characters that no name has.
    """
    name = ' '.join(value.split()) if isinstance(value, str) else ''
    if not name or len(name) > MOST_NAME or not name.isprintable():
        raise Refused(f'a name of 1 to {MOST_NAME} characters was expected')
    return name


def checked_judgement(form: Form, posted: dict, annotator: str, session: str, task: Task, item: dict) -> dict:
    """The columns of a row from what was posted; ranks, ratings and edits come in the order shown.

    Raises:
      Refused: naming the field.
    """
    count = len(item['completions'])
    order = shown_order(form, annotator, task, count)
    choice = posted.get('choice')
    allowed = ('ranking', 'both_bad', 'skip') if count > 2 else ('A', 'B', 'tie', 'both_bad', 'skip')
    if choice not in allowed:
        raise Refused(f'"choice" must be one of {", ".join(allowed)}')
    ranks = _ranks(posted.get('ranks'), choice, count)
    strength = posted.get('strength')
    if strength is not None and (choice not in ('A', 'B') or not _whole(strength, 1, 7)):
        raise Refused('"strength" must be 1 to 7, beside A or B')
    if strength is None and form.strength == 'required' and choice in ('A', 'B'):
        raise Refused('say how much better it is, 1 to 7')
    if form.strength == 'off':
        strength = None
    reason = _short(posted, 'reason')
    if choice == 'skip' and not reason:
        raise Refused('a skip needs its "reason"')
    times = {name: _time(posted, name) for name in ('start_ms', 'end_ms', 'active_ms')}
    values = {
        'id': checked_id(posted.get('id')),
        'item': task.item,
        'annotator': annotator,
        'session': session,
        'purpose': task.purpose,
        'repeat': task.repeat,
        'choice': choice,
        'shown': order,
        'ranks': None if ranks is None else dense(item['completions'], unshuffled(ranks, order)),
        'strength': strength,
        'ratings': _ratings(form, posted.get('ratings'), order),
        'edits': _edits(posted.get('edits'), order),
        'note': _short(posted, 'note'),
        'reason': reason if choice == 'skip' else '',
        'supersedes': None,
        'guideline': form.guideline,
        'versions': versions() | {'page': _page_version(posted)},
        'saved_ms': now_ms(),
    }
    return values | times


def undo_row(before: dict, name: str, session: str, form: Form) -> dict:
    """The row that takes a judgement back."""
    at = now_ms()
    return dict.fromkeys(before) | {
        **{key: before[key] for key in ('item', 'annotator', 'purpose', 'repeat')},
        'id': name,
        'session': session,
        'choice': 'undo',
        'supersedes': before['id'],
        'start_ms': at,
        'end_ms': at,
        'active_ms': 0,
        'saved_ms': at,
        'guideline': form.guideline,
        'versions': versions(),
        'note': '',
        'reason': '',
    }


def unshuffled(values: list, order: list[int]) -> list:
    """Values in the order shown as values in the item's own order."""
    own = [None] * len(values)
    for place, index in enumerate(order):
        own[index] = values[place]
    return own


def checked_id(value) -> str:
    """The id that the page gave a judgement: sent again, it is the same judgement.

    Raises:
      Refused: it is none.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise Refused('"id" must be 16 to 64 hexadecimal digits')
    return value


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _ranks(ranks, choice, count):
    by_choice = {'A': [0, 1], 'B': [1, 0], 'tie': [0, 0]}
    if choice in by_choice:
        return by_choice[choice]
    if choice != 'ranking':
        return None
    if not isinstance(ranks, list) or len(ranks) != count or not all(_whole(rank, 0, 20) for rank in ranks):
        raise Refused(f'"ranks" must be {count} whole numbers, 0 for the best')
    return ranks


def _ratings(form, given, order):
    if not given:
        return None
    if not isinstance(given, list) or len(given) != len(order):
        raise Refused(f'"ratings" must be a list of {len(order)} objects, one for each response')
    for part in given:
        if not isinstance(part, dict) or not part.keys() <= set(form.criteria):
            raise Refused(
                '"ratings" must be objects of the criteria: ' + (', '.join(form.criteria) or 'there are none')
            )
        if not all(_whole(value, 1, 5) for value in part.values()):
            raise Refused('a rating must be 1 to 5')
    return unshuffled(given, order) if any(given) else None


def _edits(given, order):
    if not given:
        return None
    if not isinstance(given, list) or len(given) != len(order):
        raise Refused(f'"edits" must be a list of {len(order)} texts or nulls')
    for text in given:
        if text is not None and not isinstance(text, str):
            raise Refused('an edit must be a text or null')
        if text and len(text) > MOST_TEXT:
            raise Refused(f'an edit of more than {MOST_TEXT} characters', 413)
    return unshuffled(given, order) if any(given) else None


def _short(posted, name):
    value = posted.get(name) or ''
    if not isinstance(value, str):
        raise Refused(f'"{name}" must be a text')
    if len(value) > MOST_NOTE:
        raise Refused(f'"{name}" has more than {MOST_NOTE} characters', 413)
    return value.strip()


def _time(posted, name):
    value = posted.get(name)
    if not _whole(value, 0, _LONGEST_MS):
        raise Refused(f'"{name}" must be a number of milliseconds')
    return value


def _page_version(posted):
    value = posted.get('page', '')
    return value[:40] if isinstance(value, str) else ''


def _whole(value, low, high):
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _scrubbed(value):
    if isinstance(value, str):
        return LONE_SURROGATES.sub('\ufffd', value)
    if isinstance(value, dict):
        return {_scrubbed(key): _scrubbed(part) for key, part in value.items()}
    return [_scrubbed(part) for part in value] if isinstance(value, list) else value
