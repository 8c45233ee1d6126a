"""Shapes of published models by name, for compiling and counting without their weights.

Numbers are those of each model's config.json on the hub.
"""

import dataclasses
from typing import Any

from rlax_ft.errors import InputError
from rlax_ft.models.config import ModelConfig

_LLAMA3 = dict(vocab_size=128_256, kv_heads=8, rope_theta=500_000.0, max_length=131_072, tied=False)
_QWEN3 = dict(
    vocab_size=151_936, head_dim=128, rope_theta=1_000_000.0, norm_eps=1e-6, max_length=40_960, qk_norm='head'
)

SHAPES: dict[str, dict[str, Any]] = {
    'llama3-8b': dict(_LLAMA3, width=4096, layers=32, heads=32, head_dim=128, mlp_width=14_336),
    'llama3-70b': dict(_LLAMA3, width=8192, layers=80, heads=64, head_dim=128, mlp_width=28_672),
    'llama3.2-1b': {
        **_LLAMA3,
        'width': 2048,
        'layers': 16,
        'heads': 32,
        'head_dim': 64,
        'mlp_width': 8192,
        'tied': True,
    },
    'llama3.2-3b': {
        **_LLAMA3,
        'width': 3072,
        'layers': 28,
        'heads': 24,
        'head_dim': 128,
        'mlp_width': 8192,
        'tied': True,
    },
    'qwen3-0.6b': dict(_QWEN3, width=1024, layers=28, heads=16, kv_heads=8, mlp_width=3072, family='qwen3'),
    'qwen3-8b': dict(_QWEN3, width=4096, layers=36, heads=32, kv_heads=8, mlp_width=12_288, family='qwen3', tied=False),
    'qwen3-30b-a3b': dict(
        _QWEN3,
        width=2048,
        layers=48,
        heads=32,
        kv_heads=4,
        mlp_width=768,
        family='qwen3_moe',
        tied=False,
        experts=128,
        experts_per_token=8,
    ),
    'mixtral-8x7b': dict(
        vocab_size=32_000,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        mlp_width=14_336,
        max_length=32_768,
        rope_theta=1_000_000.0,
        tied=False,
        family='mixtral',
        experts=8,
        experts_per_token=2,
    ),
}


def named_config(name: str, **changes) -> ModelConfig:
    """The configuration of a named shape.

    Args:
      name: one of SHAPES.
      **changes: fields of ModelConfig that differ.

    Raises:
      InputError: there is no such shape.
    """
    if name not in SHAPES:
        raise InputError(f'--model={name}: no config.json and no named shape; known are {", ".join(SHAPES)}')
    return dataclasses.replace(ModelConfig(**SHAPES[name]), **changes)
