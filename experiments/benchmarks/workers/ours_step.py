"""Our optimiser step, as a worker of train_step.py: `ours_step.py STAGE SHAPE`.

STAGE is sft, dpo, dpo_cached, kto, reward, ensemble (of 5) or ppo: the steps that the scripts compile, on a batch that
stays the same; or grid: DPO of 6 betas, a policy each, under one vmap; or score and score_plain: the log-probabilities,
with gradients, of groups of completions, with their prompts shared and as rows. On a CPU each core is a device for the
steps, as docs/speed.md shows.
"""

import json
import math
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.data.rows import share_prompts, shared
from rlax_ft.harness import cpu_flags  # noqa: F401  Before jax: what a CPU needs.
from rlax_ft.harness.benchmark import random_llama, random_rows
from rlax_ft.harness.command_line import prepare_process
from rlax_ft.harness.learner import Learner
from rlax_ft.harness.race import serve
from rlax_ft.harness.reward_data import votes
from rlax_ft.losses.preference import dpo_loss
from rlax_ft.losses.unpaired import kto_loss
from rlax_ft.models.heads import ScalarModel, value_params
from rlax_ft.models.scoring import candidate_logps, candidate_rows
from rlax_ft.models.transformer import Transformer
from rlax_ft.objectives.ppo import PPOBatch, ppo_objective
from rlax_ft.objectives.preference import preference_objective
from rlax_ft.objectives.reward import ensemble_objective, reward_objective
from rlax_ft.objectives.supervised import sft_objective
from rlax_ft.objectives.unpaired import count_judged, kl_baseline, unpaired_objective
from rlax_ft.parallel.compile import compile_step
from rlax_ft.parallel.mesh import make_mesh
from rlax_ft.training.optimizer import make_optimizer
from rlax_ft.training.performance import peak_memory
from rlax_ft.training.step import init_state, make_train_step
from rlax_ft.types import JudgedBatch, PreferenceBatch


def sft(shape, apply, params):
    """All tokens but the first are learned, as TRL does with plain text."""
    batch = jax.tree.map(lambda x: x[:, 0], random_rows(shape, 1))
    batch.mask[:, 1:] = 1.0
    return sft_objective(apply), params, lambda _: (batch, np.float32(batch.mask.sum()))


def dpo(shape, apply, params, *, cached):
    """Pairs of one prompt; the reference is scored in every step, or has been."""
    candidates = random_rows(shape, 2)
    pairs = share_prompts(PreferenceBatch(candidates, np.ones(shape['rows'], np.float32)))
    ref_params = jax.tree.map(jnp.copy, params)
    score = jax.jit(lambda p, batch: candidate_logps(apply, {'params': p}, batch.candidates))
    known = score(ref_params, pairs)

    def batch(_):
        return pairs.replace(ref_logps=known if cached else score(ref_params, pairs)), np.float32(shape['rows'])

    return preference_objective(apply, partial(dpo_loss, beta=0.1), beta=0.1), params, batch


def kto(shape, apply, params):
    """Single answers, half of them good; the reference and the baseline are scored in every step."""
    label = (np.arange(shape['rows']) % 2).astype(np.float32)
    answers = JudgedBatch(shared(random_rows(shape, 1), always=True), label)
    counts, ref_params = count_judged(answers), jax.tree.map(jnp.copy, params)
    score = jax.jit(lambda p, batch: candidate_logps(apply, {'params': p}, batch.candidates))
    baseline = jax.jit(partial(kl_baseline, apply))

    def batch(params):
        kl = baseline(params, ref_params, answers.candidates)
        return answers.replace(ref_logps=score(ref_params, answers)), counts, kl

    return unpaired_objective(apply, partial(kto_loss, beta=0.1), beta=0.1), params, batch


