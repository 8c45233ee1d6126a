"""Chat templates: message lists as tokens, and which of those tokens an assistant wrote.

Rendering is transformers' `apply_chat_template`, so a row is what a server of the same model would see: nothing is
added but a missing end. A template that marks {% generation %} says itself what the assistant wrote; of another, what
each answer adds to the conversation before it is taken, and refused where earlier messages change by it. Leaves out
lengths and padding (batches.py).
"""

import functools
import re
from pathlib import Path
from typing import NamedTuple

import jinja2

from rlax_ft.errors import InputError

# Both write BOS themselves where the tokenizer has one, and end every answer.
TEMPLATES = {
    # As in hh-rlhf's dialogues; it needs no token of its own, so it suits every tokenizer.
    'plain': """\
{{- bos_token or '' }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '\n\nAssistant:' }}
        {%- generation %}{{- ' ' + message.content + eos_token }}{%- endgeneration %}
    {%- else %}
        {{- '\n\n' + {'system': 'System', 'tool': 'Tool'}.get(message.role, 'Human') + ': ' + message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '\n\nAssistant:' }}{%- endif %}""",
    'chatml': """\
{{- bos_token or '' if bos_token != eos_token else '' }}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}""",
}
_GENERATION = re.compile(r'\{%-?\s*generation\s*-?%\}')
_PROBE = ({'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'})


class Dialogue(NamedTuple):
    """One row before padding: the prompt's tokens, the response's, and which of the response's are learned."""

    prompt: list[int]
    response: list[int]
    learned: list[bool]


def set_chat_template(tokenizer, name: str) -> None:
    """Gives the tokenizer the template of that name or file; an empty name leaves its own, or `plain` if it has none.

    Raises:
      InputError: there is no such template, or it cannot be rendered.
    """
    if not name:
        tokenizer.chat_template = tokenizer.chat_template or TEMPLATES['plain']
        return
    tokenizer.chat_template = _source(name)
    try:
        _render(tokenizer, [list(_PROBE)])
    except InputError as error:
        raise InputError(f'--chat_template={name}: {error}') from error


def template_tokens(name: str) -> tuple[str, ...]:
    """What looks like a special token, <|so|>, in the template of that name or file: a new tokenizer should have it.

    Raises:
      InputError: there is no such template.
    """
    return tuple(sorted(set(re.findall(r'<\|\w+\|>', _source(name))))) if name else ()


def turn_ends(tokenizer) -> tuple[int, ...]:
    """Ids that end an assistant's turn: EOS, and the special token that the chat template writes after an answer."""
    return _turn_ends(tokenizer, str(tokenizer.chat_template or ''))


@functools.lru_cache(maxsize=16)
def _turn_ends(tokenizer, template):
    ends = [tokenizer.eos_token_id]
    if template:
        try:
            prompt = _render(tokenizer, [[_PROBE[0]]], answer_next=True)[0][0]
            answered = _render(tokenizer, [list(_PROBE)])[0][0]
        except InputError:
            # A template of its own mind is a mistake only once there are conversations for it.
            return tuple(ends)
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        ends += [i for i in answered[len(prompt) :] if i in special][-1:]
    return tuple(dict.fromkeys(ends))


def encode_prompts(tokenizer, prompts: list[list[dict]]) -> list[list[int]]:
    """Token ids of conversations in which the assistant speaks next."""
    return _render(tokenizer, prompts, answer_next=True)[0]


def encode_dialogues(tokenizer, prompts: list[list[dict]], answers: list[list[dict]]) -> list[Dialogue]:
    """Conversations as tokens; all that the assistant says in `answers`, with the end of each turn, is learned.

    Args:
      tokenizer: with a chat template.
      prompts: N message lists.
      answers: N message lists that go on from them, of the assistant and perhaps others in turn.

    Raises:
      InputError: the template refuses a conversation, or renders it so that answers cannot be told from the rest.
    """
    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers)]
    rendered, masks = _render(tokenizer, whole, with_masks=bool(_GENERATION.search(str(tokenizer.chat_template))))
    starts = encode_prompts(tokenizer, prompts)
    ends = turn_ends(tokenizer)
    rows = []
    for i, (ids, start) in enumerate(zip(rendered, starts)):
        _check_prefix(tokenizer, start, ids, len(prompts[i]) + 1)
        mask = masks[i] if masks else _mask_by_prefixes(tokenizer, ids, prompts[i], answers[i])
        learned = [False] * len(start) + [bool(m) for m in mask[len(start) :]]
        ids, learned = _close(ids, learned, ends)
        rows.append(Dialogue(start, ids[len(start) :], learned[len(start) :]))
    return rows


def _source(name):
    if name not in TEMPLATES and not Path(name).is_file():
        raise InputError(
            f'--chat_template={name}: no such template or file; use {", ".join(TEMPLATES)}, a Jinja file, or nothing '
            "for the tokenizer's own"
        )
    return TEMPLATES[name] if name in TEMPLATES else Path(name).read_text()


def _mask_by_prefixes(tokenizer, ids, prompt, answer):
    """Which tokens each assistant's message added to the conversation before it."""
    if [message['role'] for message in answer] == ['assistant']:
        return [True] * len(ids)
    mask = [False] * len(ids)
    for i, message in enumerate(answer):
        if message['role'] == 'assistant':
            before = encode_prompts(tokenizer, [[*prompt, *answer[:i]]])[0]
            after = _render(tokenizer, [[*prompt, *answer[: i + 1]]])[0][0]
            for part in (before, after):
                _check_prefix(tokenizer, part, ids, len(prompt) + i + 1)
            mask[len(before) : len(after)] = [True] * (len(after) - len(before))
    return mask


def _check_prefix(tokenizer, part, ids, number):
    if ids[: len(part)] != part:
        place = next((i for i, (a, b) in enumerate(zip(part, ids)) if a != b), min(len(part), len(ids)))
        raise InputError(
            f'the chat template renders a conversation up to message {number} otherwise than within the whole, from '
            f'{tokenizer.decode(part[place : place + 8])!r} on, so its answers cannot be masked; give a '
            '--chat_template that marks {% generation %}, or records with one answer'
        )


def _close(ids, mask, ends):
    """Every answer is learned up to the end of its turn, and the last one ends the row."""
    learned, ended = [], False
    for i, own in enumerate(mask):
        # A template may write a turn's end behind its {% generation %}.
        inside = own or (i > 0 and mask[i - 1] and ids[i] in ends)
        learned.append(inside and not ended)
        ended = inside and (ended or ids[i] in ends)
    last = max((i for i, own in enumerate(learned) if own), default=len(ids) - 1)
    if ids[last] in ends:
        return ids[: last + 1], learned[: last + 1]
    return [*ids[: last + 1], ends[0]], [*learned[: last + 1], True]


def _render(tokenizer, conversations, *, answer_next=False, with_masks=False):
    """(token ids of each conversation, masks of what its assistant wrote or None)."""
    try:
        out = tokenizer.apply_chat_template(
            conversations,
            add_generation_prompt=answer_next,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=with_masks,
        )
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f'the chat template, line {error.lineno}: {error.message}') from error
    except (jinja2.TemplateError, TypeError, KeyError) as error:
        for conversation in conversations if len(conversations) > 1 else ():
            _render(tokenizer, [conversation], answer_next=answer_next)  # Raises at the one that is refused.
        start = str(conversations[0][0].get('content'))[:60]
        raise InputError(f'the chat template refuses a conversation: {error}; it begins {start!r}') from error
    return out['input_ids'], out['assistant_masks'] if with_masks else None
