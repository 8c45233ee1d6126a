"""Products in 8-bit floating point: how far off they are, and that no row hangs on another."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.errors import InputError
from rlax_ft.harness.learner import check_matmul
from rlax_ft.hf.folder import load_pretrained, save_pretrained
from rlax_ft.models.config import embedded_config
from rlax_ft.models.fp8 import product
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.objectives.supervised import sft_objective
from rlax_ft.training.optimizer import make_optimizer
from rlax_ft.training.step import init_state, make_train_step
from rlax_ft.types import TokenBatch

CONFIG = embedded_config('small', vocab_size=32, max_length=32)
NARROW = dataclasses.replace(CONFIG, matmul='fp8')


def batch_of():
    tokens = jax.random.randint(jax.random.key(2), (8, 32), 0, 32)
    batch = TokenBatch(tokens, jnp.ones((8, 32)), jnp.tile(jnp.arange(32), (8, 1)), jnp.ones((8, 32), jnp.int32))
    return batch, batch.mask.sum()


def off(found, right):
    """Size of the difference, of the whole."""
    return float(jnp.linalg.norm(found - right) / jnp.linalg.norm(right))


def test_a_product_and_its_gradients_are_within_some_hundredths():
    keys = jax.random.split(jax.random.key(0), 3)
    # Rows and columns of very different sizes, each with a scale of its own.
    x = jax.random.normal(keys[0], (64, 256)) * 10.0 ** jnp.linspace(-6, 6, 64)[:, None]
    w, g = jax.random.normal(keys[1], (256, 96)) / 16, jax.random.normal(keys[2], (64, 96))
    y, back = jax.vjp(product, x, w)
    right, exact = jax.vjp(jnp.matmul, x, w)
    rows = jnp.linalg.norm(y - right, axis=1) / jnp.linalg.norm(right, axis=1)
    assert rows.max() < 0.05 and 0.005 < rows.mean() < 0.04
    for found, wanted, most in zip(back(g), exact(g), (0.1, 0.1)):
        assert 0.01 < off(found, wanted) < most


def test_a_row_of_zeros_gives_zeros():
    y, back = jax.vjp(product, jnp.zeros((2, 8)), jnp.ones((8, 3)))
    assert (y == 0).all() and all(jnp.isfinite(leaf).all() for leaf in back(jnp.ones((2, 3))))


def test_a_row_does_not_hang_on_the_rows_beside_it():
    x, w = jax.random.normal(jax.random.key(0), (8, 64)), jax.random.normal(jax.random.key(1), (64, 32))
    beside = jnp.concatenate([x, 1e6 * x])
    np.testing.assert_array_equal(jax.jit(product)(beside, w)[:8], jax.jit(product)(x, w))


def loss_and_gradient(config):
    params = init_params(CONFIG, jax.random.key(0))
    objective = sft_objective(Transformer(config).apply)
    (loss, _), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(params, batch_of(), jax.random.key(1))
    return loss, gradient


def test_loss_and_gradient_of_a_model():
    (loss, gradient), (right, exact) = loss_and_gradient(NARROW), loss_and_gradient(CONFIG)
    assert 0 < abs(loss / right - 1) < 2e-3
    # Tokens are drawn at random: most of their gradients cancel, and the roundings do not.
    whole = [jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (gradient, exact)]
    assert 0.02 < off(*whole) < 0.25
    cosine = whole[0] @ whole[1] / jnp.linalg.norm(whole[0]) / jnp.linalg.norm(whole[1])
    assert cosine > 0.97


def test_training_goes_where_float32_goes():
    optimizer, ended = make_optimizer(3e-3, max_steps=100), []
    for config in (CONFIG, NARROW):
        step = make_train_step(sft_objective(Transformer(config).apply), optimizer)

        def one(state, key, step=step):
            batch = batch_of()[0].replace(tokens=jnp.cumsum(jax.random.randint(key, (8, 32), 0, 3), axis=1) % 32)
            return step(state, (batch, batch.mask.sum()))

        state = init_state(init_params(CONFIG, jax.random.key(0)), optimizer, jax.random.key(1))
        train = jax.jit(lambda state, one=one: jax.lax.scan(one, state, jax.random.split(jax.random.key(2), 100))[1])
        losses = train(state)['loss']
        ended.append(losses[-10:].mean())
        assert ended[-1] < losses[0] / 2
    assert abs(ended[1] / ended[0] - 1) < 0.01


@pytest.mark.parametrize(
    ('kind', 'platform', 'capability', 'refused'),
    [
        ('TPU v5 lite', 'tpu', None, True),
        ('TPU v6 lite', 'tpu', None, True),
        ('TPU7x', 'tpu', None, False),
        ('NVIDIA A100-SXM4-80GB', 'gpu', '8.0', True),
        ('NVIDIA H100 80GB HBM3', 'gpu', '9.0', False),
        ('cpu', 'cpu', None, False),
    ],
)
def test_chips_without_it_refuse_it(kind, platform, capability, refused):
    device = types.SimpleNamespace(device_kind=kind, platform=platform)
    if capability:
        device.compute_capability = capability
    settings = types.SimpleNamespace(matmul_dtype='fp8')
    if refused:
        with pytest.raises(InputError, match=f'--matmul_dtype=fp8: a {kind} does not'):
            check_matmul(settings, device)
    else:
        check_matmul(settings, device)
    check_matmul(types.SimpleNamespace(matmul_dtype=''), device)


def test_how_a_model_was_computed_is_no_part_of_its_folder(tmp_path):
    config = dataclasses.replace(NARROW, kernel='blockwise', remat='full')
    save_pretrained(tmp_path, config, init_params(CONFIG, jax.random.key(0)), None)
    again = load_pretrained(tmp_path)[0]
    assert (again.kernel, again.matmul, again.remat) == ('auto', '', 'none')
