"""All that is to be known of an accelerator, in one run: matrix rate, train steps, decoding, memory.

    python experiments/benchmarks/accelerator.py --against=peers --bandwidth=4.3e12 --record

Rates are shares of what the same machine does in a plain matrix product, and of the time that its memory needs to read
weights and cache once. The peers are TRL's trainers and Hugging Face's `generate` with a static cache; `--peer_python`
names the environment that has them. `--shape=toy --against=none` tries the script itself. The CPU's figures come from
train_step.py and generate.py.
"""

import json
import sys
from pathlib import Path

from absl import app, flags

from rlax_ft.harness.benchmark import PYTHON, ROUNDS, SHAPE, SHAPES, report
from rlax_ft.harness.race import race

WORKERS = Path(__file__).parent / 'workers'
_AGAINST = flags.DEFINE_enum('against', 'peers', ['peers', 'none'], 'Whether the peers run.')
_BANDWIDTH = flags.DEFINE_float('bandwidth', 4.3e12, "Bytes a second of the device's memory.")
_BATCH = flags.DEFINE_integer('batch', 64, 'Rows in decoding.')
_NEW = flags.DEFINE_integer('new', 256, 'Tokens of a completion.')
_MEMORY_VOCAB = flags.DEFINE_integer('memory_vocab', 151_936, 'Vocabulary of the DPO step whose memory is read.')
_MEMORY_TOKENS = flags.DEFINE_integer('memory_tokens', 8192, 'Tokens of its batch.')
flags.FLAGS.set_default('shape', '1b')


def main(_):
    """Measures everything."""
    shape = SHAPES[SHAPE.value]
    rate = _ours('matmul', shape)['flops_per_second']
    records = [_record('matrix rate', rate / 1e12, None, 'TFLOP/s')]
    for stage in ('sft', 'dpo'):
        ours, peer = _against('ours_step.py', [stage], shape)
        flops = _ours(f'flops_{stage}', shape)['flops']
        records.append(_record(f'{stage} step', ours['seconds'], peer and peer['seconds'], 's', lower_is_better=True))
        records.append(_record(f'{stage} step, share of the matrix rate', flops / ours['seconds'] / rate, None, ''))
    records += _decoding(shape)
    large = shape | dict(vocab=_MEMORY_VOCAB.value, rows=max(_MEMORY_TOKENS.value // _length(shape) // 2, 1))
    peak = _ours('dpo_cached', large, 'ours_step.py')['bytes'] / 2**30
    records.append(_record('DPO step, peak memory', peak, None, 'GiB'))
    report(f'An accelerator, shape `{SHAPE.value}`', records)


def _decoding(shape) -> list[dict]:
    sizes = [str(_BATCH.value), str(shape['prompt']), str(_NEW.value)]
    ours, peer = _against('ours_generate.py', ['plain', *sizes], shape, peer_arguments=['generate', *sizes])
    tokens = _BATCH.value * _NEW.value
    rate = lambda r: r and tokens / r['seconds']  # noqa: E731
    width = 2 if shape['dtype'] == 'bfloat16' else 4
    head = shape['width'] // shape['heads']
    filled = shape['prompt'] + _NEW.value / 2
    cache = 2 * shape['layers'] * shape['kv_heads'] * head * filled * _BATCH.value * width
    weights = _ours('flops_sft', shape)['parameters'] * width
    roofline = _BATCH.value / ((cache + weights) / _BANDWIDTH.value)
    return [
        _record(f'generate, batch {_BATCH.value}', rate(ours), rate(peer), 'tokens/s'),
        _record('generate, share of the memory roofline', rate(ours) / roofline, None, ''),
    ]


def _length(shape):
    return shape['prompt'] + shape['response']


def _ours(what, shape, worker='ours_facts.py') -> dict:
    return race([[sys.executable, str(WORKERS / worker), what, json.dumps(shape)]], rounds=1)[0]


def _against(worker, arguments, shape, peer_arguments=()):
    commands = [[sys.executable, str(WORKERS / worker), *arguments, json.dumps(shape)]]
    if _AGAINST.value == 'peers':
        peer = str(WORKERS / 'torch_worker.py')
        commands.append([PYTHON.value, peer, *(peer_arguments or arguments), json.dumps(shape)])
    results = race(commands, rounds=ROUNDS.value, warmup=2)
    return results if len(results) == 2 else (results[0], None)


def _record(name, ours, peer, unit, *, lower_is_better=False) -> dict:
    ratio = None if peer is None else (peer / ours if lower_is_better else ours / peer)
    return {'name': name, 'ours': ours, 'peer': peer, 'unit': unit, 'ratio': ratio}


if __name__ == '__main__':
    app.run(main)
