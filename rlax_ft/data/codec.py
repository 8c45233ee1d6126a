"""How text becomes tokens in one run, and samples become text again: the tokenizer, its lengths, its ends.

Leaves out padding and arrays (rows.py).
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlax_ft.data import templates
from rlax_ft.data.templates import Dialogue
from rlax_ft.data.tokenizers import (
    decode_continuations,
    encode_continuations,
    encode_texts,
    start_ids,
    warn_special,
)
from rlax_ft.errors import InputError
from rlax_ft.types import Rollout

if TYPE_CHECKING:  # transformers is slow to import, and not every script reads text.
    from transformers import PreTrainedTokenizerBase

Text = str | list[dict]  # A text, or a list of messages.


@dataclasses.dataclass(frozen=True)
class Codec:
    """How text becomes tokens in one run; message lists go through the tokenizer's chat template.

    Attributes:
      tokenizer: a transformers tokenizer with PAD and EOS.
      max_prompt: longest prompt in tokens, BOS included.
      max_new_tokens: longest response in tokens, EOS included.
      ends: responses end with EOS.
      truncate: a longer prompt loses its beginning, but not its BOS, and how many is logged; `fitting` leaves out
        records with a longer response. Otherwise they are an error.
      vocab_size: rows of the model's embedding, where they are known: no id beyond them leaves here.
      cut_off: a text that fills all its room was cut off by the sampler, and gets no EOS; otherwise it does not fit.
    """

    tokenizer: 'PreTrainedTokenizerBase'
    max_prompt: int
    max_new_tokens: int
    ends: bool = True
    truncate: bool = False
    vocab_size: int | None = None
    cut_off: bool = False
    _kept: dict = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)
    _said: list = dataclasses.field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self):
        """Refuses a tokenizer without EOS."""
        if self.ends and self.tokenizer.eos_token_id is None:
            raise InputError('the tokenizer has no EOS token, so no response could end; set its eos_token')

    @property
    def max_length(self) -> int:
        """Longest row in tokens."""
        return self.max_prompt + self.max_new_tokens

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """What ends a sampled row: EOS, what the chat template writes after an answer, what the model's folder says."""
        return templates.stop_ids(self.tokenizer) if self.ends else ()

    @property
    def pad_id(self) -> int:
        """What fills a row: PAD, or EOS where the embedding has no row for a PAD that was added; no loss reads it."""
        rows = self.vocab_size or self.tokenizer.vocab_size
        known = (i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None)
        return next((i for i in known if i < rows), 0 if self.vocab_size else self.tokenizer.eos_token_id or 0)

    def encode_prompts(self, prompts: Sequence[Text]) -> list[list[int]]:
        """Token ids of prompts, none empty and none too long.

        Raises:
          InputError: a prompt is longer than `max_prompt`, and `truncate` is off.
        """
        return self._cut(self._within(self._prompts(prompts)))

    def count_too_long(self, prompts: Sequence[Text]) -> int:
        """How many of the prompts are longer than `max_prompt`."""
        return sum(len(ids) > self.max_prompt for ids in self._prompts(prompts))

    def encode(self, prompts: Sequence[Text], responses: Sequence[Text]) -> list[Dialogue]:
        """Prompts and responses as token ids, with what is learned of the responses.

        Of a text all is learned, with EOS behind. Of messages all that the assistant says is learned, with the end of
        each turn.

        Raises:
          InputError: a prompt is longer than `max_prompt`, and `truncate` is off; an id has no embedding.
        """
        keys = [(id(prompt), id(response)) for prompt, response in zip(prompts, responses)]
        missing = [i for i, key in enumerate(keys) if key not in self._kept]
        fresh = self.encode_uncut([prompts[i] for i in missing], [responses[i] for i in missing])
        rows = [self._kept[key][-1] if key in self._kept else None for key in keys]
        for i, row in zip(missing, fresh):
            rows[i] = row
        for key in keys:
            self._kept.pop(key, None)
        return [row._replace(prompt=prompt) for row, prompt in zip(rows, self._cut([row.prompt for row in rows]))]

    def encode_uncut(self, prompts: Sequence[Text], responses: Sequence[Text]) -> list[Dialogue]:
        """The same without a look at lengths."""
        rows = _by_kind(self._text_rows, self._message_rows, prompts, responses)
        self._within([row.prompt for row in rows])
        self._within([row.response for row in rows])
        return rows

    def keep(self, prompt: Text, response: Text, row: Dialogue) -> None:
        """Has the next `encode` of this very prompt and response give this row, so that text is encoded once."""
        # The objects are kept with their row, so nothing else can have their ids.
        self._kept[id(prompt), id(response)] = prompt, response, row

    def decode(self, rollout: Rollout) -> tuple[list[str], list[bool]]:
        """The text of each completion up to its end, and whether it did end (always, where `ends` is False).

        The text continues the prompt's: a SentencePiece completion keeps its leading blank, so that both together are
        the whole text, and written again become text of the same characters.
        """
        tokens, mask, ends = np.asarray(rollout.tokens), np.asarray(rollout.mask), set(self.eos_ids)
        rows = [row[m].tolist() for row, m in zip(tokens, mask)]
        at = [next((i for i, token in enumerate(row) if token in ends), None) for row in rows]
        texts = decode_continuations(self.tokenizer, [row[:end] for row, end in zip(rows, at)])
        return texts, [end is not None or not self.ends for end in at]

    def too_long(self, name: str, ids: list[int], limit: int, flag: str) -> InputError:
        """What to raise about a prompt or response of too many tokens."""
        start = self.tokenizer.decode(ids[:20], skip_special_tokens=True)
        return InputError(
            f'the {name} {start!r}... has {len(ids)} tokens and the context has room for {limit}; '
            f'raise {flag}, or pass --truncate to cut long prompts and leave out long responses'
        )

    def _cut(self, encoded):
        """Prompts that keep their end, and their BOS."""
        limit = self.max_prompt
        too_long = [ids for ids in encoded if len(ids) > limit]
        if too_long and not self.truncate:
            raise self.too_long('prompt', too_long[0], limit, '--max_prompt_tokens')
        if too_long:
            logging.warning('%d of %d rows: prompt cut to its last %d tokens', len(too_long), len(encoded), limit)
        kept = [int(ids[0] == self.tokenizer.bos_token_id) for ids in encoded]
        return [
            ids if len(ids) <= limit else ids[:start] + ids[len(ids) - limit + start :]
            for ids, start in zip(encoded, kept)
        ]

    def _within(self, encoded):
        """The same rows of ids, none of them beyond the embedding."""
        largest = max((max(ids) for ids in encoded if ids), default=0)
        if self.vocab_size and largest >= self.vocab_size:
            raise InputError(
                f'the token {self.tokenizer.convert_ids_to_tokens(largest)!r} has the id {largest}, and the embedding '
                f"{self.vocab_size} rows; the data or its chat template needs a token that the model doesn't have"
            )
        return encoded

    def _prompts(self, prompts):
        return _by_kind(self._text_prompts, self._message_prompts, prompts)

    def _text_prompts(self, prompts):
        if self.tokenizer.chat_template and not self._said:
            self._said.append('texts')
            logging.warning(
                'prompts that are texts go to the model as they are, without its chat template; where it expects a '
                'conversation give lists of messages'
            )
        warn_special(self.tokenizer, [self._without_bos(prompt)[0] for prompt in prompts])
        start, bos = start_ids(self.tokenizer), self.tokenizer.bos_token_id
        # The first token of a response is predicted from something.
        blank = start or [bos if bos is not None else self.tokenizer.eos_token_id]
        texts, given = zip(*map(self._without_bos, prompts))
        rows = zip(encode_texts(self.tokenizer, list(texts)), given)
        return [[*([bos] if has_bos else start), *ids] if ids else blank for ids, has_bos in rows]

    def _text_rows(self, prompts, responses):
        eos = [self.tokenizer.eos_token_id] if self.ends else []
        texts = [self._without_ends(prompt, response) for prompt, response in zip(prompts, responses)]
        warn_special(self.tokenizer, texts)
        rows = []
        for prompt, ids in zip(self._text_prompts(prompts), encode_continuations(self.tokenizer, texts)):
            response = ids if self.cut_off and len(ids) == self.max_new_tokens else [*ids, *eos]
            rows.append(Dialogue(prompt, response, [True] * len(response)))
        return rows

    def _without_bos(self, text):
        """(a text without the BOS that it begins with, whether it had one): there is one of it, not two."""
        bos = self.tokenizer.bos_token
        return (text[len(bos) :], True) if bos and text.startswith(bos) else (text, False)

    def _without_ends(self, prompt, response):
        """A response without an EOS at its end and, where it is the whole text, without a BOS at its beginning."""
        if not prompt:
            response = self._without_bos(response)[0]
        return response.removesuffix(self.tokenizer.eos_token) if self.ends else response

    def _message_prompts(self, prompts):
        self._use_template()
        return templates.encode_prompts(self.tokenizer, prompts)

    def _message_rows(self, prompts, responses):
        self._use_template()
        said = [[{'role': 'assistant', 'content': r}] if isinstance(r, str) else r for r in responses]
        return templates.encode_dialogues(self.tokenizer, prompts, said)

    def _use_template(self):
        if not self.tokenizer.chat_template:
            logging.warning('the tokenizer has no chat template: `plain` is used; --chat_template names another')
            templates.set_chat_template(self.tokenizer, '')


def _by_kind(of_texts, of_messages, prompts, *others):
    """Rows in their order, texts encoded by one function and message lists by the other."""
    encoded = [None] * len(prompts)
    for function, wanted in ((of_texts, str), (of_messages, list)):
        index = [i for i, prompt in enumerate(prompts) if isinstance(prompt, wanted)]
        if index:
            columns = ([column[i] for i in index] for column in (prompts, *others))
            for i, row in zip(index, function(*columns)):
                encoded[i] = row
    return encoded
