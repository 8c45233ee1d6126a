"""How much host memory load_pretrained needs beyond the parameters, measured on a random model.

    python experiments/benchmarks/load_memory.py --record

A fresh process loads the folder onto virtual CPU devices, whose memory is host memory: its peak should be the
parameters and about one layer. Leaves out time.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from absl import app, flags

from rlax_ft.harness.results import RECORD, record

LAYERS, WIDTH = 16, 1024
_GIGABYTES = flags.DEFINE_float('gigabytes', 1.0, 'Size of the parameters in float32.')
_DEVICES = flags.DEFINE_integer('devices', 8, 'Virtual devices.', lower_bound=1)
_MESH = flags.DEFINE_string('mesh', '', 'Such as data=2,fsdp=4; all devices on fsdp when empty.')
_LOAD = flags.DEFINE_string('load', '', 'Be the process that loads this folder.')


def main(_):
    """Writes the model, loads it in a process of its own, prints the figures as JSON."""
    mesh = _MESH.value or f'fsdp={_DEVICES.value}'
    if _LOAD.value:
        print(json.dumps(load(_LOAD.value, mesh)))
        return
    flag = f'--xla_force_host_platform_device_count={_DEVICES.value}'
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), _GIGABYTES.value)
        figures = json.loads(
            subprocess.run(
                [sys.executable, __file__, f'--load={folder}', f'--mesh={mesh}'],
                env={**os.environ, 'XLA_FLAGS': flag, 'JAX_PLATFORMS': 'cpu'},
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
        )
    print(json.dumps({'mesh': mesh, **figures}, indent=2))
    if RECORD.value:
        record(
            'Memory of loading a model',
            f'{figures["parameters_mb"]:,} MB of float32 parameters on {_DEVICES.value} virtual devices '
            f'(`--mesh={mesh}`): the peak of host memory is {figures["peak_over_parameters_mb"]} MB above their size; '
            f'one layer is {figures["one_layer_mb"]} MB.',
        )


def write_model(folder: Path, gigabytes: float) -> None:
    """A random Llama of about this size, in shards of a quarter of it."""
    import jax
    import numpy as np

    from rlax_ft.hf.folder import param_shapes, save_config
    from rlax_ft.hf.weights import write_params
    from rlax_ft.models.config import ModelConfig

    # Attention has 3 D^2 parameters with half as many key and value heads as query heads, the MLP 3 D F.
    per_layer = gigabytes * 1e9 / 4 / LAYERS
    mlp = round((per_layer - 3 * WIDTH**2) / (3 * WIDTH) / 64) * 64
    config = ModelConfig(
        vocab_size=4096,
        width=WIDTH,
        layers=LAYERS,
        heads=16,
        kv_heads=8,
        head_dim=64,
        mlp_width=mlp,
        max_length=2048,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32) * 0.02, param_shapes(config))
    save_config(folder, config)
    write_params(folder, config, params, shard_bytes=int(gigabytes * 1e9 / 4))


def load(folder: str, mesh: str) -> dict:
    """Peak memory of loading, in MB, over what the process held before."""
    import jax

    from rlax_ft.hf.folder import load_pretrained, save_pretrained
    from rlax_ft.models.config import embedded_config
    from rlax_ft.models.transformer import init_params
    from rlax_ft.parallel.mesh import make_mesh

    devices = make_mesh(mesh)
    # What jax and transformers need for themselves is there before the count starts: a first model is loaded.
    config = embedded_config('tiny', vocab_size=64, max_length=16)
    with tempfile.TemporaryDirectory() as small:
        save_pretrained(small, config, init_params(config, jax.random.key(0)))
        load_pretrained(small, mesh=devices)
    before = resident()
    peak = [before]
    done = threading.Event()

    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, params, _ = load_pretrained(folder, mesh=devices)
    jax.block_until_ready(params)
    done.set()
    watcher.join()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e6
    layer = sum(leaf.nbytes / leaf.shape[0] for leaf in jax.tree.leaves(params['layers'])) / 1e6
    return {
        'parameters_mb': round(size),
        'one_layer_mb': round(layer),
        'before_mb': round(before),
        'after_mb': round(resident() - before),
        'peak_mb': round(peak[0] - before),
        'peak_over_parameters_mb': round(peak[0] - before - size),
        'peak_of_process_mb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }


def resident() -> float:
    """Resident memory of this process in MB, mapped files included."""
    with open('/proc/self/statm') as file:  # Linux.
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


if __name__ == '__main__':
    app.run(main)
