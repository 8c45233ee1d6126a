"""A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, gated MLP, scanned layers.

The module returns hidden states; the LM head is a method of its own, so that nobody pays for logits that no loss
reads. Leaves out heads other than the LM head (heads.py) and everything about text.
"""

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from rlax_ft.models.attention import KVCache, Reading, attend
from rlax_ft.models.config import ModelConfig

_REMAT_POLICIES = {'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable, 'full': None}


def rotary_tables(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary angles, position * theta^(-2i / head_dim) (arXiv 2104.09864).

    Args:
      positions: int32[B, T].
      head_dim: even width of a head.
      theta: base of the frequencies.

    Returns:
      Two float32[B, T, head_dim / 2].
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the pairs (x_i, x_{i + H/2}) of every head by their angles.

    Args:
      x: [B, T, heads, H].
      cos: float32[B, T, H / 2].
      sin: float32[B, T, H / 2].

    Returns:
      An array like `x`.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale, in float32 (arXiv 1910.07467)."""

    eps: float

    @nn.compact
    def __call__(self, x):
        """[..., D] -> [..., D]."""
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (normed * scale).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, rotary, reading, layer_cache):
        """[B, T, D] -> ([B, T, D], this layer's keys and values, or None without a cache)."""
        c = self.config
        batch, length, _ = x.shape

        def dense(features, name, scale=1.0):
            init = nn.initializers.variance_scaling(scale, 'fan_in', 'normal')
            return nn.Dense(features, use_bias=False, dtype=c.dtype, kernel_init=init, name=name)

        query = dense(c.heads * c.head_dim, 'query')(x).reshape(batch, length, c.heads, c.head_dim)
        key = dense(c.kv_heads * c.head_dim, 'key')(x).reshape(batch, length, c.kv_heads, c.head_dim)
        value = dense(c.kv_heads * c.head_dim, 'value')(x).reshape(batch, length, c.kv_heads, c.head_dim)
        query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
        out, layer_cache = attend(query, key, value, reading, layer_cache)
        # What writes to the residual stream starts smaller, so that the variance does not grow with depth.
        out = dense(c.width, 'out', 0.5 / c.layers)(out.reshape(batch, length, c.heads * c.head_dim))
        return out, layer_cache


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        """[B, T, D] -> [B, T, D]."""
        c = self.config

        def dense(features, name, scale=1.0):
            init = nn.initializers.variance_scaling(scale, 'fan_in', 'normal')
            return nn.Dense(features, use_bias=False, dtype=c.dtype, kernel_init=init, name=name)

        return dense(c.width, 'down', 0.5 / c.layers)(
            nn.silu(dense(c.mlp_width, 'gate')(x)) * dense(c.mlp_width, 'up')(x)
        )


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, layer_cache, rotary, reading):
        """A scan's body: carries the residual stream, maps over the layers' caches."""
        c = self.config
        attended, layer_cache = Attention(c, name='attention')(
            RMSNorm(c.norm_eps, name='attention_norm')(x), rotary, reading, layer_cache
        )
        x = x + attended
        x = x + GatedMLP(c, name='mlp')(RMSNorm(c.norm_eps, name='mlp_norm')(x))
        return x, layer_cache


class Transformer(nn.Module):
    """Tokens to hidden states.

    `apply({'params': p}, tokens, positions=None, segment_ids=None, cache=None) -> (hidden[B, T, D], cache)`.
    """

    config: ModelConfig

    def setup(self):
        """Parameters: `embed`, `layers` (stacked on a leading axis), `final_norm`, and `head` where it is not tied."""
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.width, dtype=c.dtype, embedding_init=nn.initializers.normal(0.02))
        block = Block
        if c.remat != 'none':
            block = nn.remat(Block, prevent_cse=False, policy=_REMAT_POLICIES[c.remat])
        self.layers = nn.scan(
            block,
            variable_axes={'params': 0},
            split_rngs={'params': True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=c.layers,
        )(c)
        self.final_norm = RMSNorm(c.norm_eps)
        if not c.tied:
            self.head = self.param('head', nn.initializers.normal(0.02), (c.width, c.vocab_size))

    def __call__(self, tokens, positions=None, segment_ids=None, cache=None):
        """Reads `tokens`, after what the cache holds if one is given.

        Args:
          tokens: int32[B, T].
          positions: int32[B, T]; 0..T-1 when absent (continued from the cache's index when there is one).
          segment_ids: int32[B, T], 0 for padding; all one segment when absent.
          cache: KVCache with room for T more tokens, or None.

        Returns:
          hidden [B, T, D], after the final norm, and the cache with these tokens (None without one).
        """
        chex.assert_rank(tokens, 2, custom_message='tokens')
        chex.assert_type(tokens, int)
        start = 0 if cache is None else cache.index
        if positions is None:
            positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        key_segments = segment_ids
        if cache is not None:
            key_segments = jax.lax.dynamic_update_slice_in_dim(cache.segment_ids, segment_ids, start, axis=1)
        reading = Reading(segment_ids, key_segments, start)
        rotary = rotary_tables(positions, self.config.head_dim, self.config.rope_theta)
        layer_caches = None if cache is None else (cache.key, cache.value)
        hidden, layer_caches = self.layers(self.embed(tokens), layer_caches, rotary, reading)
        if cache is not None:
            cache = KVCache(*layer_caches, segment_ids=key_segments, index=start + tokens.shape[1])
        return self.final_norm(hidden), cache

    def unembed_matrix(self):
        """The LM head, [D, V]."""
        return self.embed.embedding.T if self.config.tied else self.head

    def unembed(self, hidden):
        """Logits, float32[..., V], of hidden states [..., D]."""
        return jnp.matmul(hidden, self.unembed_matrix().astype(hidden.dtype), preferred_element_type=jnp.float32)

    def init_cache(self, batch_size, length):
        """An empty cache with `length` slots for `batch_size` rows."""
        c = self.config
        shape = (c.layers, batch_size, length, c.kv_heads, c.head_dim)
        zeros = jnp.zeros(shape, c.dtype)
        return KVCache(zeros, zeros, jnp.zeros((batch_size, length), jnp.int32), jnp.zeros((), jnp.int32))


def init_params(config: ModelConfig, key: jax.Array):
    """Fresh parameters of `Transformer(config)`, a nested dict of float32 arrays."""
    return Transformer(config).init(key, jnp.zeros((1, 2), jnp.int32))['params']
