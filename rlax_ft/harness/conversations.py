"""Conversations of a policy with a text environment: many under way at a time, as token rows for the trainer.

Token in, token out: the tokens that the sampler drew are those that the trainer reads, with their log-probabilities; no
text is tokenised twice. What the environment says is tokenised once, as the chat template writes it between two turns
of the assistant, and is masked. Leaves out advantages and updates.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.messages import Conversation
from rlax_ft.data.templates import encode_dialogues
from rlax_ft.envs.text import TextEnvironment, answer, as_environment, begin
from rlax_ft.envs.text_calculator import CALCULATOR
from rlax_ft.envs.text_grid import GRID_WORDS
from rlax_ft.envs.text_questions import TWENTY_QUESTIONS
from rlax_ft.errors import InputError
from rlax_ft.harness.loading import find_function
from rlax_ft.harness.settings import flag
from rlax_ft.harness.step import placement
from rlax_ft.parallel.placement import fetch
from rlax_ft.sampling.turns import make_turns
from rlax_ft.types import BranchBatch, TokenBatch

ENVIRONMENTS = {env.name: env for env in (CALCULATOR, TWENTY_QUESTIONS, GRID_WORDS)}


@dataclasses.dataclass(frozen=True)
class ConversationSettings:
    """Flags of scripts whose policy talks with an environment."""

    group: ClassVar[str] = 'algorithm'

    env: str = flag(
        '',
        'Text environment: calculator, twenty_questions, grid_words, or one of your own, MODULE:FUNCTION.',
    )
    turn_tokens: int = flag(
        0,
        'Longest turn of the assistant in tokens, its end included; 0: a quarter of --max_new_tokens.',
        at_least=0,
        needs='env',
    )


@dataclasses.dataclass(frozen=True)
class Conversations:
    """B conversations, whose rows hold the prompt and all turns; arrays are [B, T].

    Attributes:
      tokens: TokenBatch; its mask is 1 on what the assistant said, with the end of each turn.
      logps: float32, the sampler's log-probabilities of those tokens; 0 elsewhere.
      rewards: float32, each turn's reward on its last token; 0 elsewhere.
      scores: float32[B], the sum of a conversation's rewards.
      turns: int32[B], how often the assistant spoke.
      ended: bool[B], the environment ended it; False where it was cut, by its length or number of turns.
      failed: bool[B], the environment raised; such rows, and those of their group, are masked.
      messages: each conversation as messages.
      prompt_lengths: int32[B], tokens before the first turn of the assistant.
    """

    tokens: TokenBatch
    logps: np.ndarray
    rewards: np.ndarray
    scores: np.ndarray
    turns: np.ndarray
    ended: np.ndarray
    failed: np.ndarray
    messages: list[list[dict]]
    prompt_lengths: np.ndarray

    def metrics(self) -> dict[str, float]:
        """Means over the conversations that did not fail."""
        fine = ~self.failed if not self.failed.all() else np.ones_like(self.failed)
        lengths = np.asarray(self.tokens.mask).sum(axis=1)
        return {
            'reward': self.scores[fine].mean(),
            'reward_std': self.scores[fine].std(),
            'completions/mean_length': lengths[fine].mean(),
            'conversations/turns': self.turns[fine].mean(),
            'conversations/cut': 1.0 - self.ended[fine].mean(),
            'conversations/failed': self.failed.sum(),
        }

    def branches(self, group_size: int) -> tuple[BranchBatch, np.ndarray, np.ndarray]:
        """The same with the prompt once for its group: (BranchBatch, logps, rewards), arrays [B, N] behind the prompt.

        Args:
          group_size: conversations of one record, in adjacent rows.
        """
        first, lengths = self.prompt_lengths[::group_size], self.prompt_lengths
        width = _width(int(first.max()))
        real = np.asarray(self.tokens.segment_ids).sum(axis=1)
        rest = min(_width(int((real - lengths).max())), self.tokens.tokens.shape[1])
        prompt_at = np.arange(width)[None] - (width - first)[:, None]
        answer_at = np.arange(rest)[None] + lengths[:, None]
        take = lambda x, at: np.take_along_axis(x, np.clip(at, 0, x.shape[1] - 1), axis=1)  # noqa: E731
        rows, seen = jax.tree.map(np.asarray, self.tokens), (prompt_at >= 0).astype(np.int32)
        said = (answer_at < real[:, None]).astype(np.int32)
        prompt = TokenBatch(
            take(rows.tokens[::group_size], prompt_at), np.zeros(seen.shape, np.float32), np.maximum(prompt_at, 0), seen
        )
        answers = take(rows.tokens, answer_at), take(rows.mask, answer_at) * said, answer_at, said
        by_group = (np.asarray(x).reshape(-1, group_size, rest) for x in answers)
        arrays = (take(x, answer_at) * said for x in (self.logps, self.rewards))
        return BranchBatch(prompt, TokenBatch(*by_group)), *arrays


def text_environment(name: str) -> TextEnvironment:
    """The text environment of a name.

    Raises:
      InputError: there is none.
    """
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    if ':' not in name:
        raise InputError(
            f'--env={name}: no such text environment; use one of {", ".join(ENVIRONMENTS)}, or MODULE:FUNCTION'
        )
    return as_environment(find_function(name, 'env'), name)


def make_conversations(
    settings,
    env: TextEnvironment,
    codec: Codec,
    apply: Callable,
    *,
    group_size: int = 1,
    failures: float = 0.0,
    temperature: float = 1.0,
    slots: int = 0,
) -> Callable:
    """`collect(params, records, key) -> Conversations`, one for each record.

    Args:
      settings: of the script, with `turn_tokens`.
      env: with whom the policy talks.
      codec: a prompt has at most `max_prompt` tokens, all that follows at most `max_new_tokens`.
      apply: of the policy.
      group_size: conversations of one record, adjacent; they fail together.
      failures: the share of groups in which the environment may fail; 0 stops at the first.
      temperature: of the sampling; 0 decodes greedily.
      slots: tokens of a row that the key-value cache holds, the padding between turns included; 0: twice the longest
        row. Where they are used up, the rows are read once more from their beginning.

    Raises:
      InputError: a turn has no room.
    """
    longest = settings.turn_tokens or max(codec.max_new_tokens // 4, 1)
    if longest > codec.max_new_tokens:
        raise InputError(f'--turn_tokens={longest}: more than --max_new_tokens={codec.max_new_tokens} of all turns')
    start, turn = make_turns(
        apply, max_new_tokens=longest, temperature=temperature, eos_ids=codec.eos_ids, pad_id=codec.pad_id
    )
    place, between = (
        placement(settings),
        functools.lru_cache(maxsize=4096)(functools.partial(_between, codec, env.tools)),
    )
    slots = max(slots or 2 * _width(codec.max_length), longest)

    def collect(params, records: list[dict], key: jax.Array) -> Conversations:
        rows = [_Row(env, record, failures > 0) for record in records]
        prompts = [Conversation(row.messages, list(env.tools)) for row in rows]
        for row, ids in zip(rows, codec.encode_prompts(prompts)):
            row.prompt_length = len(ids)
            row.read(ids)
        talk, used, number = None, 0, 0
        while any(row.active for row in rows):
            if talk is None or used + _width(max(len(row.unread) for row in rows)) + longest > slots:
                # Nothing is under way yet, or the cache is full: rows are read from their beginning.
                for row in rows:
                    row.unread = list(row.ids) if row.active else []
                whole = _width(max(len(row.unread) for row in rows)) + longest
                talk, used = start(params, len(rows), max(slots, whole)), 0
            tokens, mask = _left_padded([row.unread for row in rows], codec.pad_id)
            talk, *said = turn(params, talk, *place((tokens, mask)), jax.random.fold_in(key, number))
            drawn, kept, logps = fetch(said)
            used, number = used + tokens.shape[1] + int(kept.sum(axis=1).max()), number + 1
            texts = codec.tokenizer.batch_decode([d[k].tolist() for d, k in zip(drawn, kept)], skip_special_tokens=True)
            for i, row in enumerate(rows):
                row.unread = []
                if row.active:
                    row.say(drawn[i][kept[i]].tolist(), logps[i][kept[i]].tolist(), texts[i])
                    row.go_on(codec, longest, between)
        _check_failures(env, rows, group_size, failures)
        return _gathered(rows, codec, group_size)

    return collect


class _Row:
    """One conversation while it is under way."""

    def __init__(self, env: TextEnvironment, record: dict, may_fail: bool):
        self.env, self.may_fail = env, may_fail
        self.ids: list[int] = []
        self.unread: list[int] = []
        self.mask: list[float] = []
        self.logps: list[float] = []
        self.rewards: list[float] = []
        self.prompt_length, self.turns, self.ended, self.active, self.failure = 0, 0, False, True, ''
        self.state, self.messages = self._guarded(lambda: begin(env, record), (None, [{'role': 'user', 'content': ''}]))

    def read(self, ids: list[int]):
        """Takes in what others say; the policy reads it before its next turn."""
        self.ids += ids
        self.unread = list(ids)
        for values in (self.mask, self.logps, self.rewards):
            values += [0.0] * len(ids)

    def say(self, ids: list[int], logps: list[float], text: str):
        """What the policy said, and what the environment answers."""
        self.ids, self.mask, self.logps = self.ids + ids, self.mask + [1.0] * len(ids), self.logps + logps
        self.messages = [*self.messages, {'role': 'assistant', 'content': text}]
        self.turns += 1
        nothing: tuple = (self.state, [], 0.0, True)
        self.state, self.told, reward, done = self._guarded(lambda: answer(self.env, self.state, text), nothing)
        self.rewards += [0.0] * (len(ids) - 1) + [reward]
        self.ended = done
        self.active = self.active and not done

    def go_on(self, codec: Codec, longest: int, between: Callable):
        """Reads what was answered, where the turn did end and there is room and time for another."""
        if not self.active:
            return
        ids = between(json.dumps(self.told))
        whole = not codec.eos_ids or self.ids[-1] in codec.eos_ids
        room = len(self.ids) + len(ids) + longest <= codec.max_length
        self.active = whole and room and self.turns < self.env.max_turns
        if self.active:
            self.messages = [*self.messages, *self.told]
            self.read(ids)

    def _guarded(self, function: Callable, otherwise: Any):
        try:
            return function()
        except InputError as error:
            if not self.may_fail:
                raise
            self.failure, self.active = str(error), False
            return otherwise


def _between(codec: Codec, tools: tuple, told: str) -> list[int]:
    """The tokens between two turns of the assistant, as the template writes them."""
    said = lambda text: {'role': 'assistant', 'content': text}  # noqa: E731
    prompt = Conversation([{'role': 'user', 'content': 'a'}], list(tools))
    row = encode_dialogues(codec.tokenizer, [prompt], [[said('b'), *json.loads(told), said('c')]])[0]
    first = row.learned.index(True)
    begin = row.learned.index(False, first)
    return row.response[begin : row.learned.index(True, begin)]


def _left_padded(rows: list[list[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, mask), each [B, R], R a power of two, so that few programs compile."""
    width = _width(max(map(len, rows)))
    tokens, mask = np.full((len(rows), width), pad_id, np.int32), np.zeros((len(rows), width), bool)
    for i, ids in enumerate(rows):
        if ids:
            tokens[i, -len(ids) :], mask[i, -len(ids) :] = ids, True
    return tokens, mask


