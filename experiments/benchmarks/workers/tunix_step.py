"""Tunix's optimiser step on a random Llama, as a worker of alternate.py: `tunix_step.py STAGE SHAPE`.

STAGE is sft or dpo, with the reference in the step; Tunix does not compute its log-probabilities ahead. What is timed
is what `PeftTrainer.train` does with one batch. Runs where tunix is installed (`pip install google-tunix`).
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.rl.common import build_positions_from_mask, make_causal_attn_mask
from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig
from tunix.sft.dpo.dpo_trainer import TrainingInput as Pairs
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig
from tunix.sft.peft_trainer import TrainingInput as Rows

sys.path.insert(0, str(Path(__file__).parents[1]))
from alternate import Turns

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


def main():
    """Serves steps until nobody asks."""
    learner, batch = trainer(sys.argv[1], json.loads(sys.argv[2]))
    learner.train(in_turn(batch, learner.model))


if __name__ == '__main__':
    main()