def reward(shape, config, params, *, members):
    """Pairs of one prompt for a reward model, or for an ensemble of heads on one backbone."""
    pairs = share_prompts(PreferenceBatch(random_rows(shape, 2), np.ones(shape['rows'], np.float32)))
    learner, total = Learner(config, params), np.float32(shape['rows'])
    objective = reward_objective(learner.scalar_apply)
    if not members:
        return objective, learner.start_reward(), lambda _: (pairs, total)
    drawn = votes(shape['rows'], members, bootstrap=True, seed=0)
    return ensemble_objective(objective), learner.start_ensemble(members), lambda _: ((pairs, drawn), total)


def ppo(shape, apply, params, value_apply):
    """One minibatch of an update."""
    tokens = jax.tree.map(jnp.asarray, shared(random_rows(shape, 1)) or candidate_rows(random_rows(shape, 1)))
    noise = jax.random.normal(jax.random.key(1), tokens.mask.shape) * tokens.mask
    batch = PPOBatch(
        tokens=tokens, logps=0.1 * noise - math.log(shape['vocab']), values=noise, advantages=noise, returns=noise
    )
    both = {'policy': params, 'value': value_params(params)}
    return ppo_objective(apply, value_apply), both, lambda _: (batch, jnp.sum(tokens.mask))


def stepper(stage, shape):
    """A function that takes one step and waits for it."""
    config, params = random_llama(shape)
    apply = Transformer(config).apply
    if stage == 'sft':
        objective, params, batch = sft(shape, apply, params)
    elif stage == 'kto':
        objective, params, batch = kto(shape, apply, params)
    elif stage in ('reward', 'ensemble'):
        objective, params, batch = reward(shape, config, params, members=5 if stage == 'ensemble' else 0)
    elif stage == 'ppo':
        objective, params, batch = ppo(shape, apply, params, ScalarModel(config).apply)
    else:
        objective, params, batch = dpo(shape, apply, params, cached=stage == 'dpo_cached')
    optimizer = make_optimizer(1e-5, max_steps=1000)
    step = compile_step(make_train_step(objective, optimizer))
    state = {'now': init_state(params, optimizer, jax.random.key(0))}

    def work():
        state['now'], metrics = step(state['now'], batch(state['now'].params))
        return {'loss': float(metrics['loss']), 'bytes': peak_memory()}

    return work


def grid(shape):
    """A function that takes one step of DPO of 6 betas, a policy each, in one program, and waits."""
    config, params = random_llama(shape)
    apply = Transformer(config).apply
    _, _, batch = dpo(shape, apply, params, cached=True)
    optimizer, betas = make_optimizer(1e-5, max_steps=1000), jnp.geomspace(0.05, 1.6, 6)

    def one(state, beta, pairs):
        objective = preference_objective(apply, partial(dpo_loss, beta=beta), beta=beta)
        return make_train_step(objective, optimizer)(state, pairs)

    step = jax.jit(jax.vmap(one, in_axes=(0, 0, None)), donate_argnums=0)
    start = jax.vmap(lambda _: init_state(params, optimizer, jax.random.key(0)))(betas)
    state = {'now': start}

    def work():
        state['now'], metrics = step(state['now'], betas, batch(None))
        return {'loss': float(metrics['loss'][0]), 'bytes': peak_memory()}

    return work


def scorer(stage, shape):
    """A function that scores groups of completions, with the gradient of their sum, and waits."""
    config, params = random_llama(shape)
    apply = Transformer(config).apply
    candidates = random_rows(shape, shape['group'])
    batch = jax.tree.map(jnp.asarray, shared(candidates) if stage == 'score' else candidates)
    step = jax.jit(jax.value_and_grad(lambda p: jnp.mean(candidate_logps(apply, {'params': p}, batch))))
    return lambda: {'loss': float(jax.block_until_ready(step(params))[0])}


if __name__ == '__main__':
    prepare_process()  # As run_script does.
    name, sizes = sys.argv[1], json.loads(sys.argv[2])
    if name == 'grid' or name.startswith('score'):
        serve(grid(sizes) if name == 'grid' else scorer(name, sizes))
    else:
        with jax.set_mesh(make_mesh()):
            serve(stepper(name, sizes))
