"""Records to rows of tokens: whole data sets as structs, whose rows the loader picks.

A training row is the prompt (with the tokenizer's BOS), the response, its end, and padding on the right; a prompt for
the sampler is padded on the left. A data set is kept `ragged`, or padded at once where a program is small. Rows that
repeat a prompt become branches that share it, so that the model reads it once (models/scoring.py gives the same
numbers for both). Leaves out packing (packing.py).
"""

import dataclasses
import logging
import operator
from collections.abc import Sequence

import jax
import numpy as np

from rlax_ft.data.codec import Codec, Text
from rlax_ft.data.messages import with_tools
from rlax_ft.data.ragged import Ragged, RaggedBranches
from rlax_ft.errors import InputError
from rlax_ft.types import BranchBatch, PreferenceBatch, RankingBatch, TokenBatch


def fitting(codec: Codec, records: list[dict], *, at_least: int = 1) -> list[dict]:
    """The records whose responses fit and have tokens, not all the same ones; how many are left out is logged.

    A comparison needs both its responses; a ranking loses the candidates that are too long or empty, and needs two.
    Where `codec.truncate` is off, what does not fit stays, and is an error when it becomes rows. The rows of what is
    kept wait in the codec: text is tokenised once.

    Raises:
      InputError: fewer than `at_least` fit.
    """
    answers = [responses_of(record) for record in records]
    prompts = [prompt_of(record) for record, some in zip(records, answers) for _ in some]
    rows = iter(codec.encode_uncut(prompts, [answer for some in answers for answer in some]))
    kept, long, empty, same = [], 0, 0, 0
    for record, some in zip(records, answers):
        encoded = [next(rows) for _ in some]
        says = [any(row.learned) for row in encoded]
        short = [len(row.response) <= codec.max_new_tokens or not codec.truncate for row in encoded]
        fits = [says_it and is_short for says_it, is_short in zip(says, short)]
        if len(some) > 1 and all(row.response == encoded[0].response for row in encoded):
            same += 1
        elif all(fits) or ('ranks' in record and sum(fits) > 1):
            kept.append(_of_fitting(record, encoded, fits))
            for answer, row, fit in zip(some, encoded, fits):
                if fit:
                    codec.keep(prompt_of(record), answer, row)
        elif all(says):
            long += 1
        else:
            empty += 1
    if len(kept) < at_least:
        raise InputError(
            f'--max_new_tokens={codec.max_new_tokens}: all {len(records)} records have longer responses; raise it'
            if long
            else f'all {len(records)} records have responses without a token, or of the same tokens; nothing to learn'
        )
    for count, reason in (
        (long, f'a response has more than {codec.max_new_tokens} tokens; raise --max_new_tokens to keep them'),
        (empty, 'a response has no token'),
        (same, 'the responses that they compare become the same tokens'),
    ):
        if count:
            # A few are told; many are a warning.
            level = logging.WARNING if 10 * count > len(records) else logging.INFO
            logging.log(level, '%d of %d records left out: %s', count, len(records), reason)
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


def prompt_arrays(codec: Codec, prompts: Sequence[Text]) -> tuple[np.ndarray, np.ndarray]:
    """Left-padded prompts int32[N, max_prompt] and their mask bool[N, max_prompt]."""
    rows = prompt_rows(codec, prompts).padded(codec.max_prompt)
    return np.asarray(rows.tokens), np.asarray(rows.segment_ids) > 0


def prompt_rows(codec: Codec, prompts: Sequence[Text]) -> Ragged:
    """Prompts for the sampler, padded where a batch of them is picked."""
    rows = [(ids, [False] * len(ids)) for ids in codec.encode_prompts(prompts)]
    return Ragged.of(rows, pad_id=codec.pad_id, most=codec.max_prompt, left=True)


