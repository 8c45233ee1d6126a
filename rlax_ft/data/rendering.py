"""Conversations as a chat template writes them: the prompt's text, what continues it, and which of that is learned.

Rendering is transformers' own, with the schemas of the tools, so a row is what a server of the same model would see. A
template that marks {% generation %} says itself what the assistant wrote; of another, what each answer adds to the
conversation before it is taken, and refused where earlier text changes by it. What a template leaves out is refused
(calls of tools) or counted in a warning. Leaves out tokens (templates.py).
"""

import logging
import re
from typing import NamedTuple

from rlax_ft.data.messages import LEARN_FIELDS, is_learned, tools_of
from rlax_ft.data.renderer import rendered
from rlax_ft.data.tokenizers import special_pattern
from rlax_ft.errors import InputError

# Stands within characters of the data that look like a special token, so that only the template's own are tokens. A
# code point that Unicode reserves for inside programs.
MARK = '\ufdd0'
_CALLS = ('tool_calls', 'function_call')
_GENERATION = re.compile(r'\{%-?\s*generation\s*-?%\}')


class Rendered(NamedTuple):
    """A prompt's text, what continues it as (text, whether it is learned), and what the template does not show."""

    prompt: str
    parts: list[tuple[str, bool]]
    unseen: frozenset[str]


def render_prompt(tokenizer, prompt: list[dict]) -> Rendered:
    """A conversation in which the assistant speaks next; one that ends with its words is left open behind them.

    Raises:
      InputError: the template refuses it, or does not show a call of a tool.
    """
    chat = _Chat(tokenizer, prompt, ())
    text = chat.prompt_text()
    return Rendered(text, [], chat.unseen(chat.prompt, text, **chat.next_turn()))


def render_dialogue(tokenizer, prompt: list[dict], answer: list[dict]) -> Rendered:
    """A conversation whose answers in `answer` are learned, those excluded that a message's own fields exclude.

    Messages of others before the first answer belong to the prompt. Words of the assistant at the prompt's end are
    continued by the first answer.

    Raises:
      InputError: the template refuses it, does not show a call of a tool, or changes earlier text by later messages.
    """
    chat = _Chat(tokenizer, prompt, answer)
    start = chat.prompt_text()
    text, tagged = chat.render(chat.whole, spans=bool(_GENERATION.search(chat.template)))
    chat.check_prefix(start, text, len(chat.prompt) + 1)
    parts, at = [], len(start)
    for begin, end in chat.learned_spans(start, text, tagged):
        begin = max(begin, at)
        if begin < end:
            parts += [(text[at:begin], False)] * (begin > at) + [(text[begin:end], True)]
            at = end
    parts += [(text[at:], False)] * (at < len(text))
    return Rendered(start, parts, chat.unseen(chat.whole, text))


def warn_unseen(rendered: list[Rendered]) -> None:
    """Logs in how many conversations the template leaves something out."""
    for name in sorted(frozenset().union(*(row.unseen for row in rendered))):
        count = sum(name in row.unseen for row in rendered)
        logging.warning('%d of %d conversations: the chat template does not show %s', count, len(rendered), name)


