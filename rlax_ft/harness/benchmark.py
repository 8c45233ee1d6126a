"""What the speed benchmarks share: flags, shapes, a random model and rows of a shape, and what becomes of the records.

Leaves out what is timed.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from rlax_ft.harness.race import table
from rlax_ft.harness.results import RECORD, record
from rlax_ft.models.config import ModelConfig
from rlax_ft.models.transformer import init_params
from rlax_ft.types import TokenBatch

_CPU = dict(vocab=8192, width=256, layers=4, heads=8, kv_heads=4, mlp=688, dtype='float32', remat='none')
_1B = dict(vocab=128_256, width=2048, layers=16, heads=32, kv_heads=8, mlp=8192, dtype='bfloat16', remat='dots')
_TOY = dict(vocab=64, width=16, layers=2, heads=2, kv_heads=1, mlp=32, dtype='float32', remat='none')
SHAPES = {
    'toy': _TOY | dict(rows=8, prompt=8, response=8, group=2, groups=8, group_prompt=16, group_response=8),
    'cpu': _CPU | dict(rows=8, prompt=128, response=128, group=8, groups=16, group_prompt=256, group_response=64),
    '1b': _1B | dict(rows=4, prompt=1024, response=1024, group=8, groups=4, group_prompt=1024, group_response=256),
}
PYTHON = flags.DEFINE_string('peer_python', sys.executable, 'Interpreter of the environment that has the peer.')
SHAPE = flags.DEFINE_enum('shape', 'cpu', list(SHAPES), 'Sizes of model and batch.')
ROUNDS = flags.DEFINE_integer('rounds', 7, 'Rounds that count.')
JSON = flags.DEFINE_string('json', '', 'File for the records.')


def llama_config(shape: dict) -> ModelConfig:
    """A Llama of that shape."""
    return ModelConfig(
        vocab_size=shape['vocab'],
        width=shape['width'],
        layers=shape['layers'],
        heads=shape['heads'],
        kv_heads=shape['kv_heads'],
        head_dim=shape['width'] // shape['heads'],
        mlp_width=shape['mlp'],
        max_length=4096,
        dtype=shape['dtype'],
        remat=shape['remat'],
    )


def random_llama(shape: dict) -> tuple[ModelConfig, dict]:
    """(config, float32 parameters) of a Llama of that shape."""
    config = llama_config(shape)
    return config, jax.jit(lambda key: init_params(config, key))(jax.random.key(0))


def random_rows(shape: dict, candidates: int, *, seed: int = 0) -> TokenBatch:
    """TokenBatch [rows, candidates, prompt + response] of random tokens; candidates of a row share its prompt."""
    rng = np.random.default_rng(seed)
    count, prompt, length = shape['rows'], shape['prompt'], shape['prompt'] + shape['response']
    tokens = rng.integers(3, shape['vocab'], (count, candidates, length)).astype(np.int32)
    tokens[:, :, :prompt] = tokens[:, :1, :prompt]
    mask = np.zeros(tokens.shape, np.float32)
    mask[:, :, prompt:] = 1.0
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return TokenBatch(tokens, mask, positions, np.ones_like(tokens))


def report(title: str, records: Sequence[dict], peers: Sequence[str] = (), notes: Sequence[str] = ()) -> None:
    """Prints the table with notes, and writes it and the records where the flags ask for it.

    Args:
      title: of the section.
      records: with the columns of the table.
      peers: packages to name, with the versions that the peer's interpreter has.
      notes: lines below the table.
    """
    body = '\n\n'.join([table(records), *(['\n'.join([*notes, _machine()])] if notes else [])])
    print(body)
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(list(records), indent=2) + '\n')
    if RECORD.value:
        against = f'The peer: {_versions(peers)}.\n\n' if peers else ''
        record(title, against + body)


def _machine():
    """What this machine does in one large product and in one large sum, for comparison."""
    size, x = 2048, jax.random.normal(jax.random.key(0), (2048, 2048))
    product = _seconds(lambda x: x @ x, x)
    long = jnp.ones(2**27)
    return (
        f'- this machine: {2 * size**3 / product / 1e9:,.0f} GFLOP/s in a product of float32 matrices {size} x {size}, '
        f'{long.nbytes / _seconds(jnp.sum, long) / 1e9:,.0f} GB/s in a sum of 2^27 numbers'
    )


def _seconds(function, x):
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(x))
    started = time.perf_counter()
    for _ in range(10):
        jax.block_until_ready(compiled(x))
    return (time.perf_counter() - started) / 10


def _versions(packages):
    code = f'import importlib.metadata as m; print(*(f"{{p}} {{m.version(p)}}" for p in {tuple(packages)}), sep=", ")'
    return subprocess.run([PYTHON.value, '-c', code], capture_output=True, text=True, check=True).stdout.strip()