def token_rows(
    codec: Codec, prompts: Sequence[Text], responses: Sequence[Text], length: int | None = None
) -> TokenBatch:
    """Prompts with their responses as a TokenBatch [N, T] of numpy arrays.

    Args:
      codec: how text becomes tokens.
      prompts: N texts or message lists.
      responses: N texts or message lists, each of its prompt's kind.
      length: T; the longest row, rounded up to 8, when absent.

    Raises:
      InputError: a prompt or response is too long, or there is no token to learn from.
    """
    return _padded(ragged_rows(codec, prompts, responses), length)


def ragged_rows(codec: Codec, prompts: Sequence[Text], responses: Sequence[Text], most: int = 0) -> Ragged:
    """The same, padded where a batch is picked: what a data set is kept as.

    Args:
      codec, prompts, responses: as in `token_rows`.
      most: tokens of the longest row that other rows may have; 0: there are no others.
    """
    rows = codec.encode(prompts, responses)
    for number, row in enumerate(rows, 1):
        if not any(row.learned):
            raise InputError(f'record {number}: the response is empty; each needs at least one token')
        if len(row.response) > codec.max_new_tokens:
            raise codec.too_long('response', row.response, codec.max_new_tokens, '--max_new_tokens')
    whole = [(row.prompt + row.response, [False] * len(row.prompt) + row.learned) for row in rows]
    return Ragged.of(whole, pad_id=codec.pad_id, most=most)


