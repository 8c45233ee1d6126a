"""Conversations whose beginning stays in the cache from turn to turn, against reading all of it again at each turn.

    python experiments/benchmarks/conversations.py --turns=8 --rounds=5 --record

Both sides sample the same tokens from one random model; only what is read differs. A round times each side once.
"""

import dataclasses
import time

import jax
import numpy as np
from absl import app, flags

from rlax_ft.data.codec import Codec
from rlax_ft.data.tokenizers import train_tokenizer
from rlax_ft.envs.text import TextEnvironment, TextStep
from rlax_ft.harness.benchmark import ROUNDS, SHAPE, SHAPES, random_llama, report
from rlax_ft.harness.conversations import ConversationSettings, make_conversations
from rlax_ft.models.transformer import Transformer

_TURNS = flags.DEFINE_integer('turns', 8, 'Turns of the assistant in a conversation.')
_TOLD = flags.DEFINE_integer('told', 100, 'Characters (tokens, here) that the environment answers each time.')
_PROMPT = flags.DEFINE_integer('prompt', 400, 'Characters of the first message.')
_SPOKEN = flags.DEFINE_integer('spoken', 16, 'Tokens of a turn of the assistant.')
_ROWS = flags.DEFINE_integer('rows', 32, 'Conversations at a time.')


@dataclasses.dataclass(frozen=True)
class _Settings(ConversationSettings):
    mesh: str = 'data=1'
    backend: str = 'pmap'  # Arrays stay where they are.


def talking(turns: int, told: int, prompt: int) -> TextEnvironment:
    """Answers every turn with a text of one length."""

    def step(turn, text):
        return TextStep(turn + 1, [{'role': 'user', 'content': 'b' * told}], 0.0, turn + 1 == turns)

    return TextEnvironment('talking', lambda _: (0, [{'role': 'user', 'content': 'a' * prompt}]), step, turns)


def main(_):
    """Prints, and records, the seconds of both sides by median, of the clock and of the processors."""
    tokenizer = train_tokenizer('bytes', [])
    config, params = random_llama({**SHAPES[SHAPE.value], 'vocab': len(tokenizer)})
    env = talking(_TURNS.value, _TOLD.value, _PROMPT.value)
    # A turn of a codec without ends has its full length.
    each = _TOLD.value + _SPOKEN.value + 40
    codec = Codec(tokenizer, _PROMPT.value + 40, _TURNS.value * each, ends=False)
    settings, apply = _Settings(turn_tokens=_SPOKEN.value), Transformer(config).apply
    sides = {
        'cached': make_conversations(settings, env, codec, apply),
        'read again': make_conversations(settings, env, codec, apply, slots=1),
    }
    seconds, processor, tokens = {name: [] for name in sides}, {name: [] for name in sides}, {}
    for number in range(ROUNDS.value + 1):
        for name, collect in sides.items():
            start, started = time.perf_counter(), time.process_time()
            tokens[name] = collect(params, [{}] * _ROWS.value, jax.random.key(0)).tokens.tokens
            if number:  # The first round compiles.
                seconds[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - started)
    same = np.mean(tokens['cached'] == tokens['read again'])
    title = f'Conversations of {_TURNS.value} turns, {_ROWS.value} at a time, shape `{SHAPE.value}`'
    rows = [row(what, spent) for what, spent in (('of the clock', seconds), ('of the processors', processor))]
    report(title, rows, notes=[f'- the peer reads the conversation again at each turn; {same:.1%} of tokens alike'])


def row(what: str, spent: dict[str, list[float]]) -> dict:
    """The record of both sides' medians; `ratio` says how many times less the cached side takes."""
    cached, again = (float(np.median(times)) for times in spent.values())
    return {'name': f'seconds {what}', 'ours': cached, 'peer': again, 'unit': 's', 'ratio': again / cached}


if __name__ == '__main__':
    app.run(main)
