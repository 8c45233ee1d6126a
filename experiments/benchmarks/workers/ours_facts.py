"""Facts that rates are held against, as a worker of alternate.py: `ours_facts.py WHAT SHAPE`.

matmul: the device's rate in a large plain product. flops_sft, flops_dpo: model FLOPs of a step, and parameters. memory:
the most bytes that were in use in a DPO step.
"""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from alternate import serve
from workers.model import llama, rows
from workers.ours_step import stepper

from rlax_ft.data.branches import shared
from rlax_ft.training.performance import batch_tokens, forward_flops, peak_memory


def matmul(shape):
    """FLOP/s of a product of square matrices in the shape's dtype."""
    size = 16 * shape['width'] if jax.default_backend() == 'cpu' else 8192
    x = jnp.ones((size, size), shape['dtype'])
    product = jax.jit(lambda x: x @ x)

    def work():
        product(x).block_until_ready()
        started = time.perf_counter()
        for _ in range(10):
            out = product(x)
        out.block_until_ready()
        return {'flops_per_second': 10 * 2 * size**3 / (time.perf_counter() - started)}

    return work


def flops(stage, shape):
    """Model FLOPs of a step: forward and backward, and for DPO the reference's forward pass."""
    config, params = llama(shape)
    candidates = rows(shape, 1 if stage == 'sft' else 2)
    batch = jax.tree.map(lambda x: x[:, 0], candidates) if stage == 'sft' else shared(candidates) or candidates
    tokens, length = batch_tokens(batch)
    value = (3 if stage == 'sft' else 4) * forward_flops(config, tokens, length)
    return lambda: {'flops': value, 'parameters': sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))}


def memory(shape):
    """Peak memory of a DPO step with cached reference log-probabilities."""
    step = stepper('dpo_cached', shape)

    def work():
        step()
        return {'bytes': peak_memory()}

    return work


if __name__ == '__main__':
    what, given = sys.argv[1], json.loads(sys.argv[2])
    makers = {'matmul': matmul, 'memory': memory}
    serve(flops(what.removeprefix('flops_'), given) if what.startswith('flops') else makers[what](given))
