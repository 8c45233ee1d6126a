"""Facts that rates are held against, as a worker of accelerator.py: `ours_facts.py WHAT SHAPE`.

matmul: the device's rate in a large plain product. flops_sft, flops_dpo: model FLOPs of a step, and parameters.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.data.rows import shared
from rlax_ft.harness.benchmark import random_llama, random_rows
from rlax_ft.harness.command_line import prepare_process
from rlax_ft.harness.race import serve
from rlax_ft.training.performance import batch_tokens, forward_flops


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
    config, params = random_llama(shape)
    candidates = random_rows(shape, 1 if stage == 'sft' else 2)
    batch = jax.tree.map(lambda x: x[:, 0], candidates) if stage == 'sft' else shared(candidates) or candidates
    tokens, length = batch_tokens(batch)
    value = (3 if stage == 'sft' else 4) * forward_flops(config, tokens, length)
    return lambda: {'flops': value, 'parameters': sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))}


if __name__ == '__main__':
    prepare_process()  # As run_script does.
    what, given = sys.argv[1], json.loads(sys.argv[2])
    serve(matmul(given) if what == 'matmul' else flops(what.removeprefix('flops_'), given))
