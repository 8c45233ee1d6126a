"""Tokens to arrays: whole data sets as padded numpy structs, whose rows the loader picks.

A training row is the prompt (with the tokenizer's BOS), the response, its end, and padding on the right; a prompt for
the sampler is padded on the left. Leaves out packing (packing.py).
"""

import logging
import operator

import jax
import numpy as np

from rlax_ft.data.codec import Codec, Text
from rlax_ft.data.messages import with_tools
from rlax_ft.errors import InputError
from rlax_ft.types import PreferenceBatch, RankingBatch, TokenBatch


def fitting(codec: Codec, records: list[dict], *, at_least: int = 1) -> list[dict]:
    """The records whose responses fit, and whose responses are not all the same tokens; how many are not is logged.

    A comparison needs both its responses; a ranking loses the candidates that are too long, and needs two. Where
    `codec.truncate` is off, what does not fit stays, and is an error when it becomes rows. The rows of what is kept
    wait in the codec: text is tokenised once.

    Raises:
      InputError: fewer than `at_least` fit.
    """
    answers = [responses_of(record) for record in records]
    prompts = [prompt_of(record) for record, some in zip(records, answers) for _ in some]
    rows = iter(codec.encode_uncut(prompts, [answer for some in answers for answer in some]))
    kept, long, same = [], 0, 0
    for record, some in zip(records, answers):
        encoded = [next(rows) for _ in some]
        fits = [len(row.response) <= codec.max_new_tokens or not codec.truncate for row in encoded]
        if len(some) > 1 and all(row.response == encoded[0].response for row in encoded):
            same += 1
        elif all(fits) or ('ranks' in record and sum(fits) > 1):
            kept.append(_of_fitting(record, encoded, fits))
            for answer, row, fit in zip(some, encoded, fits):
                if fit:
                    codec.keep(prompt_of(record), answer, row)
        else:
            long += 1
    if len(kept) < at_least:
        raise InputError(
            f'--max_new_tokens={codec.max_new_tokens}: all {len(records)} records have longer responses; raise it'
            if long
            else f'all {len(records)} records compare responses of the same tokens; nothing to learn'
        )
    for count, reason in (
        (long, f'a response has more than {codec.max_new_tokens} tokens; raise --max_new_tokens to keep them'),
        (same, 'the responses that they compare become the same tokens'),
    ):
        if count:
            logging.warning('%d of %d records left out: %s', count, len(records), reason)
    return records if len(kept) == len(records) and all(map(operator.is_, kept, records)) else kept


def _of_fitting(record, encoded, fits):
    """A record without the candidates of its ranking that do not fit; those of the same tokens become one text."""
    if 'ranks' not in record:
        return record
    first = {}
    texts = [first.setdefault(tuple(row.response), text) for row, text in zip(encoded, record['completions'])]
    if all(fits) and texts == record['completions']:
        return record
    pick = lambda values: [value for value, fit in zip(values, fits) if fit]  # noqa: E731
    return {**record, 'completions': pick(texts), 'ranks': pick(record['ranks'])}


def responses_of(record: dict) -> list[Text]:
    """The answers of a record of any kind."""
    return record.get('completions') or [record[k] for k in ('completion', 'chosen', 'rejected') if k in record]


def prompt_of(record: dict) -> Text:
    """A record's prompt, with its tools where it is a message list."""
    return with_tools(record['prompt'], record.get('tools'))


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
      InputError: as `token_rows`, or both sides of a pair are the same tokens.
    """
    sides = [pair[side] for pair in pairs for side in ('chosen', 'rejected')]
    rows = token_rows(codec, [prompt_of(pair) for pair in pairs for _ in range(2)], sides)  # [2 N, T]
    candidates = jax.tree.map(lambda leaf: leaf.reshape(len(pairs), 2, -1), rows)
    same = (candidates.tokens[:, 0] == candidates.tokens[:, 1]).all(axis=1)
    if (same & (candidates.segment_ids[:, 0] == candidates.segment_ids[:, 1]).all(axis=1)).any():
        number = int(np.flatnonzero(same)[0])
        raise InputError(f'record {number + 1}: "chosen" and "rejected" become the same tokens; leave it out')

    def column(name, default):
        """float32[N] of a field; None where no record has it."""
        if not any(name in pair for pair in pairs):
            return None
        return np.asarray([pair.get(name, default) for pair in pairs], np.float32)

    label = column('label', 1.0)
    return PreferenceBatch(
        candidates=candidates,
        label=np.ones(len(pairs), np.float32) if label is None else label,
        margin=column('margin', 0.0),
        weight=column('weight', 1.0),
    )


def ranking_rows(codec: Codec, rankings: list[dict]) -> RankingBatch:
    """Rankings as a RankingBatch [N, K, T]; K is the largest number of candidates, the missing ones are masked.

    `weight` is the records' own where they have it.
    """
    most = max(len(r['ranks']) for r in rankings)
    prompts, responses = [], []
    ranks = np.zeros((len(rankings), most), np.int32)
    mask = np.zeros(ranks.shape, bool)
    for i, ranking in enumerate(rankings):
        count = len(ranking['ranks'])
        ranks[i, :count], mask[i, :count] = ranking['ranks'], True
        prompts += [prompt_of(ranking)] * most
        # A candidate that does not exist repeats the first one; its mask keeps it out of every loss.
        responses += ranking['completions'] + ranking['completions'][:1] * (most - count)
    rows = token_rows(codec, prompts, responses)
    candidates = jax.tree.map(lambda leaf: leaf.reshape(len(rankings), most, -1), rows)
    weights = [ranking.get('weight', 1.0) for ranking in rankings]
    weight = np.asarray(weights, np.float32) if any('weight' in ranking for ranking in rankings) else None
    return RankingBatch(candidates=candidates, ranks=ranks, mask=mask, weight=weight)


def take_rows(batch, index):
    """Rows of a struct of numpy arrays."""

    return jax.tree.map(lambda leaf: leaf[index], batch)
