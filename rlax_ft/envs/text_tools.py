"""Text environments made of Python functions: the model calls them as tools, and what it says at last is scored.

A call is what many models write, `<tool_call>{"name": .., "arguments": {..}}</tool_call>`; a turn may have several. A
turn without a call is the answer. Tools are trusted code of the user's: what a model sends them are JSON values alone.
"""

import inspect
import json
import re
import types
from collections.abc import Callable, Sequence
from typing import Any

from rlax_ft.envs.text import TextEnvironment, TextStep
from rlax_ft.errors import InputError

_KINDS = {str: 'string', int: 'integer', float: 'number', bool: 'boolean', list: 'array', dict: 'object'}
_LONGEST = 2000  # Characters of a tool's answer.


def tool_environment(
    name: str,
    tools: Sequence[Callable],
    score: Callable[[dict, str], float],
    *,
    max_turns: int = 8,
    marks: tuple[str, str] = ('<tool_call>', '</tool_call>'),
) -> TextEnvironment:
    """An environment in which the model may call these functions before it answers.

    A record's `prompt`, a text or messages, begins the conversation. A call that is no JSON, names no tool or raises is
    answered with what was wrong; it ends nothing.

    Args:
      name: of the environment.
      tools: functions with annotated arguments; their docstrings are shown to the model.
      score: (record, the answer's text) -> its reward.
      max_turns: of the model, calls and answer together.
      marks: what stands before and behind a call.

    Raises:
      InputError: a tool has an argument without a type, or of one that JSON has not.
    """
    known = {tool.__name__: tool for tool in tools}
    calls = re.compile(re.escape(marks[0]) + r'(.*?)' + re.escape(marks[1]), re.DOTALL)

    def reset(record):
        prompt = record['prompt']
        return record, [{'role': 'user', 'content': prompt}] if isinstance(prompt, str) else list(prompt)

    def step(record, text):
        found = calls.findall(text)
        if not found:
            return TextStep(record, [], float(score(record, text.strip())), True)
        return TextStep(record, [{'role': 'tool', 'content': call_tool(known, call)} for call in found], 0.0, False)

    return TextEnvironment(name, reset, step, max_turns, tuple(map(tool_schema, tools)))


def call_tool(tools: dict[str, Callable], call: str) -> str:
    """What a tool answers to a call in JSON, as text; what was wrong, where something was."""
    try:
        wanted = json.loads(call)
        name, arguments = wanted['name'], wanted.get('arguments') or {}
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        if name not in tools:
            return f'error: no tool {name!r}; there are {", ".join(tools)}'
        inspect.signature(tools[name]).bind(**arguments)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f'error: {type(error).__name__}: {error}'[:_LONGEST]
    try:
        result = tools[name](**arguments)
    except Exception as error:  # A tool may raise whatever it likes: the model reads it.
        return f'error: {type(error).__name__}: {error}'[:_LONGEST]
    return (result if isinstance(result, str) else json.dumps(result, default=str))[:_LONGEST]


def tool_schema(tool: Callable) -> dict:
    """The JSON schema of a function, as chat templates show it.

    Raises:
      InputError: an argument without a type, or of one that JSON has not.
    """
    properties, required = {}, []
    for parameter in inspect.signature(tool, eval_str=True).parameters.values():
        properties[parameter.name] = {'type': _kind(parameter.annotation, tool, parameter.name)}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    about = {'name': tool.__name__, 'description': inspect.getdoc(tool) or ''}
    parameters = {'type': 'object', 'properties': properties, 'required': required}
    return {'type': 'function', 'function': {**about, 'parameters': parameters}}


def _kind(annotation: Any, tool, name):
    if isinstance(annotation, types.UnionType):  # `int | None` is an integer that may be left out.
        annotation = next(part for part in annotation.__args__ if part is not type(None))
    kind = _KINDS.get(getattr(annotation, '__origin__', annotation))
    if kind is None:
        raise InputError(
            f'tool {tool.__name__}: give the argument {name!r} a type: str, int, float, bool, list or dict'
        )
    return kind