def _padded(rows, length=None):
    """All of them as arrays, as wide as the longest row."""
    return rows.padded(length or max(-(-rows.most // 8) * 8, 8))


def preference_rows(codec: Codec, pairs: list[dict], *, ragged: bool = False) -> PreferenceBatch:
    """Comparisons as a PreferenceBatch [N]; `label`, `margin` and `weight` are the records' own where they have them.

    Args:
      codec: how text becomes tokens.
      pairs: N records.
      ragged: the candidates are `Ragged`, for a data set that batches are picked from; else a TokenBatch [N, 2, T].

    Raises:
      InputError: as `token_rows`, or both sides of a pair are the same tokens.
    """
    sides = [pair[side] for pair in pairs for side in ('chosen', 'rejected')]
    rows = ragged_rows(codec, [prompt_of(pair) for pair in pairs for _ in range(2)], sides)
    for number in range(len(pairs)):
        if np.array_equal(rows.row(2 * number)[0], rows.row(2 * number + 1)[0]):
            raise InputError(f'record {number + 1}: "chosen" and "rejected" become the same tokens; leave it out')

    def column(name, default):
        """float32[N] of a field; None where no record has it."""
        if not any(name in pair for pair in pairs):
            return None
        return np.asarray([pair.get(name, default) for pair in pairs], np.float32)

    label, candidates = column('label', 1.0), rows.reshape(len(pairs), 2)
    return PreferenceBatch(
        candidates=candidates if ragged else _padded(candidates),
        label=np.ones(len(pairs), np.float32) if label is None else label,
        margin=column('margin', 0.0),
        weight=column('weight', 1.0),
    )


def ranking_rows(codec: Codec, rankings: list[dict], *, ragged: bool = False) -> RankingBatch:
    """Rankings as a RankingBatch [N, K, T]; K is the largest number of candidates, the missing ones are masked.

    Args:
      codec: how text becomes tokens.
      rankings: N records; `weight` is their own where they have it.
      ragged: as in `preference_rows`.
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
    candidates = ragged_rows(codec, prompts, responses).reshape(len(rankings), most)
    weights = [ranking.get('weight', 1.0) for ranking in rankings]
    return RankingBatch(
        candidates=candidates if ragged else _padded(candidates),
        ranks=ranks,
        mask=mask,
        weight=np.asarray(weights, np.float32) if any('weight' in ranking for ranking in rankings) else None,
    )


def take_rows(batch, index):
    """Rows of a struct of numpy arrays."""

    return jax.tree.map(lambda leaf: leaf[index], batch)


def share_prompts(batch: PreferenceBatch | RankingBatch) -> PreferenceBatch | RankingBatch:
    """The same comparisons or rankings with their prompts shared; as they are where that would save nothing.

    Args:
      batch: a struct of numpy arrays, or of `Ragged` candidates, whose rows hold one segment each, the prompt first.
    """
    if isinstance(batch.candidates, RaggedBranches):
        return batch
    if isinstance(batch.candidates, Ragged):
        branches = shared_ragged(batch.candidates)
        return batch if branches is None else dataclasses.replace(batch, candidates=branches)
    rows = jax.tree.map(np.asarray, batch.candidates)
    padded = rows if isinstance(rows, BranchBatch) else shared(rows)
    return batch if padded is None else dataclasses.replace(batch, candidates=padded)


def shared(rows: TokenBatch, *, always: bool = False) -> BranchBatch | None:
    """Candidates [N, K, T] as branches; None where prompts differ, rows are packed, or no column would be saved.

    The prompt is what stands before the first token that counts.

    Args:
      rows: numpy arrays.
      always: also where no column is saved.
    """
    real, length = rows.segment_ids > 0, rows.tokens.shape[-1]
    prompts, ends = np.argmax(rows.mask > 0, axis=-1), real.sum(axis=-1)
    cut, width = (max(-(-int(x.max()) // 8) * 8, 8) for x in (prompts, ends - prompts))
    if not always and cut + rows.tokens.shape[1] * width >= rows.tokens.shape[1] * length:
        return None
    packed = rows.segment_ids.max(initial=0) > 1 or not (real[..., :1].all() and (rows.mask.max(axis=-1) > 0).all())
    at = np.arange(cut) - (cut - prompts[..., None])
    heads = _take(rows, at, at >= 0)
    if packed or (prompts != prompts[:, :1]).any() or (heads.tokens != heads.tokens[:, :1]).any():
        return None
    at = prompts[..., None] + np.arange(width)
    responses = _take(rows, at, at < ends[..., None])
    prompt = jax.tree.map(lambda leaf: leaf[:, 0], heads)
    return BranchBatch(prompt=prompt.replace(mask=np.zeros_like(prompt.mask)), responses=responses)


def shared_ragged(rows: Ragged, *, always: bool = False) -> RaggedBranches | None:
    """The same of candidates that are not padded yet."""
    count, many = rows.shape
    lengths, begins = np.diff(rows.starts), rows.starts[:-1]
    if not lengths.all():
        return None
    place = np.where(rows.learned, np.arange(len(rows.ids)) - np.repeat(begins, lengths), len(rows.ids))
    prompts = np.minimum.reduceat(place, begins)
    cut, width, length = (max(-(-int(x.max()) // 8) * 8, 8) for x in (prompts, lengths - prompts, lengths))
    if not 0 < prompts.min() <= prompts.max() < len(rows.ids) or not (always or cut + many * width < many * length):
        return None
    for first in range(0, count * many, many):
        start = rows.ids[begins[first] : begins[first] + prompts[first]]
        for other in range(first + 1, first + many):
            if not np.array_equal(start, rows.ids[begins[other] : begins[other] + prompts[other]]):
                return None
    firsts, every = np.arange(0, count * many, many), np.arange(count * many)
    heads = rows.spans(firsts, begins[firsts], begins[firsts] + prompts[firsts], (count,))
    responses = rows.spans(every, begins + prompts, rows.starts[1:], rows.shape)
    return RaggedBranches(
        dataclasses.replace(heads, left=True, most=cut),
        dataclasses.replace(responses, offsets=prompts.astype(np.int32), most=width),
    )


def _take(rows, at, real):
    """Columns `at` of every row where `real`, and padding elsewhere."""
    at = np.clip(at, 0, rows.tokens.shape[-1] - 1)
    taken = jax.tree.map(lambda leaf: np.take_along_axis(leaf, at, axis=-1), rows)
    return TokenBatch(
        tokens=np.where(real, taken.tokens, 0).astype(np.int32),
        mask=np.where(real, taken.mask, 0.0).astype(np.float32),
        positions=np.where(real, taken.positions, 0).astype(np.int32),
        segment_ids=real.astype(np.int32),
    )
