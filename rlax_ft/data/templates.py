"""Chat templates by name, and conversations as tokens, with those told apart that an assistant wrote.

Nothing is added to what the template writes (rendering.py) but a missing end. Leaves out lengths and padding (rows.py).
"""

import functools
import re
from pathlib import Path
from typing import NamedTuple

from rlax_ft.data.known_templates import TEMPLATES
from rlax_ft.data.rendering import MARK, render, render_dialogue, render_prompt, template_of, warn_unseen
from rlax_ft.data.tokenizers import encode_continuations, encode_texts, special_ids, special_pattern, warn_special
from rlax_ft.errors import InputError

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
    own = tokenizer.chat_template
    tokenizer.template_source = ''  # The message below names it itself.
    tokenizer.chat_template = own[name] if isinstance(own, dict) and name in own else _source(name)
    try:
        render(tokenizer, tokenizer.chat_template, list(_PROBE))
    except InputError as error:
        raise InputError(f'--chat_template={name}: {error}') from error
    tokenizer.template_source = f'--chat_template={name}'


def template_tokens(name: str) -> tuple[str, ...]:
    """What looks like a special token, <|so|>, in the template of that name or file: a new tokenizer should have it.

    Raises:
      InputError: there is no such template.
    """
    return tuple(sorted(set(re.findall(r'<\|\w+\|>', _source(name))))) if name else ()


def turn_ends(tokenizer) -> tuple[int, ...]:
    """Ids that end an assistant's turn: EOS, and the special token that the chat template writes after an answer."""
    return _turn_ends(tokenizer, str(tokenizer.chat_template or ''))


def stop_ids(tokenizer) -> tuple[int, ...]:
    """Ids that end what is sampled: `turn_ends`, and those that its folder's generation_config.json lists besides.

    They come with a tokenizer as `further_ends`, which `hf.folder` sets.
    """
    return tuple(dict.fromkeys([*turn_ends(tokenizer), *getattr(tokenizer, 'further_ends', ())]))


@functools.lru_cache(maxsize=16)
def _turn_ends(tokenizer, template):
    ends = [tokenizer.eos_token_id]
    if template:
        try:
            prompt = encode_prompts(tokenizer, [[_PROBE[0]]])[0]
            answered = encode_texts(
                tokenizer, [render(tokenizer, template_of(tokenizer), list(_PROBE))[0]], control=True
            )[0]
        except InputError:
            # A template of its own mind is a mistake only once there are conversations for it.
            return tuple(ends)
        ends += [i for i in answered[len(prompt) :] if i in special_ids(tokenizer)][-1:]
    return tuple(dict.fromkeys(ends))


def encode_prompts(tokenizer, prompts: list[list[dict]]) -> list[list[int]]:
    """Token ids of conversations in which the assistant speaks next; one that ends with its words is continued.

    Args:
      tokenizer: with a chat template.
      prompts: N message lists, or `Conversation`s with tools.

    Raises:
      InputError: the template refuses a conversation, or does not show a call of a tool in it.
    """
    rendered = [render_prompt(tokenizer, prompt) for prompt in prompts]
    warn_unseen(rendered)
    return _encode(tokenizer, [(row.prompt, None) for row in rendered])


def encode_dialogues(tokenizer, prompts: list[list[dict]], answers: list[list[dict]]) -> list[Dialogue]:
    """Conversations as tokens; all that the assistant says in `answers`, with the end of each turn, is learned.

    Prompts and what continues them are tokenised apart: a prompt's tokens are those of `encode_prompts`, whatever
    follows. So are learned parts and the rest.

    Args:
      tokenizer: with a chat template.
      prompts: N message lists, or `Conversation`s with tools; see `render_dialogue`.
      answers: N message lists that continue them, of the assistant and perhaps others in turn.

    Raises:
      InputError: as `render_dialogue`.
    """
    rendered = [render_dialogue(tokenizer, prompt, answer) for prompt, answer in zip(prompts, answers)]
    warn_unseen(rendered)
    texts = [[row.prompt, *(text for text, _ in row.parts)] for row in rendered]
    encoded = iter(_encode(tokenizer, [pair for row in texts for pair in zip(row, [None, *row])]))
    ends, rows = turn_ends(tokenizer), []
    for row in rendered:
        start = next(encoded)
        parts = [(next(encoded), own) for _, own in row.parts]
        ids = [i for part, _ in parts for i in part]
        learned = [own for part, own in parts for _ in part]
        rows.append(Dialogue(start, *_close(ids, learned, ends)))
    return rows


def _source(name):
    if name not in TEMPLATES and not Path(name).is_file():
        raise InputError(
            f'--chat_template={name}: no such template or file; use {", ".join(TEMPLATES)}, a Jinja file, or nothing '
            "for the tokenizer's own"
        )
    try:
        return TEMPLATES[name] if name in TEMPLATES else Path(name).read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'--chat_template={name}: cannot be read as UTF-8 ({error})') from error


def _encode(tokenizer, pairs):
    """Token ids of (text, the text that it continues or None)."""
    encoded = [None] * len(pairs)
    begins = [i for i, (text, before) in enumerate(pairs) if MARK not in text and before is None]
    follows = [i for i, (text, before) in enumerate(pairs) if MARK not in text and before is not None]
    at = lambda index: [pairs[i][0] for i in index]  # noqa: E731
    after = [pairs[i][1] for i in follows]
    for index, rows in (
        (begins, encode_texts(tokenizer, at(begins), control=True)),
        (follows, encode_continuations(tokenizer, at(follows), control=True, after=after)),
    ):
        for i, row in zip(index, rows):
            encoded[i] = row
    marked = [i for i, row in enumerate(encoded) if row is None]
    for i in marked:
        encoded[i] = _encode_marked(tokenizer, *pairs[i])
    if marked:
        warn_special(tokenizer, [pairs[i][0].replace(MARK, '') for i in marked])
    return encoded


def _encode_marked(tokenizer, text, before):
    """Token ids of a text in which only unmarked special tokens are tokens."""
    runs = []
    for piece in re.split(f'({special_pattern(tokenizer).pattern})', text):
        literal, piece = MARK in piece, piece.replace(MARK, '')
        if runs and not literal and not runs[-1][1]:
            runs[-1] = (runs[-1][0] + piece, False)
        elif piece:
            runs.append((piece, literal))
    ids = []
    for run, literal in runs:
        if before is None:
            ids += encode_texts(tokenizer, [run], control=not literal)[0]
        else:
            ids += encode_continuations(tokenizer, [run], control=not literal, after=[before])[0]
        before = run
    return ids


def _close(ids, mask, ends):
    """Every answer is learned up to the end of its turn, and the last one ends the row."""
    learned, ended = [], False
    for i, own in enumerate(mask):
        # A template may write a turn's end behind its {% generation %}.
        inside = own or (i > 0 and mask[i - 1] and ids[i] in ends)
        learned.append(inside and not ended)
        ended = inside and (ended or ids[i] in ends)
    last = max((i for i, own in enumerate(learned) if own), default=None)
    if last is None:
        return ids, learned
    if ids[last] in ends:
        return ids[: last + 1], learned[: last + 1]
    return [*ids[: last + 1], ends[0]], [*learned[: last + 1], True]
