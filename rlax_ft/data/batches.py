"""Text to arrays: whole data sets as padded numpy structs, whose rows the loader picks.

A training row is the prompt (with the tokenizer's BOS), the response, its end, and padding on the right; a prompt for
the sampler is padded on the left. Leaves out packing (packing.py).
"""

import dataclasses
import logging

import jax
import numpy as np

from rlax_ft.data import templates
from rlax_ft.data.templates import Dialogue
from rlax_ft.data.tokenizers import encode_continuations, encode_texts, start_ids
from rlax_ft.errors import InputError
from rlax_ft.types import PreferenceBatch, RankingBatch, Rollout, TokenBatch

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


def fitting(codec: Codec, records: list[dict], *, at_least: int = 1) -> list[dict]:
    """The records whose responses fit; how many do not is logged.

    A comparison needs both its responses; a ranking loses the candidates that are too long, and needs two. Where
    `codec.truncate` is off all records stay, and what does not fit is an error when it becomes rows.

    Raises:
      InputError: fewer than `at_least` fit.
    """
    if not codec.truncate:
        return records
    answers = [_responses(record) for record in records]
    lengths = iter(
        len(row.response)
        for row in codec._encode(
            [record['prompt'] for record, some in zip(records, answers) for _ in some],
            [answer for some in answers for answer in some],
        )
    )
    kept = []
    for record, some in zip(records, answers):
        fits = [next(lengths) <= codec.max_new_tokens for _ in some]
        if all(fits):
            kept.append(record)
        elif 'ranks' in record and sum(fits) > 1:
            pick = lambda values, fits=fits: [value for value, fit in zip(values, fits) if fit]  # noqa: E731
            kept.append({**record, 'completions': pick(record['completions']), 'ranks': pick(record['ranks'])})
    if len(kept) < at_least:
        raise InputError(
            f'--max_new_tokens={codec.max_new_tokens}: all {len(records)} records have longer responses; raise it'
        )
    if len(kept) < len(records):
        logging.warning(
            '%d of %d records left out: a response has more than %d tokens; raise --max_new_tokens to keep them',
            len(records) - len(kept),
            len(records),
            codec.max_new_tokens,
        )
    return kept


def _responses(record):
    return record.get('completions') or [record[k] for k in ('completion', 'chosen', 'rejected') if k in record]


def prompt_arrays(codec: Codec, prompts: list[Text]) -> tuple[np.ndarray, np.ndarray]:
    """Left-padded prompts int32[N, max_prompt] and their mask bool[N, max_prompt]."""
    tokens = np.full((len(prompts), codec.max_prompt), codec.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, ids in enumerate(codec.encode_prompts(prompts)):
        tokens[row, codec.max_prompt - len(ids) :] = ids
        mask[row, codec.max_prompt - len(ids) :] = True
    return tokens, mask


def token_rows(codec: Codec, prompts: list[Text], responses: list[Text], length: int | None = None) -> TokenBatch:
    """Prompts with their responses as a TokenBatch [N, T] of numpy arrays.

    Args:
      codec: how text becomes tokens.
      prompts: N texts or message lists.
      responses: N texts or message lists, each of its prompt's kind.
      length: T; the longest row, rounded up to 8, when absent.

    Raises:
      InputError: a prompt or response is too long, or there is no token to learn from.
    """
    rows = codec.encode(prompts, responses)
    for number, row in enumerate(rows, 1):
        if not any(row.learned):
            raise InputError(f'record {number}: the response is empty; each needs at least one token')
        if len(row.response) > codec.max_new_tokens:
            raise codec.too_long('response', row.response, codec.max_new_tokens, '--max_new_tokens')
    length = length or -(-max(len(row.prompt) + len(row.response) for row in rows) // 8) * 8
    tokens = np.full((len(rows), length), codec.pad_id, np.int32)
    mask = np.zeros(tokens.shape, np.float32)
    segment_ids = np.zeros(tokens.shape, np.int32)
    for i, row in enumerate(rows):
        end = len(row.prompt) + len(row.response)
        tokens[i, :end] = row.prompt + row.response
        mask[i, len(row.prompt) : end] = row.learned
        segment_ids[i, :end] = 1
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return TokenBatch(tokens=tokens, mask=mask, positions=positions, segment_ids=segment_ids)


def preference_rows(codec: Codec, pairs: list[dict]) -> PreferenceBatch:
    """Comparisons as a PreferenceBatch [N, T] with labels of 1, or the records' own `label`."""
    prompts = [pair['prompt'] for pair in pairs]
    chosen, rejected = [p['chosen'] for p in pairs], [p['rejected'] for p in pairs]
    both = token_rows(codec, prompts * 2, chosen + rejected)
    label = np.asarray([pair.get('label', 1.0) for pair in pairs], np.float32)
    half = len(pairs)
    return PreferenceBatch(take_rows(both, slice(None, half)), take_rows(both, slice(half, None)), label)


def ranking_rows(codec: Codec, rankings: list[dict]) -> RankingBatch:
    """Rankings as a RankingBatch [N, K, T]; K is the largest number of candidates, the missing ones are masked."""
    most = max(len(r['ranks']) for r in rankings)
    prompts, responses = [], []
    ranks = np.zeros((len(rankings), most), np.int32)
    mask = np.zeros(ranks.shape, bool)
    for i, ranking in enumerate(rankings):
        count = len(ranking['ranks'])
        ranks[i, :count], mask[i, :count] = ranking['ranks'], True
        prompts += [ranking['prompt']] * most
        # A candidate that does not exist repeats the first one; its mask keeps it out of every loss.
        responses += ranking['completions'] + ranking['completions'][:1] * (most - count)
    rows = token_rows(codec, prompts, responses)
    candidates = TokenBatch(*(leaf.reshape(len(rankings), most, -1) for leaf in dataclasses.astuple(rows)))
    return RankingBatch(candidates=candidates, ranks=ranks, mask=mask)


def take_rows(batch, index):
    """Rows of a struct of numpy arrays."""

    return jax.tree.map(lambda leaf: leaf[index], batch)
