"""Rotary positions: frequencies, their scalings for long contexts, and the turning of queries and keys.

Leaves out scalings that depend on the length of the input (dynamic, longrope).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.models.config import ModelConfig

# Which table of angles a layer reads.
GLOBAL, LOCAL, NONE = 0, 1, 2


def rotary_kinds(config: ModelConfig) -> np.ndarray:
    """Which of the tables each layer reads: int32[L] of GLOBAL, LOCAL and NONE."""
    kinds = np.full(config.layers, GLOBAL, np.int32)
    if config.local_rope_theta is not None and config.local_layers:
        kinds[np.asarray(config.local_layers)] = LOCAL
    if config.nope_layers:
        kinds[np.asarray(config.nope_layers)] = NONE
    return kinds


def rotary_tables(positions: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary angles, position * frequency, by kind of layer (arXiv 2104.09864).

    Args:
      positions: int32[B, T].
      config: of the model.

    Returns:
      Two float32[K, B, T, rotary_dim / 2], K = 1 where all layers read the same angles, else 3.
    """
    frequencies, factor = scaled_frequencies(config.rotary_dim, config.rope_theta, dict(config.rope_scaling))
    rows = [frequencies]
    if rotary_kinds(config).any():
        local = scaled_frequencies(config.rotary_dim, config.local_rope_theta or config.rope_theta, {})[0]
        rows += [local, np.zeros_like(frequencies)]
    angles = positions.astype(jnp.float32)[None, :, :, None] * np.stack(rows)[:, None, None, :]
    factors = np.asarray([factor, 1.0, 1.0][: len(rows)], np.float32)[:, None, None, None]
    return jnp.cos(angles) * factors, jnp.sin(angles) * factors


def scaled_frequencies(dim: int, theta: float, scaling: dict) -> tuple[np.ndarray, float]:
    """theta^(-2i / dim), stretched for contexts longer than those of pretraining.

    Args:
      dim: even number of dimensions that are turned.
      theta: base.
      scaling: `rope_type` and its numbers under Hugging Face's names; empty for none. `linear` divides all frequencies
        by the factor (arXiv 2306.15595), `llama3` the low ones only (arXiv 2407.21783), `yarn` those that turn less
        than `beta_slow` times in the original context (arXiv 2309.00071).

    Returns:
      (float32[dim / 2], what cosines and sines are multiplied by).
    """
    base = (1.0 / np.float32(theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))).astype(np.float32)
    kind = scaling.get('rope_type', 'default')
    if kind == 'default':
        return base, 1.0
    stretched = base / np.float32(scaling['factor'])
    if kind == 'linear':
        return stretched, 1.0
    length = scaling['original_max_position_embeddings']
    if kind == 'llama3':
        turns = length * base / np.float32(2 * math.pi)
        low, high = scaling['low_freq_factor'], scaling['high_freq_factor']
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (kept * base + (1.0 - kept) * stretched).astype(np.float32), 1.0
    kept = 1.0 - _yarn_ramp(dim, theta, length, scaling)
    return (kept * base + (1.0 - kept) * stretched).astype(np.float32), _yarn_factor(scaling)


def _yarn_ramp(dim, theta, length, scaling):
    def place(turns):
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = place(scaling.get('beta_fast') or 32), place(scaling.get('beta_slow') or 1)
    if scaling.get('truncate', True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)


def _yarn_factor(scaling):
    def magnitude(weight):
        return 0.1 * weight * math.log(scaling['factor']) + 1.0 if scaling['factor'] > 1 else 1.0

    if scaling.get('attention_factor') is not None:
        return scaling['attention_factor']
    if scaling.get('mscale') and scaling.get('mscale_all_dim'):
        return magnitude(scaling['mscale']) / magnitude(scaling['mscale_all_dim'])
    return magnitude(1.0)


def apply_rotary(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the pairs (x_i, x_{i + R/2}) of every head's first R numbers by their angles.

    Args:
      x: [B, T, heads, H].
      cos: float32[B, T, R / 2].
      sin: float32[B, T, R / 2].

    Returns:
      An array like `x`.
    """
    turned = 2 * cos.shape[-1]
    first, second = jnp.split(x[..., :turned].astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    both = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*(part.astype(x.dtype) for part in both), x[..., turned:]], axis=-1)
