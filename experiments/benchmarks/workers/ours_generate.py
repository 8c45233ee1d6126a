"""Our samplers, as workers of generate.py.

    ours_generate.py plain BATCH PROMPT NEW SHAPE    every row to its full length
    ours_generate.py static|engine ROWS PROMPT NEW SHAPE    eight times ROWS prompts whose completions end at random

The lengths of the second are geometric with mean NEW / 8: a token's draw is its row's uniform number, so an EOS set of
the right share of a uniform vocabulary ends rows with that probability. `static` samples batches one after the other,
each until its longest row has ended; `engine` refills the rows that have ended.
"""

import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.harness.benchmark import random_llama
from rlax_ft.harness.command_line import prepare_process
from rlax_ft.harness.race import serve
from rlax_ft.models.transformer import Transformer, for_decoding
from rlax_ft.sampling.engine import generate_many
from rlax_ft.sampling.sampler import generate

BATCHES = 8


def sampling(kind, batch, prompt, new, shape):
    """A function that samples a whole batch, or a whole set of prompts, and counts the tokens."""
    config, params = random_llama(shape)
    apply, count = Transformer(config).apply, batch * (1 if kind == 'plain' else BATCHES)
    params = jax.tree.map(lambda x: x.astype(shape['dtype']), params)
    rng = np.random.default_rng(0)
    prompts = jnp.asarray(rng.integers(3, shape['vocab'], (count, prompt)), jnp.int32)
    ends = () if kind == 'plain' else tuple(range(round(shape['vocab'] * 8 / new)))
    how = dict(max_new_tokens=new, eos_ids=ends)
    sampler = partial(generate_many, rows=batch) if kind == 'engine' else generate

    @jax.jit
    def sample(params, prompts, key):
        return sampler(apply, {'params': for_decoding(params)}, prompts, jnp.ones_like(prompts, bool), key, **how)

    def work():
        parts = prompts.reshape(BATCHES, batch, prompt) if kind == 'static' else [prompts]
        masks = [sample(params, part, jax.random.key(i)).mask for i, part in enumerate(parts)]
        return {'tokens': int(sum(mask.sum() for mask in masks))}

    return work


if __name__ == '__main__':
    prepare_process()  # As run_script does.
    serve(sampling(sys.argv[1], *(int(x) for x in sys.argv[2:5]), json.loads(sys.argv[5])))
