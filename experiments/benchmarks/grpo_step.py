"""Speed of a GRPO step against TRL's, sampling and update apart.

    python experiments/benchmarks/grpo_step.py --peer_python=PATH/TO/python --rounds=3 --json=grpo_step.json

The peer runs where it is installed: `--peer_python` names that environment's interpreter (`pip install trl torch`).
Both take turns, on the same shapes in the same precision, with every completion at full length; warm-up, with
compilation, is not counted. The update is all that is not sampling: texts, rewards, advantages, forward, backward,
AdamW.
"""

import dataclasses
import json
import sys
from pathlib import Path

from absl import app, flags

from rlax_ft.harness.benchmark import PYTHON, ROUNDS, SHAPE, SHAPES, llama_config, report
from rlax_ft.harness.race import race
from rlax_ft.training.performance import forward_flops

WORKERS = Path(__file__).parent / 'workers'
_AGAINST = flags.DEFINE_enum('against', 'trl', ['trl', 'none'], 'The peer.')
_PROMPTS = flags.DEFINE_integer('prompts', 64, 'Prompts of a step.')
_GROUP = flags.DEFINE_integer('group_size', 8, 'Completions of each.')
_PROMPT = flags.DEFINE_integer('prompt', 64, 'Tokens of a prompt.')
_NEW = flags.DEFINE_integer('new', 128, 'Tokens of a completion.')
_ROWS = flags.DEFINE_integer('rows', 64, 'Completions in a micro-batch of the update.')


def main(_):
    """Prints, and records, a row for the step and each of its halves."""
    sizes = dict(prompts=_PROMPTS.value, group=_GROUP.value, prompt=_PROMPT.value, new=_NEW.value, rows=_ROWS.value)
    given = json.dumps(sizes), json.dumps(SHAPES[SHAPE.value])
    commands = [[sys.executable, str(WORKERS / 'ours_grpo.py'), *given]]
    if _AGAINST.value != 'none':
        commands.append([PYTHON.value, str(WORKERS / 'trl_grpo.py'), *given])
    answers = race(commands, rounds=ROUNDS.value, warmup=2)
    for answer in answers:
        expected = sizes['prompts'] * sizes['group'] * sizes['new']
        assert answer['tokens'] == expected, f'drew {answer["tokens"]} tokens, not {expected}'
    records = [row(name, key, answers) for name, key in KINDS.items()]
    title = f'A GRPO step, {_PROMPTS.value} prompts x {_GROUP.value}, {_PROMPT.value} + {_NEW.value} tokens'
    notes, peers = [products(sizes, SHAPES[SHAPE.value])], ('trl', 'torch', 'transformers') if len(answers) > 1 else ()
    report(f'{title}, shape `{SHAPE.value}`', records, peers, notes)


def products(sizes: dict, shape: dict) -> str:
    """What an update cannot do without: its products, each prompt read once, and logits made again for the gradient."""
    config = llama_config(shape)
    layers = forward_flops(dataclasses.replace(config, vocab_size=0), 1, 0)
    head = forward_flops(config, 1, 0) - layers
    drawn, prompts = sizes['prompts'] * sizes['group'] * sizes['new'], sizes['prompts'] * sizes['prompt']
    flops = 3 * layers * (drawn + prompts) + 4 * head * drawn
    return f'- our update has {flops / 1e12:.2f} TFLOP of products with weights, and attention beside them'


KINDS = {'whole step': 'seconds', 'its sampling': 'seconds_sampling', 'its update': 'seconds_update'}


def row(name: str, key: str, answers: list[dict]) -> dict:
    """The record of the step or of a half; `ratio` says how many times faster ours is."""
    ours, peer = answers[0][key], answers[1][key] if len(answers) > 1 else None
    return {'name': name, 'ours': ours, 'peer': peer, 'unit': 's', 'ratio': peer and peer / ours}


if __name__ == '__main__':
    app.run(main)
