"""A decoder-only transformer of every family: norms, positions, attention and MLP as its config says, scanned layers.

The module returns hidden states; the LM head is a method of its own, so that nobody pays for logits that no loss
reads. Leaves out heads other than the LM head (heads.py) and everything about text.
"""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.sharding import PartitionSpec as P

from rlax_ft.models.attention import attend
from rlax_ft.models.cache import Reading, empty_cache
from rlax_ft.models.config import ModelConfig
from rlax_ft.models.experts import ACTIVATIONS, MixtureOfExperts
from rlax_ft.models.linear import Linear
from rlax_ft.models.rotary import apply_rotary, rotary_kinds, rotary_tables
from rlax_ft.parallel.constrain import constrain, gathered, unconstrained
from rlax_ft.parallel.mesh import platform

_REMAT_POLICIES = {'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable, 'full': None}


def _recomputed(function):
    """`function`, whose backward pass makes what lies within again: for elementwise work, cheaper than keeping it."""
    return jax.checkpoint(function, prevent_cse=False)


class Norm(nn.Module):
    """RMSNorm, x / sqrt(mean(x^2) + eps) * scale (arXiv 1910.07467), or LayerNorm (arXiv 1607.06450), in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        """[..., D] -> [..., D]."""
        c = self.config
        init = nn.initializers.zeros if c.norm == 'rms_plus_one' else nn.initializers.ones
        scale = self.param('scale', init, (x.shape[-1],)).astype(jnp.float32)
        bias = None
        if c.norm == 'layer':
            bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],)).astype(jnp.float32)

        def norm(x, scale, bias):
            x32 = x.astype(jnp.float32)
            if c.norm == 'layer':
                x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
            normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + c.norm_eps)
            normed = normed * (1.0 + scale if c.norm == 'rms_plus_one' else scale)
            return (normed if bias is None else normed + bias).astype(x.dtype)

        return _recomputed(norm)(x, scale, bias)


@struct.dataclass
class LayerKinds:
    """What differs from layer to layer and is no parameter; None where nothing does.

    Attributes:
      window: int32[L], places that a query sees.
      rotary: int32[L], which of the tables of rotary angles.
      number: int32[L], the layer's place in a stacked cache.
    """

    window: jax.Array | None = None
    rotary: jax.Array | None = None
    number: jax.Array | None = None


def layer_kinds(config: ModelConfig) -> LayerKinds:
    """The kinds of a model's layers; they are scanned with the parameters, so that layers of all kinds share a body."""
    kinds = LayerKinds()
    if any(config.local_layers) and not all(config.local_layers):
        everything = jnp.iinfo(jnp.int32).max
        kinds = dataclasses.replace(
            kinds, window=jnp.where(jnp.asarray(config.local_layers), config.window, everything)
        )
    if rotary_kinds(config).any():
        kinds = dataclasses.replace(kinds, rotary=jnp.asarray(rotary_kinds(config)))
    return kinds


def _projections(module, x, widths, fused, use_bias):
    """Linear maps of one input, by name as in `widths`; one product where `for_decoding` has joined them."""
    c = module.config

    def linear(width, name):
        return Linear(width, c.dtype, use_bias, lora=c.lora, matmul=c.matmul, name=name)(x)

    if module.has_variable('params', fused):
        ends = list(itertools.accumulate(widths.values()))
        return dict(zip(widths, jnp.split(linear(ends[-1], fused), ends[:-1], axis=-1)))
    return {name: linear(width, name) for name, width in widths.items()}


def for_decoding(params):
    """The same transformer laid out for reading its parameters again and again: layers apart, wide matrices joined.

    Query, key and value become one matrix, gate and up another, and each layer has arrays of its own. The copy that is
    made is not for training, and a LoRA adapter does not fit it.
    """
    layers = dict(params['layers'])
    for module, parts, fused in (('attention', ('query', 'key', 'value'), 'qkv'), ('mlp', ('gate', 'up'), 'gate_up')):
        inner = dict(layers[module])
        # Experts multiply by ragged groups, each kernel alone.
        if 'router' not in inner and all('kernel' in inner.get(part, {}) for part in parts):
            joined = [inner.pop(part) for part in parts]
            inner[fused] = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-1), *joined)
            layers[module] = inner
    return layers_apart({**params, 'layers': layers})


