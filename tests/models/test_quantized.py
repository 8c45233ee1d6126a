"""A base in 8 or 4 bits: its numbers against numpy's, and adapters on it against the same base written out in full."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_ft.errors import InputError
from rlax_ft.harness.settings import Settings
from rlax_ft.models.config import LoRAConfig, embedded_config
from rlax_ft.models.lora import Adapted, Adapter, adapted, adapter_objective, init_adapter, merge
from rlax_ft.models.quantized import KINDS, NF4, dequantize, dequantized, quantize, quantize_base
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.parallel.compile import compile_step
from rlax_ft.parallel.mesh import make_mesh, tree_shardings
from rlax_ft.parallel.placement import shard_state
from rlax_ft.sampling.layout import decoding_layout
from rlax_ft.training.step import init_state, make_train_step

CONFIG = dataclasses.replace(
    embedded_config('tiny', vocab_size=24, max_length=32),
    layers=2,
    width=128,
    heads=4,
    kv_heads=2,
    head_dim=24,
    mlp_width=192,
    lora=LoRAConfig(rank=3, alpha=6.0),
)
FAMILIES = {
    'dense': {},
    'experts': dict(experts=4, experts_per_token=2),
    'biases': dict(qkv_bias=True, out_bias=True, mlp_bias=True, norm='layer', gated=False, parallel=True),
}
TOKENS = jax.random.randint(jax.random.key(1), (8, 7), 0, 24)


def models(kind, **changes):
    """(config, the base as codes, the same numbers in full, an adapter that does something)."""
    config = dataclasses.replace(CONFIG, **changes)
    coded = quantize_base(init_params(config, jax.random.key(0)), kind)
    adapter = init_adapter(coded, config.lora, jax.random.key(2))
    adapter = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), adapter)
    return config, coded, dequantized(coded, 'float32'), adapter


def objective(config):
    apply = adapted(Transformer(config).apply)
    return adapter_objective(lambda params, batch, key: (jnp.mean(apply({'params': params}, batch)[0] ** 3), {}))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('width', [128, 24])
def test_numbers_are_those_that_numpy_finds_block_by_block(kind, width):
    kernel = np.random.default_rng(0).normal(size=(2, width, 5)).astype(np.float32)
    kernel[0, :, 3] = 0
    size, expected = min(width & -width, 64), np.empty_like(kernel)
    for layer, start, out in np.ndindex(2, width // size, 5):
        at = layer, slice(start * size, (start + 1) * size), out
        block, most = kernel[at], np.abs(kernel[at]).max()
        levels = NF4 * most if kind == 'nf4' else np.arange(-127, 128) * most / np.float32(127)
        expected[at] = levels[np.abs(block[:, None] - levels).argmin(axis=1)]
    coded = quantize(jnp.asarray(kernel), kind)
    assert coded['codes'].nbytes * (2 if kind == 'nf4' else 1) == kernel.size
    np.testing.assert_allclose(dequantize(**coded, dtype='float32'), expected, atol=1e-6)
    assert 0 < np.abs(expected - kernel).max() < (0.6 if kind == 'nf4' else 0.02)


@pytest.mark.parametrize(('kind', 'family'), [('int8', 'dense'), *(('nf4', family) for family in FAMILIES)])
def test_an_adapter_sees_and_learns_what_it_would_on_the_base_in_full(kind, family):
    config, coded, full, adapter = models(kind, **FAMILIES[family])
    kernels = [leaf for leaf in jax.tree.leaves(coded['layers']) if leaf.ndim > 2 and leaf.dtype == jnp.float32]
    assert sum(leaf.size for leaf in kernels) < 0.1 * sum(leaf.size for leaf in jax.tree.leaves(full['layers']))
    assert set(adapter['layers']['attention']) == {'query', 'key', 'value', 'out'}
    step = jax.jit(jax.value_and_grad(objective(config), has_aux=True))
    (loss, _), grads = step(Adapter(adapter), TOKENS, None, coded)
    (expected, _), wanted = step(Adapter(adapter), TOKENS, None, full)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max()), grads, wanted)
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(grads)) > 0
    whole = Adapted(coded, adapter)
    forward = jax.jit(lambda params: adapted(Transformer(config).apply)({'params': params}, TOKENS)[0])
    hidden, merged = forward(whole), merge(coded, adapter, config.lora)
    plain = jax.jit(lambda params: Transformer(config).apply({'params': params}, TOKENS)[0])
    np.testing.assert_allclose(plain(merged), hidden, atol=1e-4)
    np.testing.assert_allclose(forward(decoding_layout(whole, jnp.dtype('float32'))), hidden, atol=1e-5)


@pytest.mark.parametrize('family', ['dense', 'experts'])
def test_no_stack_of_layers_is_ever_in_full(family):
    config, coded, full, adapter = models('nf4', **FAMILIES[family])

    def stacks(base):
        text = jax.jit(jax.grad(objective(config), has_aux=True)).lower(Adapter(adapter), TOKENS, None, base)
        wide = (128, 192), (192, 128), (128, 96), (96, 128)
        found = re.findall(r'f32\[2,(?:4,)?(\d+),(\d+)\]', text.compile().as_text())
        return [dims for dims in found if tuple(map(int, dims)) in wide]

    assert stacks(full) and not stacks(coded)


def test_a_mesh_splits_codes_and_trains_as_one_device():
    config, coded, _, adapter = models('nf4')
    mesh = make_mesh('fsdp=2,tensor=2,data=2')
    shardings = tree_shardings(coded, mesh)['layers']['mlp']['down']
    assert shardings['codes'].shard_shape((2, 96, 128)) == (2, 48, 64)
    after = []
    for over in (mesh, make_mesh(devices=jax.devices()[:1])):
        optimizer = optax.sgd(0.1)
        state = init_state(Adapter(jax.tree.map(jnp.copy, adapter)), optimizer, jax.random.key(3))
        step = compile_step(make_train_step(objective(config), optimizer), mesh=over)
        after.append(jax.device_get(step(state, TOKENS, shard_state(coded, over))[0].params.lora))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), *after)


def test_mistakes():
    with pytest.raises(InputError, match=r'--base_dtype=nf4: has no effect without --lora_rank'):
        Settings(base_dtype='nf4', max_steps=1)
    with pytest.raises(InputError, match=r'--base_dtype=int4: must be one of int8, nf4'):
        Settings(base_dtype='int4', lora_rank=2, max_steps=1)
    narrow = jax.eval_shape(lambda: init_params(dataclasses.replace(CONFIG, width=36), jax.random.key(0)))
    with pytest.raises(InputError, match=r'--base_dtype=int8: layers/attention/\w+/kernel has 36 inputs'):
        quantize_base(narrow, 'int8')
