"""Direct preference optimisation in one file on the library alone, from pairs to the gradient.

    python experiments/minimal/dpo.py                                      # a tiny new model, a few pairs
    python experiments/minimal/dpo.py --model=FOLDER --data=pairs.jsonl --learning_rate=1e-6 --batch_size=16 --steps=200

The policy learns from pairs (y_w, y_l) of answers to a prompt x, without a reward model (arXiv 2305.18290):

    loss = -log sigmoid(beta (log pi(y_w|x) / pi_ref(y_w|x) - log pi(y_l|x) / pi_ref(y_l|x)))

Run folder, resuming, evaluation, meshes and the other losses are in experiments/dpo.py.
"""

import argparse
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlax_ft.data.codec import Codec
from rlax_ft.data.records import read_pairs, record_texts
from rlax_ft.data.rows import preference_rows
from rlax_ft.data.tokenizers import train_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.hf import load_pretrained
from rlax_ft.losses.preference import dpo_loss
from rlax_ft.models.config import embedded_config
from rlax_ft.models.scoring import candidate_logps
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.sampling.text import make_sampler, sample_prompts
from rlax_ft.types import PairLogps

QUESTIONS = ('Is it warm?', 'Is it late?', 'Is it far?', 'Is it new?')
PAIRS = [{'prompt': q, 'chosen': ' Yes, it is.', 'rejected': ' No idea.'} for q in QUESTIONS]


def train(
    model: str = '',
    data: str = '',
    steps: int = 30,
    batch_size: int = 4,
    learning_rate: float = 3e-3,
    beta: float = 0.1,
    max_prompt: int = 256,
    max_new_tokens: int = 256,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Trains and prints samples; returns the metrics of each step."""
    pairs = read_pairs(data) if data else PAIRS

    # The starting model is the policy and, unchanged, the reference.
    if model:
        config, params, tokenizer = load_pretrained(model)
        if tokenizer is None:
            raise InputError(f'--model={model}: holds no tokenizer; give a folder that has one')
    else:
        tokenizer = train_tokenizer('bytes', record_texts(pairs))
        config = embedded_config('tiny', vocab_size=len(tokenizer), max_length=max_prompt + max_new_tokens)
        params = init_params(config, jax.random.key(seed))
    apply, reference = Transformer(config).apply, params
    codec = Codec(tokenizer, max_prompt, max_new_tokens, truncate=True)

    # Both answers of each pair, after their prompt, as token rows [N, 2, T]; y_w stands first.
    rows = preference_rows(codec, pairs).candidates
    lengths = rows.mask.sum(axis=-1)  # [N, 2], tokens of the answers
    score = jax.jit(lambda params, rows: candidate_logps(apply, {'params': params}, rows))

    def loss_fn(params, rows, ref_logps, lengths):
        """(mean loss, metrics) of a batch: rows [B, 2, T], ref_logps and lengths [B, 2]."""
        logps = candidate_logps(apply, {'params': params}, rows)  # [B, 2], log pi(y|x)
        pair = PairLogps(logps[:, 0], logps[:, 1], ref_logps[:, 0], ref_logps[:, 1], lengths[:, 0], lengths[:, 1])
        rewards = beta * (logps - ref_logps)  # [B, 2], what the policy implies
        loss = jnp.mean(dpo_loss(pair, beta=beta))
        margins = rewards[:, 0] - rewards[:, 1]
        return loss, {'loss': loss, 'rewards/margins': margins.mean(), 'rewards/accuracies': (margins > 0).mean()}

    # AdamW, its rate falling to 0, after clipping.
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(learning_rate, 0.0, steps), weight_decay=0.0)
    )

    @jax.jit
    def step(params, opt_state, *batch):
        grads, metrics = jax.grad(loss_fn, has_aux=True)(params, *batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, metrics

    opt_state, draw, history = optimizer.init(params), np.random.default_rng(seed), []
    for i in range(steps):
        chosen = draw.choice(len(pairs), min(batch_size, len(pairs)), replace=False)
        batch = jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], rows)
        params, opt_state, metrics = step(params, opt_state, batch, score(reference, batch), lengths[chosen])
        history.append({name: float(value) for name, value in metrics.items()})
        if i % max(steps // 10, 1) == 0 or i + 1 == steps:
            print(f'step {i + 1}: ' + ', '.join(f'{name} {value:.3f}' for name, value in history[-1].items()))

    prompts = [pair['prompt'] for pair in pairs[:2]]
    sample = make_sampler(apply, codec, temperature=0.0)
    texts, _ = codec.decode(sample_prompts(sample, params, codec, prompts, jax.random.key(seed), batch_size=2))
    for prompt, text in zip(prompts, texts):
        print(f'{prompt!r} -> {text!r}')
    return history


if __name__ == '__main__':
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, given in inspect.signature(train).parameters.items():
        parser.add_argument(f'--{name}', type=type(given.default), default=given.default, help=' ')
    try:
        train(**vars(parser.parse_args()))
    except InputError as error:
        parser.exit(2, f'error: {error}\n')