def layers_apart(params):
    """Parameters, or an adapter of them, with `layers_0` and so on in place of the stacked `layers`.

    A loop over stacked layers copies each layer's slice on a CPU before it multiplies; what is compiled for layers
    apart grows with depth (sampling/layout.py chooses).
    """
    rest, layers = {name: part for name, part in params.items() if name != 'layers'}, params['layers']
    depth = jax.tree.leaves(layers)[0].shape[0]
    return rest | {f'layers_{i}': jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(depth)}


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, rotary, kinds, reading, cache):
        """[B, T, D] -> ([B, T, D], the cache with these keys and values, or None without a cache)."""
        c = self.config
        widths = {'query': c.heads * c.head_dim, 'key': c.kv_heads * c.head_dim, 'value': c.kv_heads * c.head_dim}
        projected = _projections(self, x, widths, 'qkv', c.qkv_bias)
        if cache is not None and platform() == 'tpu':
            # Else its compiler splits these matrices by head, of which it makes a copy of all layers at every call.
            projected = jax.lax.optimization_barrier(projected)

        def heads(count, name):
            y = projected[name]
            if name != 'value' and c.qk_norm == 'full':
                y = Norm(c, name=f'{name}_norm')(y)
            y = constrain(y.reshape(*x.shape[:2], count, c.head_dim), 'heads')
            return Norm(c, name=f'{name}_norm')(y) if name != 'value' and c.qk_norm == 'head' else y

        query, key, value = heads(c.heads, 'query'), heads(c.kv_heads, 'key'), heads(c.kv_heads, 'value')
        if rotary is not None:
            kind = 0 if kinds.rotary is None else kinds.rotary
            cos, sin = (table[kind] for table in rotary)
            query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)
        window = c.window if kinds.window is None else kinds.window
        out, cache = attend(
            query,
            key,
            value,
            reading,
            cache,
            layer=kinds.number,
            scale=c.attention_scale,
            soft_cap=c.attention_soft_cap,
            window=window,
            local_window=c.window,
            kernel=c.kernel,
        )
        out = constrain(out, 'heads')
        # What writes to the residual stream starts smaller, so that the variance does not grow with depth.
        linear = Linear(c.width, c.dtype, c.out_bias, 0.5 / c.layers, c.lora, c.matmul, name='out')
        out = linear(out.reshape(*x.shape[:2], -1))
        return out, cache


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)) (arXiv 2002.05202), or down(act(up(x)))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        """[B, T, D] -> [B, T, D]."""
        c = self.config
        activation = ACTIVATIONS[c.activation]
        names = ('gate', 'up') if c.gated else ('up',)
        projected = _projections(self, x, dict.fromkeys(names, c.mlp_width), 'gate_up', c.mlp_bias)
        hidden = _recomputed(lambda up, gate=None: activation(up) if gate is None else activation(gate) * up)(
            **projected
        )
        linear = Linear(c.width, c.dtype, c.mlp_bias, 0.5 / c.layers, c.lora, c.matmul, name='down')
        return linear(constrain(hidden, 'mlp'))


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)); or norms after, or both at once."""

    config: ModelConfig

    @nn.compact
    def __call__(self, carry, kinds, rotary, reading):
        """A scan's body: carries the residual stream and the cache, maps over the layers' kinds."""
        c = self.config
        x, cache = carry

        def before(x, name):
            return Norm(c, name=f'{name}_norm')(x) if c.pre_norm else x

        def after(x, name):
            return Norm(c, name=f'{name}_post_norm')(x) if c.post_norm else x

        attended, cache = Attention(c, name='attention')(before(x, 'attention'), rotary, kinds, reading, cache)
        attended = after(constrain(attended, 'residual'), 'attention')
        residual = x + attended
        mlp = (MixtureOfExperts if c.experts else MLP)(c, name='mlp')
        out = after(mlp(before(x if c.parallel else residual, 'mlp')), 'mlp')
        return (constrain(residual + out, 'residual'), cache), None


class Transformer(nn.Module):
    """Tokens to hidden states.

    `apply({'params': p}, tokens, positions=None, segment_ids=None, cache=None) -> (hidden[B, T, D], cache)`.
    """

    config: ModelConfig

    def setup(self):
        """Parameters: `embed`, `layers` (stacked on a leading axis), `final_norm`, `head` where it is not tied, and
        `position_embed` where positions are learned.
        """
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.width, dtype=c.dtype, embedding_init=nn.initializers.normal(0.02))
        if c.learned_positions:
            init = nn.initializers.normal(0.02)
            self.position_embed = nn.Embed(c.max_length, c.width, dtype=c.dtype, embedding_init=init)
        block = Block
        if c.remat != 'none':
            block = nn.remat(Block, prevent_cse=False, policy=_REMAT_POLICIES[c.remat])
        apart = self.has_variable('params', 'layers_0')
        self.layers = (
            [Block(c) for _ in range(c.layers)]
            if apart
            else nn.scan(
                block,
                variable_axes={'params': 0, 'lora': 0},
                split_rngs={'params': True, 'dropout': True},
                in_axes=(0, nn.broadcast, nn.broadcast),
                length=c.layers,
            )(c)
        )
        self.final_norm = Norm(c)
        if not c.tied:
            self.head = self.param('head', nn.initializers.normal(0.02), (c.width, c.vocab_size))

    def __call__(self, tokens, positions=None, segment_ids=None, cache=None, branches=None):
        """Reads `tokens`, after what the cache holds if one is given.

        Args:
          tokens: int32[B, T].
          positions: int32[B, T]; 0..T-1 when absent (continued from the cache's index when there is one).
          segment_ids: int32[B, T], 0 for padding; all one segment when absent.
          cache: KVCache with room for T more tokens, or None.
          branches: (P, K): the first P columns are a prompt, left-padded, and the rest K responses of equal width, each
            of which sees the prompt and itself; None for plain rows.

        Returns:
          hidden [B, T, D], after the final norm, and the cache with these tokens (None without one).
        """
        chex.assert_rank(tokens, 2, custom_message='tokens')
        chex.assert_type(tokens, int)
        if positions is None:
            start = 0 if cache is None else cache.index
            positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        prompt, count = branches or (None, 1)
        reading = Reading(segment_ids, positions, prompt=prompt, branches=count)
        if cache is not None:
            reading = cache.reading(segment_ids, positions)
        rotary = rotary_tables(positions, self.config) if self.config.rotary_dim else None
        kinds, hidden = layer_kinds(self.config), self._embed(tokens, positions)
        if self._apart:
            slots = [None] * self.config.layers if cache is None else list(zip(*cache.arrays()))
            for i, layer in enumerate(self.layers):
                of_layer = jax.tree.map(lambda kind, i=i: kind[i], kinds)
                (hidden, slots[i]), _ = layer((hidden, slots[i]), of_layer, rotary, reading)
            written = None if cache is None else tuple(zip(*slots))
        else:
            slots = None if cache is None else cache.arrays()
            if cache is not None:
                kinds = kinds.replace(number=jnp.arange(self.config.layers))
            # The cache of all layers is carried, and written in place: as an output it would be made anew.
            (hidden, written), _ = self.layers((hidden, slots), kinds, rotary, reading)
        if cache is not None:
            cache = cache.filled(written, reading)
        return self.final_norm(hidden), cache

    @property
    def _apart(self):
        return isinstance(self.layers, list | tuple)

    def unembed_matrix(self):
        """The LM head, [D, V], in the dtype of activations; on a mesh whole along D, split over the vocabulary."""
        if self.config.tied:
            return self._table().T
        return gathered(self.head.astype(self.config.dtype), P('fsdp', 'tensor'))

    def unembed_soft_cap(self):
        """What logits are soft-capped at, a float; None where they are not."""
        return self.config.final_soft_cap

    def unembed(self, hidden):
        """Logits, float32[..., V], of hidden states [..., D]."""
        logits = jnp.matmul(hidden, self.unembed_matrix().astype(hidden.dtype), preferred_element_type=jnp.float32)
        logits = constrain(logits, 'logits')
        cap = self.unembed_soft_cap()
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def _embed(self, tokens, positions):
        x = constrain(jnp.take(self._table(), tokens, axis=0), 'residual')
        if self.config.scaled_embedding:
            x = x * jnp.asarray(self.config.width**0.5, x.dtype)
        return x + self.position_embed(positions) if self.config.learned_positions else x

    def _table(self):
        """The embedding [V, D]; lookup and head read it whole along D, split over the vocabulary."""
        return gathered(self.embed.embedding.astype(self.config.dtype), P('tensor', 'fsdp'))

    def init_cache(self, batch_size, length):
        """An empty cache with `length` slots for `batch_size` rows."""
        c = self.config
        return empty_cache(c.layers, batch_size, c.kv_heads, length, c.head_dim, c.dtype, stacked=not self._apart)


def init_params(config: ModelConfig, key: jax.Array):
    """Fresh parameters of `Transformer(config)`, a nested dict of float32 arrays."""
    # Compiled as a whole, the forward pass of `init` falls away, and no operation is compiled by itself.
    init = jax.jit(lambda key: Transformer(config).init(key, jnp.zeros((1, 2), jnp.int32))['params'])
    with unconstrained():
        return init(key)
