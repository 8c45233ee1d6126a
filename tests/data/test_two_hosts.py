"""Two real processes: each loads its own rows, and both together exactly those that one process would."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from rlax_ft.data.loader import whole_batch
from rlax_ft.data.stream import stream_batches

PROGRAM = """
import json, sys
import jax
import numpy as np
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from rlax_ft.data.loader import local_rows, prefetch, whole_batch
from rlax_ft.data.stream import stream_batches
from rlax_ft.parallel.mesh import make_mesh
from rlax_ft.parallel.placement import from_local_rows, split_rows
mesh = make_mesh()

def make(i):
    whole = whole_batch({'x': np.arange(64)}, i, batch_size=8, seed=0)
    return from_local_rows((local_rows(whole), np.float32(whole['x'].sum())), mesh)

share = jax.jit(lambda batch: batch[0]['x'].sum() / batch[1])
memory, shares = [], []
for batch in prefetch(map(make, range(3))):
    batch = split_rows(batch, mesh)  # as the compiled step does once more
    memory.append(np.concatenate([s.data for s in batch[0]['x'].addressable_shards]).tolist())
    shares.append(float(share(batch).addressable_shards[0].data))
encode = lambda raw: {'n': np.asarray([record['n'] for record, _ in raw])}
stream = stream_batches(sys.argv[3], encode, batch_size=8, seed=0, window=20)
streamed = [local_rows(next(stream)[0])['n'].tolist() for _ in range(3)]
print(json.dumps({'memory': memory, 'shares': shares, 'streamed': streamed}))
"""


def test_each_process_takes_its_own_rows(tmp_path):
    path = tmp_path / 'x.jsonl'
    path.write_text(''.join(json.dumps({'n': n}) + '\n' for n in range(50)))
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'localhost:{free.getsockname()[1]}'
    environment = {**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
    run = lambda rank: subprocess.Popen(  # noqa: E731
        [sys.executable, '-c', PROGRAM, address, str(rank), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    processes = [run(rank) for rank in range(2)]
    first, second = (json.loads(p.communicate(timeout=120)[0].strip().splitlines()[-1]) for p in processes)
    data = {'x': np.arange(64)}
    assert [a + b for a, b in zip(first['memory'], second['memory'])] == [
        whole_batch(data, i, batch_size=8, seed=0)['x'].tolist() for i in range(3)
    ]
    assert first['shares'] == second['shares'] == [1.0] * 3
    encode = lambda raw: {'n': np.asarray([record['n'] for record, _ in raw])}  # noqa: E731
    stream = stream_batches(path, encode, batch_size=8, seed=0, window=20)
    whole = [next(stream)[0]['n'].tolist() for _ in range(3)]
    assert [a + b for a, b in zip(first['streamed'], second['streamed'])] == whole
