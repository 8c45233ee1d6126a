"""Our GRPO step, as a worker of grpo_step.py: `ours_grpo.py SIZES SHAPE`, both JSON.

A turn is what grpo.py does with one batch: sampling, texts, a rule's rewards, advantages, the optimiser step; in
micro-batches of `rows` completions. On a CPU each core is a device, as docs/speed.md shows.
"""

import json
import sys
import time
from functools import partial

import jax
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.rows import prompt_arrays
from rlax_ft.harness import cpu_flags  # noqa: F401  Before jax: what a CPU needs.
from rlax_ft.harness.benchmark import random_llama
from rlax_ft.harness.command_line import prepare_process
from rlax_ft.harness.race import serve
from rlax_ft.harness.words import texts, word_tokenizer
from rlax_ft.models.scoring import rollout_branches
from rlax_ft.models.transformer import Transformer
from rlax_ft.objectives.policy import Credit, estimate, policy_objective
from rlax_ft.objectives.ppo import minibatch
from rlax_ft.parallel.compile import compile_step
from rlax_ft.parallel.mesh import make_mesh
from rlax_ft.sampling.text import make_sampler
from rlax_ft.training.optimizer import make_optimizer
from rlax_ft.training.step import init_state, make_train_step


def stepper(sizes, shape):
    """A function that takes one whole step, and tells the seconds of its sampling."""
    config, params = random_llama(shape)
    apply, group = Transformer(config).apply, sizes['group']
    codec = Codec(word_tokenizer(shape['vocab']), sizes['prompt'], sizes['new'], ends=False)
    tokens, mask = prompt_arrays(codec, texts(shape, sizes['prompts'], sizes['prompt'], 0))
    tokens, mask = (np.repeat(x, group, axis=0) for x in (tokens, mask))
    sample = make_sampler(apply, codec, group_size=group)
    how = dict(count=1, mode='seq_mean_token_mean', max_len=sizes['new'])
    estimator = jax.jit(partial(estimate, apply, credit=Credit(group)))
    pick = jax.jit(partial(minibatch, **how))
    optimizer = make_optimizer(1e-6, max_steps=1000)
    objective = policy_objective(apply, mode=how['mode'])
    step = compile_step(make_train_step(objective, optimizer, micro_batches=len(tokens) // sizes['rows']))
    state, turn = {'now': init_state(params, optimizer, jax.random.key(0))}, iter(range(10**9))

    def work():
        started, key = time.perf_counter(), jax.random.key(next(turn))
        rollout = jax.block_until_ready(sample(state['now'].params, tokens, mask, key))
        sampling = time.perf_counter() - started
        scores = np.asarray([text.count('1') for text in codec.decode(rollout)[0]], np.float32)
        batch = rollout_branches(rollout, group)
        data, _ = estimator(state['now'].params, None, batch, rollout.logps, scores, {}, np.zeros_like(scores))
        state['now'], metrics = step(state['now'], pick(data, key, 0, 0))
        loss = float(metrics['loss'])
        update = time.perf_counter() - started - sampling
        drawn = int(np.asarray(rollout.mask).sum())
        return {'tokens': drawn, 'loss': loss, 'seconds_sampling': sampling, 'seconds_update': update}

    return work


if __name__ == '__main__':
    prepare_process()  # As run_script does.
    with jax.set_mesh(make_mesh()):
        serve(stepper(json.loads(sys.argv[1]), json.loads(sys.argv[2])))
