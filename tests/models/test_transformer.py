"""The transformer against a plain numpy one, and the laws that padding, packing and the cache must keep."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.models.config import embedded_config
from rlax_ft.models.transformer import Transformer, init_params

CONFIG = embedded_config('tiny', vocab_size=23, max_length=32)


@pytest.fixture(scope='module')
def params():
    return init_params(CONFIG, jax.random.key(0))


def tokens_of(batch, length, seed=1):
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, CONFIG.vocab_size)


def hidden_of(params, *args, config=CONFIG, **kwargs):
    return Transformer(config).apply({'params': params}, *args, **kwargs)[0]


def numpy_forward(c, p, tokens):
    """One row in float64, loops over heads: the Llama equations with nothing shared with the module."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
    norm = lambda x, s: x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps) * s  # noqa: E731
    x = p['embed']['embedding'][tokens]
    steps = len(tokens)
    for layer in range(c.layers):
        w = jax.tree.map(lambda leaf, layer=layer: leaf[layer], p['layers'])
        h = norm(x, w['attention_norm']['scale'])
        q, k, v = (h @ w['attention'][name]['kernel'] for name in ('query', 'key', 'value'))
        heads = []
        for head in range(c.heads):
            group = head // (c.heads // c.kv_heads)
            qs, ks = q[:, head * c.head_dim :][:, : c.head_dim], k[:, group * c.head_dim :][:, : c.head_dim]
            vs = v[:, group * c.head_dim :][:, : c.head_dim]
            out = np.zeros((steps, c.head_dim))
            for t in range(steps):
                scores = np.array([rotate(c, qs[t], t) @ rotate(c, ks[s], s) for s in range(t + 1)])
                scores = np.exp(scores / np.sqrt(c.head_dim) - (scores / np.sqrt(c.head_dim)).max())
                out[t] = scores / scores.sum() @ vs[: t + 1]
            heads.append(out)
        x = x + np.concatenate(heads, -1) @ w['attention']['out']['kernel']
        h = norm(x, w['mlp_norm']['scale'])
        gate = h @ w['mlp']['gate']['kernel']
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w['mlp']['up']['kernel'])) @ w['mlp']['down']['kernel']
    return norm(x, p['final_norm']['scale']) @ p['embed']['embedding'].T


def rotate(c, x, position):
    half = c.head_dim // 2
    out = np.zeros_like(x)
    for i in range(half):
        angle = position * c.rope_theta ** (-2 * i / c.head_dim)
        out[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
        out[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
    return out


def test_logits_equal_a_plain_numpy_transformer(params):
    tokens = tokens_of(1, 9)
    hidden = hidden_of(params, tokens)
    logits = Transformer(CONFIG).apply({'params': params}, hidden, method='unembed')
    np.testing.assert_allclose(logits[0], numpy_forward(CONFIG, params, np.asarray(tokens[0])), atol=2e-5)


def test_no_token_sees_a_later_one(params):
    tokens = tokens_of(1, 8)
    changed = tokens.at[0, 5].set((tokens[0, 5] + 1) % CONFIG.vocab_size)
    before, after = hidden_of(params, tokens), hidden_of(params, changed)
    np.testing.assert_array_equal(before[0, :5], after[0, :5])
    assert np.abs(before[0, 5:] - after[0, 5:]).max() > 1e-4


@pytest.mark.parametrize('side', ['left', 'right'])
def test_padding_changes_nothing(params, side):
    tokens = tokens_of(1, 6)
    pad = ((0, 0), (3, 0) if side == 'left' else (0, 3))
    real = jnp.pad(jnp.ones_like(tokens), pad)
    positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
    padded = hidden_of(params, jnp.pad(tokens, pad, constant_values=7), positions, real)
    at = slice(3, None) if side == 'left' else slice(0, 6)
    np.testing.assert_allclose(padded[:, at], hidden_of(params, tokens), atol=2e-6)


def test_packed_rows_do_not_see_each_other(params):
    first, second = tokens_of(1, 5, 1), tokens_of(1, 4, 2)
    packed = jnp.concatenate([first, second], axis=1)
    segments = jnp.asarray([[1] * 5 + [2] * 4])
    positions = jnp.asarray([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
    hidden = hidden_of(params, packed, positions, segments)
    np.testing.assert_allclose(hidden[:, :5], hidden_of(params, first), atol=2e-6)
    np.testing.assert_allclose(hidden[:, 5:], hidden_of(params, second), atol=2e-6)


def test_the_cache_gives_what_the_whole_sequence_gives(params):
    model, tokens = Transformer(CONFIG), tokens_of(2, 7)
    cache = model.apply({'params': params}, 2, 12, method='init_cache')
    head, cache = model.apply({'params': params}, tokens[:, :4], cache=cache)
    rest = []
    for t in range(4, 7):
        hidden, cache = model.apply({'params': params}, tokens[:, t : t + 1], cache=cache)
        rest.append(hidden)
    np.testing.assert_allclose(jnp.concatenate([head, *rest], axis=1), hidden_of(params, tokens), atol=2e-6)
    assert int(cache.index) == 7


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_remat_changes_neither_names_nor_gradients(params, remat):
    tokens = tokens_of(2, 6)

    def gradient(config):
        return jax.grad(lambda p: jnp.sum(jnp.square(hidden_of(p, tokens, config=config))))(params)

    plain, again = gradient(CONFIG), gradient(dataclasses.replace(CONFIG, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, again)


def test_bfloat16_activations_keep_float32_parameters_and_logits(params):
    config = dataclasses.replace(CONFIG, dtype='bfloat16')
    hidden = hidden_of(params, tokens_of(1, 6), config=config)
    logits = Transformer(config).apply({'params': params}, hidden, method='unembed')
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    full = Transformer(CONFIG).apply({'params': params}, hidden_of(params, tokens_of(1, 6)), method='unembed')
    np.testing.assert_allclose(logits, full, atol=0.05)