def template_of(tokenizer, tools=None) -> str:
    """The chat template, of several named ones that for tools or the default.

    Raises:
      InputError: there is none.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        name = 'tool_use' if tools and 'tool_use' in template else 'default'
        if name not in template:
            raise InputError(
                f'the tokenizer has several chat templates ({", ".join(sorted(template))}) and no default; name one '
                'as --chat_template'
            )
        template = template[name]
    if not isinstance(template, str) or not template:
        raise InputError('the tokenizer has no chat template; name one as --chat_template')
    return template


def render(tokenizer, template: str, messages: list[dict], *, tools=None, spans=False, answer_next=False, resume=False):
    """(text, spans of what {% generation %} marks): transformers' own rendering.

    Raises:
      InputError: the template cannot be read, refuses the conversation, or takes too much time or memory.
    """
    answer = rendered(
        dict(
            conversations=[messages],
            tools=tools,
            chat_template=template,
            return_assistant_tokens_mask=spans,
            add_generation_prompt=answer_next,
            continue_final_message=resume,
            **tokenizer.special_tokens_map,
        )
    )
    if 'error' not in answer:
        return answer['text'], [tuple(span) for span in answer['spans']]
    source = getattr(tokenizer, 'template_source', tokenizer.name_or_path)
    source = f'; the template is that of {source}' if source else ''
    if 'line' in answer:
        raise InputError(f'the chat template, line {answer["line"]}: {answer["error"]}{source}')
    start = str(messages[0].get('content'))[:60].replace(MARK, '') if messages else ''
    raise InputError(f'the chat template refuses a conversation: {answer["error"]}; it begins {start!r}{source}')


class _Chat:
    """One conversation on its way through the template: `whole` is `prompt` with `answer`, from `first` on learned."""

    def __init__(self, tokenizer, prompt, answer):
        self.tokenizer = tokenizer
        tools, prompt, answer = (_marked(tokenizer, part) for part in (tools_of(prompt), list(prompt), list(answer)))
        lead = next((i for i, message in enumerate(answer) if message['role'] == 'assistant'), len(answer))
        self.tools, self.prompt, answer = tools, [*prompt, *answer[:lead]], answer[lead:]
        self.template = template_of(tokenizer, tools)
        self.resumes = bool(self.prompt) and self.prompt[-1]['role'] == 'assistant'
        self.first = len(self.prompt) - self.resumes
        self.whole = [*self.prompt, *answer]
        if self.resumes and answer:
            begun = {name: value for name, value in self.prompt[-1].items() if name not in LEARN_FIELDS}
            content = (begun.get('content') or '') + (answer[0].get('content') or '')
            self.whole = [*self.prompt[:-1], {**begun, **answer[0], 'content': content}, *answer[1:]]

    def render(self, messages, *, tools=(), **how):
        """`render` with this chat's template, and its tools where none are given."""
        tools = self.tools if tools == () else tools
        return render(self.tokenizer, self.template, messages, tools=tools, **how)

    def next_turn(self):
        """How a prompt is rendered."""
        return {'answer_next': not self.resumes, 'resume': self.resumes}

    def prompt_text(self):
        """What the assistant's next words follow."""
        return self.render(self.prompt, **self.next_turn())[0]

    def learned_spans(self, start, text, tagged):
        """(begin, end) in the text of what is learned, in order."""
        answers = [i for i in range(self.first, len(self.whole)) if self.whole[i]['role'] == 'assistant']
        learned = [i for i in answers if is_learned(self.whole[i])]
        if not _GENERATION.search(self.template):
            return [self._extent(i, start, text) for i in learned]
        read_only = [self._extent(i, start, text) for i in answers if i not in learned]
        return [span for span in tagged if not any(begin <= span[0] < end for begin, end in read_only)]

    def _extent(self, i, start, text):
        """What message i adds to the text of those before it."""
        before = start if i == self.first else self.render(self.whole[:i], answer_next=True)[0]
        after = text if i == len(self.whole) - 1 else self.render(self.whole[: i + 1])[0]
        for part in (before, after):
            self.check_prefix(part, text, i + 1)
        return len(before), len(after)

    def check_prefix(self, part, text, number):
        """Refuses a conversation whose beginning the template writes otherwise when more follows."""
        if not text.startswith(part):
            place = next((i for i, (a, b) in enumerate(zip(part, text)) if a != b), min(len(part), len(text)))
            raise InputError(
                f'the chat template renders a conversation up to message {number} otherwise than within the whole, '
                f'from {part[place : place + 16]!r} on, so its answers cannot be masked; give a --chat_template that '
                'marks {% generation %}, or records with one answer'
            )

    def unseen(self, messages, text, **how):
        """Names of what the template does not show.

        Raises:
          InputError: a call of a tool is not shown, or characters of the data change what the template writes.
        """

        def shown(others, tools=()):
            try:
                return self.render(others, tools=tools, **how)[0] != text
            except InputError:
                return True

        for i, message in enumerate(messages):
            for calls in filter(message.get, _CALLS):
                bare = {'content': '', **{name: value for name, value in message.items() if name != calls}}
                if not shown([*messages[:i], bare, *messages[i + 1 :]]):
                    raise InputError(
                        f'the chat template does not show the {calls} of message {i + 1}; name one that does as '
                        '--chat_template'
                    )
        if MARK in text:
            plain, tools = (_unmarked(part) for part in (messages, self.tools))
            if self.render(plain, tools=tools, **how)[0] != text.replace(MARK, ''):
                raise InputError('the chat template changes what it writes by characters of special tokens in the data')
        names = {name for message in messages for name in message} - {'role', 'content', *_CALLS, *LEARN_FIELDS}
        without = lambda name: [{k: v for k, v in message.items() if k != name} for message in messages]  # noqa: E731
        hidden = {f'the field "{name}" of messages' for name in names if not shown(without(name))}
        return frozenset(hidden | ({'the tools'} if self.tools and not shown(messages, tools=None) else set()))


def _marked(tokenizer, value):
    """The value with a mark in all characters that look like a special token."""
    pattern = special_pattern(tokenizer)

    def mark(text):
        if pattern.search(text) and MARK in text:
            raise InputError(f'a message has the code point U+FDD0, which no text may have: {text[:40]!r}')
        return pattern.sub(lambda match: match[0][:1] + MARK + match[0][1:], text)

    return _map_texts(mark, value)


def _unmarked(value):
    return _map_texts(lambda text: text.replace(MARK, ''), value)


def _map_texts(function, value):
    if isinstance(value, str):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_texts(function, part) for key, part in value.items()}
    return [_map_texts(function, part) for part in value] if isinstance(value, list) else value
