"""Speed of sampling against Hugging Face's `generate` or Tunix, and of the rollout engine against static batches.

    python experiments/benchmarks/generate.py --against=hf --peer_python=PATH/TO/python --json=generate.json

The peer runs where it is installed: `--peer_python` names that environment's interpreter (`pip install transformers
torch`, or `pip install google-tunix`). Both take turns, on the same shapes in the same precision; warm-up, with
compilation, is not counted. Training is timed by train_step.py.
"""

import json
import sys
from pathlib import Path

from absl import app, flags

from rlax_ft.harness.benchmark import PYTHON, ROUNDS, SHAPE, SHAPES, report
from rlax_ft.harness.race import race

# Title, worker, and the packages that RESULTS.md names.
PEERS = {
    'hf': (' against Hugging Face', 'torch_worker.py', ('transformers', 'torch')),
    'tunix': (' against Tunix', 'tunix_worker.py', ('google-tunix', 'jax', 'flax')),
    'none': ('', '', ()),
}
WORKERS = Path(__file__).parent / 'workers'
_AGAINST = flags.DEFINE_enum('against', 'hf', list(PEERS), 'The peer.')
_BATCHES = flags.DEFINE_list('batches', ['1', '16', '64'], 'Batch sizes.')
_PROMPT = flags.DEFINE_integer('prompt', 64, 'Tokens of a prompt.')
_NEW = flags.DEFINE_integer('new', 128, 'Tokens of a completion.')
_ENGINE_ROWS = flags.DEFINE_integer('engine_rows', 64, 'Rows under way in the engine; 0 leaves it out.')


def main(_):
    """Races each batch size, then the engine."""
    sizes = [str(_PROMPT.value), str(_NEW.value), json.dumps(SHAPES[SHAPE.value])]
    records = [plain(batch, sizes) for batch in _BATCHES.value]
    if _ENGINE_ROWS.value:
        records.append(engine(sizes))
    against, _, packages = PEERS[_AGAINST.value]
    notes = [limits(int(batch), r['ours'], SHAPES[SHAPE.value]) for batch, r in zip(_BATCHES.value, records)]
    report(f'Sampling{against}, shape `{SHAPE.value}`', records, packages, notes=notes)


def limits(batch: int, rate: float, shape: dict) -> str:
    """What decoding does a second: products with the weights, reading of the weights and of all slots of the cache."""
    head, size = shape['width'] // shape['heads'], 2 if shape['dtype'] == 'bfloat16' else 4
    attention = 2 * shape['width'] * head * (shape['heads'] + shape['kv_heads'])
    weights = shape['layers'] * (attention + 3 * shape['width'] * shape['mlp']) + shape['vocab'] * shape['width']
    cache = 2 * shape['layers'] * shape['kv_heads'] * head * (_PROMPT.value + _NEW.value)
    steps = rate / batch
    return (
        f'- batch {batch}: {2 * weights * rate / 1e9:,.0f} GFLOP/s, the weights at {size * weights * steps / 1e9:,.1f} '
        f'GB/s, the cache at {size * cache * rate / 1e9:,.1f} GB/s'
    )


def plain(batch: str, sizes: list[str]) -> dict:
    """The record of one batch size."""
    commands = [[sys.executable, str(WORKERS / 'ours_generate.py'), 'plain', batch, *sizes]]
    if _AGAINST.value != 'none':
        commands.append([PYTHON.value, str(WORKERS / PEERS[_AGAINST.value][1]), 'generate', batch, *sizes])
    return record(f'generate, batch {batch}', commands, tokens=int(batch) * _NEW.value)


def engine(sizes: list[str]) -> dict:
    """The record of the engine against our own static batches."""
    worker, rows = str(WORKERS / 'ours_generate.py'), str(_ENGINE_ROWS.value)
    commands = [[sys.executable, worker, kind, rows, *sizes] for kind in ('engine', 'static')]
    return record('engine against static batches, geometric lengths', commands)


def record(name: str, commands: list[list[str]], tokens: int | None = None) -> dict:
    """Tokens a second; of random lengths, those that each command said that it drew."""
    rates = [(tokens or r['tokens']) / r['seconds'] for r in race(commands, rounds=ROUNDS.value)]
    ours, peer = rates[0], rates[1] if len(rates) > 1 else None
    return {'name': name, 'ours': ours, 'peer': peer, 'unit': 'tokens/s', 'ratio': peer and ours / peer}


if __name__ == '__main__':
    app.run(main)
