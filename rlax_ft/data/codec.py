"""How text becomes tokens in one run, and samples become text again: the tokenizer, its lengths, its ends.

Leaves out padding and arrays (rows.py).
"""

import dataclasses
import logging

import numpy as np

from rlax_ft.data import templates
from rlax_ft.data.templates import Dialogue
from rlax_ft.data.tokenizers import encode_continuations, encode_texts, start_ids
from rlax_ft.errors import InputError
from rlax_ft.types import Rollout

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
    """

    tokenizer: object
    max_prompt: int
    max_new_tokens: int
    ends: bool = True
    truncate: bool = False

    @property
    def max_length(self) -> int:
        """Longest row in tokens."""
        return self.max_prompt + self.max_new_tokens

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """What ends a sampled row: EOS, and what the chat template writes after an answer."""
        return templates.turn_ends(self.tokenizer) if self.ends else ()

    @property
    def pad_id(self) -> int:
        """What fills a row."""
        return self.tokenizer.pad_token_id

    def encode_prompts(self, prompts: list[Text]) -> list[list[int]]:
        """Token ids of prompts, none empty and none too long.

        Raises:
          InputError: a prompt is longer than `max_prompt`, and `truncate` is off.
        """
        return self._cut(self._prompts(prompts))

    def count_too_long(self, prompts: list[Text]) -> int:
        """How many of the prompts are longer than `max_prompt`."""
        return sum(len(ids) > self.max_prompt for ids in self._prompts(prompts))

    def encode(self, prompts: list[Text], responses: list[Text]) -> list[Dialogue]:
        """Prompts and responses as token ids, with what is learned of the responses.

        Of a text all is learned, with EOS behind; a text that fills all its room is one that was cut off, and gets
        none. Of messages all that the assistant says is learned, with the end of each turn.

        Raises:
          InputError: a prompt is longer than `max_prompt`, and `truncate` is off.
        """
        rows = self._encode(prompts, responses)
        return [row._replace(prompt=prompt) for row, prompt in zip(rows, self._cut([row.prompt for row in rows]))]

    def decode(self, rollout: Rollout) -> tuple[list[str], list[bool]]:
        """The text of each completion up to its end, and whether it did end (always, where `ends` is False)."""
        tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
        ended = [bool(np.isin(row[m], self.eos_ids).any()) or not self.ends for row, m in zip(tokens, mask)]
        rows = [row[m].tolist() for row, m in zip(tokens, mask)]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True), ended

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

    def _prompts(self, prompts):
        return _by_kind(self._text_prompts, self._message_prompts, prompts)

    def _encode(self, prompts, responses):
        return _by_kind(self._text_rows, self._message_rows, prompts, responses)

    def _text_prompts(self, prompts):
        start = start_ids(self.tokenizer)
        # The first token of a response is predicted from something.
        blank = start or [self.tokenizer.bos_token_id or self.tokenizer.eos_token_id]
        return [[*start, *ids] if ids else blank for ids in encode_texts(self.tokenizer, prompts)]

    def _text_rows(self, prompts, responses):
        eos = [self.tokenizer.eos_token_id] if self.ends else []
        rows = []
        for prompt, ids in zip(self._text_prompts(prompts), encode_continuations(self.tokenizer, responses)):
            response = [*ids, *eos] if len(ids) < self.max_new_tokens else ids
            rows.append(Dialogue(prompt, response, [True] * len(response)))
        return rows

    def _message_prompts(self, prompts):
        self._use_template()
        return templates.encode_prompts(self.tokenizer, prompts)

    def _message_rows(self, prompts, responses):
        self._use_template()
        return templates.encode_dialogues(self.tokenizer, prompts, responses)

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
