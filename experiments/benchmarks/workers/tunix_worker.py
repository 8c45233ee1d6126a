"""Tunix on a random Llama, as a worker of train_step.py and generate.py.

    tunix_worker.py sft|dpo SHAPE                     its optimiser step; the reference is scored in the step
    tunix_worker.py generate BATCH PROMPT NEW SHAPE   its sampler, every row to its full length

What is timed of a step is what `PeftTrainer.train` does with one batch. Sampling is at temperature 1 from the whole
distribution; its input is text, so tokenising is in the time, a small part. Runs where tunix is installed
(`pip install google-tunix`).
"""

import json
import sys
from itertools import count

import jax
import numpy as np
import optax
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.rl.common import build_positions_from_mask, make_causal_attn_mask
from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig
from tunix.sft.dpo.dpo_trainer import TrainingInput as Pairs
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig
from tunix.sft.peft_trainer import TrainingInput as Rows

from rlax_ft.harness.race import Turns, serve
from rlax_ft.harness.words import texts, word_tokenizer

_STEPS = 1000


def llama(shape: dict) -> Llama3:
    """A random Llama of that shape."""
    config = ModelConfig(
        num_layers=shape['layers'],
        vocab_size=shape['vocab'],
        embed_dim=shape['width'],
        hidden_dim=shape['mlp'],
        num_heads=shape['heads'],
        head_dim=shape['width'] // shape['heads'],
        num_kv_heads=shape['kv_heads'],
        norm_eps=1e-5,
        rope_theta=10_000,
        weight_tying=True,
    )
    return Llama3(config, rngs=nnx.Rngs(0))


def trainer(stage: str, shape: dict):
    """(Tunix's trainer of that stage, the batch that it gets at each step)."""
    rng = np.random.default_rng(0)
    rows, model = shape['rows'], llama(shape)
    draw = lambda length: rng.integers(3, shape['vocab'], (rows, length)).astype(np.int32)  # noqa: E731
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5))
    if stage == 'dpo':
        prompt, *answers = draw(shape['prompt']), draw(shape['response']), draw(shape['response'])
        arrays = [x for tokens in (prompt, *answers) for x in (tokens, np.ones_like(tokens))]
        config = DPOTrainingConfig(eval_every_n_steps=_STEPS + 1, max_steps=_STEPS)
        return DPOTrainer(model, llama(shape), optimizer, config), Pairs(*arrays)
    tokens = draw(shape['prompt'] + shape['response'])
    learner = PeftTrainer(model, optimizer, TrainingConfig(eval_every_n_steps=_STEPS + 1, max_steps=_STEPS))

    def inputs(batch):
        real = batch.input_mask > 0
        return {
            'input_tokens': batch.input_tokens,
            'input_mask': batch.input_mask,
            'positions': build_positions_from_mask(real),
            'attention_mask': make_causal_attn_mask(real),
        }

    return learner.with_gen_model_input_fn(inputs), Rows(tokens, np.ones_like(tokens))


def in_turn(batch, model):
    """The batch, as often as it is this worker's turn; asking for the next ends the step before it."""
    turns = Turns()
    while turns.wait():
        yield batch
        jax.block_until_ready(nnx.state(model))
        turns.done()


def train(stage: str, shape: dict) -> None:
    """Serves steps until nobody asks."""
    learner, batch = trainer(stage, shape)
    learner.train(in_turn(batch, learner.model))


def generate(batch: int, prompt: int, new: int, shape: dict) -> None:
    """Serves whole batches."""
    # Tunix pads prompts to a power of two, with a token in front.
    cache = CacheConfig(2 * prompt + new + 1, shape['layers'], shape['kv_heads'], shape['width'] // shape['heads'])
    sampler = Sampler(llama(shape), word_tokenizer(shape['vocab']), cache)
    words, seeds = texts(shape, batch, prompt, 0), count()

    def work():
        # No token is the end: every row goes to its full length.
        out = sampler(
            words, new, max_prompt_length=prompt, temperature=1.0, top_p=1.0, eos_tokens=[-1], seed=next(seeds)
        )
        return {'tokens': len(out.tokens[0])}

    serve(work)


if __name__ == '__main__':
    what, *sizes, given = sys.argv[1:]
    if what == 'generate':
        generate(*map(int, sizes), json.loads(given))
    else:
        train(what, json.loads(given))
