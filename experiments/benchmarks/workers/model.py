"""What our workers share: a random Llama of the shape that they are given, and token rows for it.

Leaves out what is timed.
"""

import jax
import numpy as np

from rlax_ft.models.config import ModelConfig
from rlax_ft.models.transformer import init_params
from rlax_ft.types import TokenBatch


def llama(shape: dict) -> tuple[ModelConfig, dict]:
    """(config, float32 parameters) of that shape."""
    config = ModelConfig(
        vocab_size=shape['vocab'],
        width=shape['width'],
        layers=shape['layers'],
        heads=shape['heads'],
        kv_heads=shape['kv_heads'],
        head_dim=shape['width'] // shape['heads'],
        mlp_width=shape['mlp'],
        max_length=4096,
        dtype=shape['dtype'],
        remat=shape['remat'],
    )
    return config, jax.jit(lambda key: init_params(config, key))(jax.random.key(0))


def rows(shape: dict, candidates: int, *, seed: int = 0) -> TokenBatch:
    """TokenBatch [rows, candidates, prompt + response] of random tokens; candidates of a row share its prompt."""
    rng = np.random.default_rng(seed)
    count, prompt, length = shape['rows'], shape['prompt'], shape['prompt'] + shape['response']
    tokens = rng.integers(3, shape['vocab'], (count, candidates, length)).astype(np.int32)
    tokens[:, :, :prompt] = tokens[:, :1, :prompt]
    mask = np.zeros(tokens.shape, np.float32)
    mask[:, :, prompt:] = 1.0
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return TokenBatch(tokens, mask, positions, np.ones_like(tokens))
