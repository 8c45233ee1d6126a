"""Text to arrays: whole data sets as padded numpy structs, whose rows the loader picks.

A training row is BOS, prompt, response, EOS and padding on the right; a prompt for the sampler is padded on the left.
Leaves out packing.
"""

import dataclasses
import logging

import jax
import numpy as np

from rlax_ft.errors import InputError
from rlax_ft.types import PreferenceBatch, RankingBatch, Rollout, TokenBatch


@dataclasses.dataclass(frozen=True)
class Codec:
    """How text becomes tokens in one run.

    Attributes:
      tokenizer: a transformers tokenizer with PAD, BOS and EOS.
      max_prompt: longest prompt in tokens, BOS included.
      max_new_tokens: longest response in tokens, EOS included.
      ends: responses end with EOS.
      truncate: a longer prompt loses its beginning and a longer response its end (with its EOS), and how many is
        logged; otherwise they are an error.
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
        """What ends a sampled row."""
        return (self.tokenizer.eos_token_id,) if self.ends else ()

    @property
    def pad_id(self) -> int:
        """What fills a row."""
        return self.tokenizer.pad_token_id

    def encode_prompts(self, prompts: list[str]) -> list[list[int]]:
        """Token ids with one BOS in front.

        Raises:
          InputError: a prompt is longer than `max_prompt`, and `truncate` is off.
        """
        encoded = [[self.tokenizer.bos_token_id, *ids] for ids in self._encode(prompts)]
        self._check_lengths(encoded, self.max_prompt, 'prompt', '--max_prompt_tokens')
        return [ids[-self.max_prompt :] for ids in encoded]

    def encode_responses(self, responses: list[str]) -> list[list[int]]:
        """Token ids with EOS behind; a response that fills all its room is one that was cut off, and gets none.

        Raises:
          InputError: a response is longer than `max_new_tokens`, and `truncate` is off.
        """
        eos = [self.tokenizer.eos_token_id] if self.ends else []
        encoded = self._encode(responses)
        self._check_lengths(encoded, self.max_new_tokens, 'response', '--max_new_tokens')
        return [[*ids, *eos][: self.max_new_tokens] for ids in encoded]

    def decode(self, rollout: Rollout) -> tuple[list[str], list[bool]]:
        """The text of each completion up to its end, and whether it did end (always, where `ends` is False)."""
        tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
        ended = [bool(np.isin(row[m], self.eos_ids).any()) or not self.ends for row, m in zip(tokens, mask)]
        rows = [row[m].tolist() for row, m in zip(tokens, mask)]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True), ended

    def _check_lengths(self, encoded, limit, name, flag):
        too_long = [ids for ids in encoded if len(ids) > limit]
        if too_long and not self.truncate:
            start = self.tokenizer.decode(too_long[0][:20], skip_special_tokens=True)
            raise InputError(
                f'the {name} {start!r}... has {len(too_long[0])} tokens and the context has room for {limit}; '
                f'raise {flag}, or pass --truncate to cut such records'
            )
        if too_long:
            logging.warning('%d of %d %ss cut at %d tokens', len(too_long), len(encoded), name, limit)

    def _encode(self, texts):
        return self.tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []


def prompt_arrays(codec: Codec, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Left-padded prompts int32[N, max_prompt] and their mask bool[N, max_prompt]."""
    tokens = np.full((len(prompts), codec.max_prompt), codec.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, ids in enumerate(codec.encode_prompts(prompts)):
        tokens[row, codec.max_prompt - len(ids) :] = ids
        mask[row, codec.max_prompt - len(ids) :] = True
    return tokens, mask


def token_rows(codec: Codec, prompts: list[str], responses: list[str], length: int | None = None) -> TokenBatch:
    """Prompts with their responses as a TokenBatch [N, T] of numpy arrays.

    Args:
      codec: how text becomes tokens.
      prompts: N texts.
      responses: N texts.
      length: T; the longest row, rounded up to 8, when absent.

    Raises:
      InputError: prompt and response leave no token to learn from.
    """
    rows = list(zip(codec.encode_prompts(prompts), codec.encode_responses(responses)))
    empty = next((i for i, (_, response) in enumerate(rows) if not response), None)
    if empty is not None:
        raise InputError(f'record {empty + 1}: the response is empty; each needs at least one token')
    length = length or -(-max(len(p) + len(r) for p, r in rows) // 8) * 8
    tokens = np.full((len(rows), length), codec.pad_id, np.int32)
    mask = np.zeros(tokens.shape, np.float32)
    segment_ids = np.zeros(tokens.shape, np.int32)
    for i, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        tokens[i, :end] = prompt + response
        mask[i, len(prompt) : end] = 1.0
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
