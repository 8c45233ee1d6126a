"""Tokens to arrays: whole data sets as padded numpy structs, whose rows the loader picks.

A training row is the prompt (with the tokenizer's BOS), the response, its end, and padding on the right; a prompt for
the sampler is padded on the left. Leaves out packing (packing.py).
"""

import logging

import jax
import numpy as np

from rlax_ft.data.codec import Codec, Text
from rlax_ft.errors import InputError
from rlax_ft.types import PreferenceBatch, RankingBatch, TokenBatch


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
    """Comparisons as a PreferenceBatch [N]; `label`, `margin` and `weight` are the records' own where they have them.

    Raises:
      InputError: as `token_rows`.
    """
    sides = [pair[side] for pair in pairs for side in ('chosen', 'rejected')]
    rows = token_rows(codec, [pair['prompt'] for pair in pairs for _ in range(2)], sides)  # [2 N, T]

    def column(name, default):
        """float32[N] of a field; None where no record has it."""
        if not any(name in pair for pair in pairs):
            return None
        return np.asarray([pair.get(name, default) for pair in pairs], np.float32)

    label = column('label', 1.0)
    return PreferenceBatch(
        candidates=jax.tree.map(lambda leaf: leaf.reshape(len(pairs), 2, -1), rows),
        label=np.ones(len(pairs), np.float32) if label is None else label,
        margin=column('margin', 0.0),
        weight=column('weight', 1.0),
    )


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
    candidates = jax.tree.map(lambda leaf: leaf.reshape(len(rankings), most, -1), rows)
    return RankingBatch(candidates=candidates, ranks=ranks, mask=mask)


def take_rows(batch, index):
    """Rows of a struct of numpy arrays."""

    return jax.tree.map(lambda leaf: leaf[index], batch)
