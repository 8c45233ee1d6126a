"""Message lists: their checks, the tools that a conversation may call, and which messages are learned.

Leaves out how they become tokens (templates.py).
"""

from rlax_ft.data.sources import kind, parsed
from rlax_ft.errors import InputError

# What others call "learn this message" (1, true) or "read it only" (0, false): OpenAI, Axolotl, ms-swift; and the
# opposite: torchtune.
_LEARNED = ('weight', 'train', 'training', 'trainable', 'loss')
_READ_ONLY = ('masked',)
LEARN_FIELDS = (*_LEARNED, *_READ_ONLY)
# These name parts of a message by their characters.
_BY_CHARACTER = ('train_detail',)
_TEXT_PARTS = ('text', 'input_text', 'output_text')


class Conversation(list):
    """A message list with the schemas of the tools that its assistant may call; equal to the plain list.

    Wherever a prompt goes, its tools go with it: the sampler then reads what training read.
    """

    def __init__(self, messages=(), tools=None):
        """Takes messages, and tools as a list of JSON schemas or None."""
        super().__init__(messages)
        self.tools = tools or None


def with_tools(prompt, tools):
    """The prompt with these tools; a text, or a prompt that has its own, as it is."""
    if isinstance(prompt, str) or not tools or getattr(prompt, 'tools', None):
        return prompt
    return Conversation(prompt, tools)


def tools_of(prompt) -> list[dict] | None:
    """The schemas that belong to a prompt."""
    return getattr(prompt, 'tools', None)


def is_learned(message: dict) -> bool:
    """Whether the assistant says it and nothing in it says that it is only to be read."""
    read_only = any(message.get(field) == 0 for field in _LEARNED) or any(message.get(field) for field in _READ_ONLY)
    return message['role'] == 'assistant' and not read_only


def message_list(value, where: str, field: str) -> list[dict]:
    """Checks a list of {"role", "content"}; keys that are null are as if they were absent.

    Raises:
      InputError: it is not one.
    """
    if not isinstance(value, list) or not value:
        raise InputError(f'{where}: field "{field}" must be a list of messages {{"role", "content"}}')
    return [_message(message, f'{where}: field "{field}", message {i}') for i, message in enumerate(value, 1)]


def _message(message, place):
    if not isinstance(message, dict):
        raise InputError(f'{place} is {kind(message)}; an object {{"role", "content"}} was expected')
    given, calls = message, _calls(message)
    message = {**message, 'content': _content(message.get('content'), place), 'tool_calls': calls}
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise InputError(f'{place}: "tool_calls" is {kind(calls)}; a list of objects was expected')
    for part in ('role', 'content'):
        # A call of a tool may come without content.
        called = part == 'content' and message.get(part) is None and (calls or message.get('function_call'))
        if not isinstance(message.get(part), str) and not called:
            state = f'"{part}" is {kind(given[part])}' if part in given else f'no "{part}"'
            raise InputError(f'{place}: {state}; a text was expected')
    for name in LEARN_FIELDS:
        if message.get(name) not in (None, 0, 1):
            right = '1 (only read) or 0 (learned)' if name in _READ_ONLY else '1 (learned) or 0 (only read)'
            raise InputError(f'{place}: "{name}" is {message[name]!r}; use {right}')
    for name in _BY_CHARACTER:
        if message.get(name) is not None:
            raise InputError(f'{place}: "{name}" names parts of a message; a message is learned whole, or only read')
    asked = next((name for name in _LEARNED if name != 'weight' and message.get(name)), '')
    if asked and message['role'] != 'assistant':
        raise InputError(f'{place}: "{asked}" is set for the role {message["role"]}; only the assistant\'s are learned')
    return {key: part for key, part in message.items() if part is not None}


def _calls(message):
    """The calls of tools, which columns may hold as JSON text."""
    calls = message.get('tool_calls')
    try:
        return parsed(calls) if isinstance(calls, str) else calls
    except (ValueError, RecursionError):
        return calls


def _content(content, place):
    """A text; parts of text, as for models that also see, become one.

    Raises:
      InputError: a part is something else, such as an image.
    """
    if not isinstance(content, list):
        return content
    texts = []
    for number, part in enumerate(content, 1):
        text = part.get('text') if isinstance(part, dict) else part
        if not isinstance(text, str) or (isinstance(part, dict) and part.get('type', 'text') not in _TEXT_PARTS):
            found = f'of the type {str(part.get("type"))[:40]!r}' if isinstance(part, dict) else kind(part)
            raise InputError(f'{place}: part {number} of "content" is {found}; only texts are read')
        texts.append(text)
    return ''.join(texts)


def parse_tools(record: dict, where: str) -> list[dict] | None:
    """The field "tools" as a list of schemas; None without any. A text, or texts in a list, are read as JSON.

    OpenAI's older "functions" become such schemas.

    Raises:
      InputError: it is something else.
    """
    name = 'tools' if record.get('tools') or not record.get('functions') else 'functions'
    tools = record.get(name)
    try:
        tools = parsed(tools) if isinstance(tools, str) and tools.strip() else tools
        if isinstance(tools, list):
            tools = [parsed(tool) if isinstance(tool, str) else tool for tool in tools]
    except (ValueError, RecursionError) as error:
        raise InputError(f'{where}: field "{name}" is a text that is not JSON ({error})') from error
    if not tools and (tools is None or isinstance(tools, str | list)):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        found = kind(tools) if not isinstance(tools, list) else 'a list of other things'
        raise InputError(f'{where}: field "{name}" is {found}; a list of schemas (objects) was expected')
    return tools if name == 'tools' else [{'type': 'function', 'function': tool} for tool in tools]
