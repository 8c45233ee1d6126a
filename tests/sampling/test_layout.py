"""The layout for decoding: scanned or apart, on a device or on a mesh, whole or in pieces, samples are the same."""

import dataclasses
import gc
import weakref
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.harness import step
from rlax_ft.harness.settings import Settings
from rlax_ft.models import cache, transformer
from rlax_ft.models.config import embedded_config
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.parallel.mesh import make_mesh
from rlax_ft.parallel.placement import shard_state
from rlax_ft.sampling import layout
from rlax_ft.sampling.sampler import generate, read_prompts
from rlax_ft.sampling.text import make_sampler

CODEC = SimpleNamespace(max_new_tokens=6, eos_ids=(2,), pad_id=0)


def model(layers, **changes):
    config = embedded_config('tiny', vocab_size=16, max_length=64)
    config = dataclasses.replace(config, layers=layers, **changes)
    params = jax.tree.map(lambda x: 3 * x, init_params(config, jax.random.key(0)))
    return Transformer(config).apply, params


def prompts(rows=8, width=5):
    rng = np.random.default_rng(0)
    mask = np.arange(width) >= width - rng.integers(1, width + 1, rows)[:, None]
    return jnp.asarray(rng.integers(3, 16, mask.shape)), jnp.asarray(mask)


def same(a, b):
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_allclose(a.logps, b.logps, atol=1e-4)


@pytest.fixture(scope='module')
def three():
    apply, params = model(3)
    return apply, params, make_sampler(apply, CODEC)(params, *prompts(), jax.random.key(1))


def test_layers_scanned_give_the_samples_of_layers_apart(three, monkeypatch):
    apply, params, expected = three
    assert np.unique(np.asarray(expected.tokens)).size > 4
    monkeypatch.setattr(layout, 'SHALLOW_ON_CPU', 2)
    monkeypatch.setattr(cache, '_BLOCK', 4)  # The cache is read in blocks.
    assert 'layers' in layout.laid_out(apply, params)
    same(make_sampler(apply, CODEC)(params, *prompts(), jax.random.key(1)), expected)
    same(make_sampler(apply, CODEC, rows=4)(params, *prompts(), jax.random.key(1)), expected)


@pytest.mark.parametrize(
    ('spec', 'share'), [pytest.param('fsdp=8', 0.0, marks=pytest.mark.slow), ('data=2,fsdp=2,tensor=2', 0.25)]
)
def test_a_mesh_gives_the_samples_of_one_device(three, monkeypatch, spec, share):
    apply, params, expected = three
    monkeypatch.setattr(layout, 'SHALLOW_ON_CPU', 2)
    monkeypatch.setattr(layout, 'SHARE', share)
    mesh = make_mesh(spec)
    placed = shard_state(params, mesh)
    with jax.set_mesh(mesh):
        same(make_sampler(apply, CODEC)(placed, *prompts(), jax.random.key(1)), expected)
        laid = layout.laid_out(apply, placed)
    kernel = laid['layers']['mlp']['up']['kernel']
    ways = 96 * 32 // np.prod(kernel.sharding.shard_shape(kernel.shape)[1:])
    assert ways == (8 if spec == 'fsdp=8' else 2)  # Where there is room only `tensor` splits it.


@pytest.mark.parametrize('how', ['apart', 'scanned in blocks', 'windowed and capped', 'on a mesh', 'too few groups'])
def test_a_prompt_that_is_read_once_for_its_group_gives_the_same_samples(monkeypatch, how):
    changes = dict(window=3, local_layers=(True, False), attention_soft_cap=2.0) if how.startswith('window') else {}
    apply, params = model(2, **changes)
    size = 4 if how == 'too few groups' else 2
    rows = [jnp.repeat(x[::size], size, axis=0) for x in prompts()]
    expected = make_sampler(apply, CODEC)(params, *rows, jax.random.key(1))
    assert len(np.unique(expected.tokens[:size], axis=0)) > 1
    if how == 'scanned in blocks':
        monkeypatch.setattr(layout, 'SHALLOW_ON_CPU', 1)
        monkeypatch.setattr(cache, '_BLOCK', 4)
    shared = make_sampler(apply, CODEC, group_size=size)
    if how not in ('on a mesh', 'too few groups'):
        same(shared(params, *rows, jax.random.key(1)), expected)
        return
    mesh = make_mesh('data=2,fsdp=2,tensor=2')
    with jax.set_mesh(mesh):
        same(shared(shard_state(params, mesh), *rows, jax.random.key(1)), expected)


def test_a_shared_prompt_takes_the_memory_of_one():
    apply, params = model(2)

    def most(group_size):
        tokens, mask = jnp.ones((16, 512), jnp.int32), jnp.ones((16, 512), bool)
        how = dict(max_new_tokens=2, group_size=group_size)
        compiled = jax.jit(lambda *rows: generate(apply, {'params': params}, *rows, jax.random.key(0), **how)).lower(
            tokens, mask
        )
        return compiled.compile().memory_analysis().temp_size_in_bytes

    assert most(8) < most(1) / 4


