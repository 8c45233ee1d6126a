"""PPO on language in one file on the library alone: sample, score by a rule, estimate, update.

    python experiments/minimal/ppo.py --task=sort --model=small

A new model first learns from the task's demonstrations; then every update samples completions, scores them by the
task's reward less beta times the KL to that model, and takes clipped steps on them (arXiv 1707.06347, 2203.02155):

    r_t = -beta log(pi(y_t) / pi_ref(y_t)) + [t is the last token] reward(x, y)
    A_t = sum_k (gamma lam)^k (r_t+k + gamma V_t+k+1 - V_t+k)
    loss = -min(w_t A_t, clip(w_t, 1 - 0.2, 1 + 0.2) A_t) + 0.1 (V_t - A_t - V_old,t)^2 / 2

Run folder, resuming, reward models, adapters and meshes are in experiments/ppo.py.
"""

import argparse
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlax_ft.data.codec import Codec
from rlax_ft.data.rows import prompt_arrays, token_rows
from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.losses.policy_gradient import ppo_clip_loss
from rlax_ft.losses.value import clipped_value_loss
from rlax_ft.models.config import embedded_config
from rlax_ft.models.heads import ScalarModel, value_params
from rlax_ft.models.scoring import rollout_batch, sequence_logps, token_logps
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.ops.reduce import masked_mean, masked_whiten
from rlax_ft.ops.returns import token_gae, token_rewards
from rlax_ft.sampling.text import make_sampler
from rlax_ft.tasks import get_task


def train(
    task: str = 'sort',
    model: str = 'small',
    sft_steps: int = 200,
    steps: int = 40,
    batch_size: int = 256,
    epochs: int = 4,
    minibatches: int = 4,
    learning_rate: float = 1e-3,
    beta: float = 0.02,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Trains; returns the mean reward and KL of each update's samples."""
    task = get_task(task)
    codec = Codec(word_tokenizer(task.words), task.max_prompt_tokens, task.max_new_tokens, ends=task.ends)
    config = embedded_config(model, vocab_size=len(codec.tokenizer), max_length=codec.max_length)
    apply, value_apply = Transformer(config).apply, ScalarModel(config).apply
    logps_of = lambda params, rows: token_logps(apply, {'params': params}, rows)  # noqa: E731
    key, draw = jax.random.key(seed), np.random.default_rng(seed)

    def updater(loss_fn, rate):
        """(optimizer.init, a compiled step down the gradient of loss_fn(params, *batch))."""
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, eps=1e-5))

        def step(params, opt_state, *batch):
            updates, opt_state = optimizer.update(jax.grad(loss_fn)(params, *batch), opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        return optimizer.init, jax.jit(step)

    # The reference: supervised learning of demonstrations.
    shown = task.demonstrations(2000, seed)
    rows = token_rows(codec, [r['prompt'] for r in shown], [r['completion'] for r in shown])  # [2000, T]
    init, step = updater(lambda params, rows: -jnp.mean(sequence_logps(apply, {'params': params}, rows)), 3e-3)
    opt_state = init(reference := init_params(config, key))
    for _ in range(sft_steps):
        some = draw.integers(len(shown), size=64)
        reference, opt_state = step(reference, opt_state, jax.tree.map(lambda leaf, some=some: leaf[some], rows))

    def values_of(params, rows):
        """V(prompt, y_<t) at each token y_t of the completions, [B, T]; read one position earlier."""
        values = value_apply({'params': params}, rows.tokens, rows.positions, rows.segment_ids)
        return jnp.pad(values[:, :-1], ((0, 0), (1, 0))) * rows.mask

    @jax.jit
    def estimate(params, rows, scores):
        """(batch of the update, KL): token rewards, advantages and the critic's targets, each [B, T]."""
        logps, ref_logps = logps_of(params['policy'], rows), logps_of(reference, rows)
        values, kl = values_of(params['value'], rows), logps - ref_logps
        rewards = token_rewards(scores, rows.mask, kl, kl_coef=beta)
        advantages, returns = token_gae(rewards, values, rows.mask, gamma=1.0, lam=0.95)
        return (rows, logps, values, masked_whiten(advantages, rows.mask), returns), jnp.mean(kl.sum(axis=1))

    def loss_fn(params, rows, old_logps, old_values, advantages, returns):
        policy_loss = ppo_clip_loss(logps_of(params['policy'], rows), old_logps, advantages, rows.mask)
        value_loss = clipped_value_loss(values_of(params['value'], rows), old_values, returns, clip=0.2)
        return masked_mean(policy_loss + 0.1 * value_loss, rows.mask)

    init, step = updater(loss_fn, optax.linear_schedule(learning_rate, 0.0, steps * epochs * minibatches))
    params = {'policy': reference, 'value': value_params(reference)}
    opt_state, sample, history = init(params), make_sampler(apply, codec), []
    for i in range(steps):
        prompts = task.sample_prompts(batch_size, seed + i)
        rollout = sample(params['policy'], *prompt_arrays(codec, prompts), jax.random.fold_in(key, i))
        scores = np.asarray([task.reward(p, c) for p, c in zip(prompts, codec.decode(rollout)[0])], np.float32)
        batch, kl = estimate(params, rollout_batch(rollout), scores)
        for _ in range(epochs):
            for some in np.array_split(draw.permutation(batch_size), minibatches):
                params, opt_state = step(params, opt_state, *jax.tree.map(lambda leaf, some=some: leaf[some], batch))
        history.append({'reward': float(scores.mean()), 'kl': float(kl)})
        print(f'update {i + 1}: reward {history[-1]["reward"]:.3f}, KL {history[-1]["kl"]:.3f} nats')
    return history


if __name__ == '__main__':
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, given in inspect.signature(train).parameters.items():
        parser.add_argument(f'--{name}', type=type(given.default), default=given.default, help=' ')
    try:
        train(**vars(parser.parse_args()))
    except InputError as error:
        parser.exit(2, f'error: {error}\n')