def _width(length: int) -> int:
    return max(8, 1 << (max(length, 1) - 1).bit_length())


def _check_failures(env, rows, group_size, share):
    """Logs how many groups failed.

    Raises:
      InputError: more than the share of them.
    """
    failed = [
        next((row.failure for row in rows[i : i + group_size] if row.failure), '')
        for i in range(0, len(rows), group_size)
    ]
    first, count = next(filter(None, failed), ''), sum(map(bool, failed))
    if count > share * len(failed):
        raise InputError(
            f'{first}; {count} of {len(failed)} groups failed, more than --reward_failures={share:g} allows'
        )
    if count:
        logging.warning('%d of %d groups of conversations failed and teach nothing: %s', count, len(failed), first)


def _gathered(rows: list[_Row], codec: Codec, group_size: int) -> Conversations:
    shape = (len(rows), min(_width(max(len(row.ids) for row in rows)), -(-codec.max_length // 8) * 8))
    tokens, real = np.full(shape, codec.pad_id, np.int32), np.zeros(shape, np.int32)
    mask, logps, rewards = (np.zeros(shape, np.float32) for _ in range(3))
    failed = np.asarray([bool(row.failure) for row in rows])
    failed = np.repeat(failed.reshape(-1, group_size).any(axis=1), group_size)
    for i, row in enumerate(rows):
        size = len(row.ids)
        tokens[i, :size], real[i, :size] = row.ids, 1
        if not failed[i]:
            mask[i, :size], logps[i, :size], rewards[i, :size] = row.mask, row.logps, row.rewards
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return Conversations(
        tokens=TokenBatch(tokens, mask, positions, real),
        logps=logps,
        rewards=rewards,
        scores=rewards.sum(axis=1),
        turns=np.asarray([row.turns for row in rows], np.int32),
        ended=np.asarray([row.ended for row in rows]),
        failed=failed,
        messages=[row.messages for row in rows],
        prompt_lengths=np.asarray([row.prompt_length for row in rows], np.int32),
    )