def test_what_is_compiled_does_not_grow_with_depth(monkeypatch):
    monkeypatch.setattr(layout, 'SHALLOW_ON_CPU', 8)
    lines = []
    for layers in (9, 18):
        config = dataclasses.replace(embedded_config('tiny', vocab_size=16, max_length=64), layers=layers)
        apply, params = Transformer(config).apply, jax.eval_shape(lambda c=config: init_params(c, jax.random.key(0)))

        def sample(params, key, apply=apply):
            return generate(apply, {'params': params}, *prompts(), key, max_new_tokens=6).tokens

        laid = layout.decoding_layout(params, jnp.dtype('float32'))
        assert laid['layers']['mlp']['up']['kernel'] is params['layers']['mlp']['up']['kernel']  # No copy.
        lines.append(jax.jit(sample).lower(laid, jax.random.key(0)).as_text().count('\n'))
    assert lines[0] == lines[1]


def test_on_a_tpu_projections_are_kept_from_the_reshape_to_heads(three, monkeypatch):
    # Its compiler would merge the two, and copy all layers' matrices for it: seen in docs/preflight.md's decoding.
    apply, params, _ = three

    def read(params):
        cache = apply({'params': params}, 8, 7, method='init_cache')
        return apply({'params': params}, prompts()[0], cache=cache)[0]

    expected, plain = read(params), jax.jit(read).lower(params).as_text()
    monkeypatch.setattr(transformer, 'platform', lambda: 'tpu')
    lowered = jax.jit(lambda params: read(params)).lower(params).as_text()
    assert 'optimization_barrier' in lowered and 'optimization_barrier' not in plain
    training = jax.jit(lambda params: apply({'params': params}, prompts()[0])[0]).lower(params).as_text()
    assert 'optimization_barrier' not in training
    np.testing.assert_array_equal(read(params), expected)


def test_matrices_are_narrowed_and_norms_are_not(monkeypatch):
    monkeypatch.setattr(layout, 'SHALLOW_ON_CPU', 8)
    apply, params = model(9, dtype='bfloat16')
    laid = layout.laid_out(apply, params)
    assert laid['layers']['attention']['query']['kernel'].dtype == laid['embed']['embedding'].dtype == jnp.bfloat16
    assert laid['layers']['mlp_norm']['scale'].dtype == laid['final_norm']['scale'].dtype == jnp.float32
    hidden = jax.jit(lambda p: apply({'params': p}, prompts()[0])[0])
    np.testing.assert_array_equal(hidden(laid), hidden(params))


def test_a_layout_lives_as_long_as_its_parameters(monkeypatch):
    monkeypatch.setattr(layout, 'SHALLOW_ON_CPU', 8)
    apply, params = model(9, dtype='bfloat16')
    laid = layout.laid_out(apply, params)
    assert layout.laid_out(apply, params)['embed'] is laid['embed']
    count = len(layout._kept._entries)
    del params
    gc.collect()
    assert len(layout._kept._entries) == count - 1


def test_an_update_finds_the_memory_of_its_own_layout_free_and_a_base_keeps_its_layout(monkeypatch):
    monkeypatch.setattr(layout, 'SHALLOW_ON_CPU', 8)
    monkeypatch.setattr(step, 'compile_step', lambda *_, **__: lambda state, batch, *frozen: (alive(), frozen))
    apply, policy = model(9, dtype='bfloat16')
    base = model(9)[1]
    for trained, frozen, kept in ((policy, None, ['base']), (base, policy, ['policy'])):
        made = {name: layout.laid_out(apply, part) for name, part in (('policy', policy), ('base', base))}
        references = {name: weakref.ref(laid['embed']['embedding']) for name, laid in made.items()}
        del made
        alive = lambda: [name for name, reference in references.items() if reference() is not None]  # noqa: B023, E731
        assert alive() == ['policy', 'base']
        _, update = step.compile_training(Settings(max_steps=1), lambda *_: None, frozen)
        found, given = update(SimpleNamespace(params={'policy': trained}), None)
        assert found == kept and given == (() if frozen is None else (policy,))


@pytest.mark.parametrize('chunk', [3, 5])
def test_prompts_read_in_pieces_are_read_as_a_whole(three, chunk):
    apply, params, _ = three
    tokens, mask = prompts()
    places = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0), mask.astype(jnp.int32)

    def read(chunk):
        cache = apply({'params': params}, 8, 7, method='init_cache')
        return read_prompts(apply, {'params': params}, tokens, *places, cache, chunk=chunk)

    (hidden, cache), (expected, whole) = read(chunk), read(8)
    np.testing.assert_allclose(hidden, expected, atol=2e-5)
    real = np.asarray(whole.segment_ids)[None, :, None, :, None] > 0
    np.testing.assert_allclose(np.where(real, cache.value, 0), np.where(real, whole.value, 0), atol=2e-5)
    assert int(cache.index) == 5
