"""What the families add to the transformer, without torch: kinds of layers, experts, caps, cache, rotary scalings."""

import ast
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.hf import families
from rlax_ft.models.config import embedded_config
from rlax_ft.models.rotary import scaled_frequencies
from rlax_ft.models.scoring import token_logps
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.parallel.mesh import make_mesh
from rlax_ft.parallel.placement import from_local_rows, shard_state
from rlax_ft.types import TokenBatch

PLAIN = embedded_config('tiny', vocab_size=23, max_length=32)
GEMMA = dataclasses.replace(
    PLAIN,
    layers=4,
    norm='rms_plus_one',
    post_norm=True,
    qk_norm='head',
    window=3,
    local_layers=(True, False, True, True),
    local_rope_theta=100.0,
    attention_soft_cap=5.0,
    final_soft_cap=0.5,
    scaled_embedding=True,
)
CONFIGS = {
    'gemma': GEMMA,
    'windows everywhere': dataclasses.replace(PLAIN, window=3, local_layers=(True, True)),
    'nope': dataclasses.replace(PLAIN, nope_layers=(False, True)),
    'learned positions': dataclasses.replace(PLAIN, norm='layer', gated=False, learned_positions=True, qkv_bias=True),
    'parallel': dataclasses.replace(PLAIN, norm='layer', parallel=True, rotary_fraction=0.5),
    'experts': dataclasses.replace(PLAIN, experts=4, experts_per_token=2),
}
TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 0, 23)


@pytest.mark.parametrize('name', CONFIGS)
def test_the_cache_gives_what_the_whole_sequence_gives(name):
    config = CONFIGS[name]
    model, params = Transformer(config), init_params(config, jax.random.key(0))
    read = jax.jit(lambda tokens, cache: model.apply({'params': params}, tokens, cache=cache))
    head, cache = read(TOKENS[:, :4], model.apply({'params': params}, 2, 12, method='init_cache'))
    rest = []
    for t in range(4, 9):
        hidden, cache = read(TOKENS[:, t : t + 1], cache)
        rest.append(hidden)
    whole = jax.jit(model.apply)({'params': params}, TOKENS)[0]
    np.testing.assert_allclose(jnp.concatenate([head, *rest], axis=1), whole, atol=5e-6)


def reach(config, place=8):
    """How far back changing a token changes the hidden state at `place`."""
    params = init_params(config, jax.random.key(0))
    forward = jax.jit(lambda tokens: Transformer(config).apply({'params': params}, tokens)[0][0, place])
    changed = [forward(TOKENS[:1].at[0, t].set((TOKENS[0, t] + 1) % 23)) for t in range(place + 1)]
    return max(place - t for t in range(place + 1) if np.abs(changed[t] - forward(TOKENS[:1])).max() > 1e-6)


def test_windows_bound_what_is_seen():
    # Two layers of three places each reach 2 + 2 back; one layer that sees all reaches everything.
    assert reach(CONFIGS['windows everywhere']) == 4
    assert reach(dataclasses.replace(PLAIN, window=3, local_layers=(True, False))) == 8


def test_the_program_does_not_grow_with_depth():
    def operations(layers):
        local = (True, False) * (layers // 2)
        config = dataclasses.replace(GEMMA, layers=layers, local_layers=local)
        shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
        forward = lambda params: Transformer(config).apply({'params': params}, TOKENS)[0]  # noqa: E731
        return jax.jit(forward).lower(shapes).as_text().count('\n')

    assert operations(2) == operations(12)


def test_soft_caps_reach_log_probabilities():
    params = init_params(GEMMA, jax.random.key(0))
    apply = Transformer(GEMMA).apply
    ones = jnp.ones(TOKENS.shape)
    batch = TokenBatch(TOKENS, ones, jnp.arange(9)[None].repeat(2, 0), ones.astype(jnp.int32))
    logits = apply({'params': params}, apply({'params': params}, TOKENS)[0], method='unembed')
    assert 0.1 < np.abs(logits).max() <= 0.5
    wanted = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits[:, :-1])), np.asarray(TOKENS)[:, 1:, None], 2)
    np.testing.assert_allclose(token_logps(apply, {'params': params}, batch)[:, 1:], wanted[..., 0], atol=1e-5)


def every_expert(config, params, x):
    """The mixture as a sum over all experts, most of them with weight 0."""
    probabilities = jax.nn.softmax(x @ params['router']['kernel'])
    weights, chosen = jax.lax.top_k(probabilities, config.experts_per_token)
    weights = weights / weights.sum(-1, keepdims=True)
    total = 0.0
    for e in range(config.experts):
        gate, up, down = (params[name]['kernel'][e] for name in ('gate', 'up', 'down'))
        share = jnp.where(chosen == e, weights, 0.0).sum(-1, keepdims=True)
        total += share * ((jax.nn.silu(x @ gate) * (x @ up)) @ down)
    return total


def test_no_expert_drops_a_token_forward_or_backward():
    from rlax_ft.models.experts import MixtureOfExperts

    config = CONFIGS['experts']
    params = jax.tree.map(lambda leaf: leaf[0], init_params(config, jax.random.key(0))['layers']['mlp'])
    # A router that sends nearly everything to one expert: where there is a capacity, it would overflow.
    params['router']['kernel'] = params['router']['kernel'].at[:, 1].mul(20.0)
    x = jax.random.normal(jax.random.key(2), (2, 9, 32))
    mixture = lambda p, x: MixtureOfExperts(config).apply({'params': p}, x)  # noqa: E731
    np.testing.assert_allclose(jax.jit(mixture)(params, x), every_expert(config, params, x), atol=1e-5)
    weight = jax.random.normal(jax.random.key(3), x.shape)
    ours = jax.jit(jax.grad(lambda p, x: jnp.sum(weight * mixture(p, x)), (0, 1)))(params, x)
    wanted = jax.grad(lambda p, x: jnp.sum(weight * every_expert(config, p, x)), (0, 1))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, wanted)


@pytest.mark.parametrize('name', ['gemma', 'experts'])
def test_a_mesh_changes_no_gradient(name):
    config = CONFIGS[name]
    params = init_params(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (8, 6), 0, 23)
    loss = lambda p, x: jnp.mean(jnp.square(Transformer(config).apply({'params': p}, x)[0]))  # noqa: E731
    wanted = jax.jit(jax.grad(loss))(params, tokens)
    mesh = make_mesh('data=2,fsdp=2,tensor=2')
    with jax.set_mesh(mesh):
        ours = jax.jit(jax.grad(loss))(shard_state(params, mesh), from_local_rows(tokens, mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, wanted)


def test_llama3_keeps_high_frequencies_and_stretches_low_ones():
    numbers = dict(
        rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    )
    plain, _ = scaled_frequencies(16, 10_000.0, {})
    scaled, factor = scaled_frequencies(16, 10_000.0, numbers)
    turns = 64 * plain / (2 * np.pi)
    assert factor == 1.0
    np.testing.assert_allclose(scaled[turns > 4], plain[turns > 4], rtol=1e-6)
    np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 8, rtol=1e-6)
    between = (turns > 1) & (turns < 4)
    assert between.any() and ((scaled < plain) & (scaled > plain / 8))[between].all()


def test_a_dense_family_is_an_entry_of_at_most_60_lines():
    (table,) = (
        node.value
        for node in ast.parse(Path(families.__file__).read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == 'FAMILIES'
    )
    lines = {key.value: value.end_lineno - key.lineno + 1 for key, value in zip(table.keys, table.values)}
    assert set(lines) == set(families.FAMILIES) and max(lines.values()) <= 60
