"""The `sequence` axis: rows that are split over devices train as whole rows do; of activations only keys travel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.losses.preference import dpo_loss
from rlax_ft.models.config import ModelConfig
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.objectives.preference import preference_objective
from rlax_ft.objectives.supervised import sft_objective
from rlax_ft.ops import logprobs
from rlax_ft.parallel.compile import compile_step
from rlax_ft.parallel.hlo import collectives
from rlax_ft.parallel.mesh import make_mesh
from rlax_ft.training.optimizer import make_optimizer
from rlax_ft.training.step import init_state, make_train_step
from rlax_ft.types import BranchBatch, PreferenceBatch, TokenBatch

LENGTH, WIDTH = 64, 48
CONFIG = ModelConfig(
    vocab_size=128,
    width=WIDTH,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=80,
    max_length=LENGTH,
    tied=False,
    window=20,
    local_layers=(True, False),
)


def rows(count, length, seed=0):
    """Packed rows of two segments, padded at the end."""
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.integers(4, length, (count, 2)), axis=1)
    at = np.arange(length)[None]
    segments = (at < ends[:, :1]) * 1 + ((at >= ends[:, :1]) & (at < ends[:, 1:])) * 2
    positions = np.where(segments == 2, at - ends[:, :1], at)
    mask = (segments > 0) & (rng.random((count, length)) < 0.7) & (positions > 0)
    tokens = rng.integers(0, 128, (count, length))
    return TokenBatch(*(jnp.asarray(x, t) for x, t in zip((tokens, mask, positions, segments), 'ifii')))


def trained(objective, batch, mesh, config=CONFIG):
    """(parameters after three steps, losses)."""
    # A large epsilon: Adam's first steps otherwise blow rounding up to the size of the update.
    optimizer = make_optimizer(3e-2, max_steps=10, eps=1e-2)
    step = compile_step(make_train_step(objective(Transformer(config).apply), optimizer), mesh=mesh)
    state = init_state(init_params(config, jax.random.key(0)), optimizer, jax.random.key(1))
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics['loss']))
    return jax.device_get(state.params), losses


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def same(a, b):
    np.testing.assert_allclose(a[1], b[1], rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a[0], b[0])


@pytest.fixture(scope='module', autouse=True)
def in_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, 'SMALL', 0)  # The head is read in chunks.
        yield


@pytest.fixture(scope='module')
def supervised():
    tokens = rows(4, LENGTH)
    batch = tokens, jnp.sum(tokens.mask)
    return batch, trained(sft_objective, batch, one_device())


@pytest.mark.parametrize('spec', ['sequence=8', 'fsdp=2,sequence=2,tensor=2'])
def test_split_rows_train_as_whole_ones(supervised, spec):
    batch, expected = supervised
    assert expected[1][2] < expected[1][0] - 0.02
    same(trained(sft_objective, batch, make_mesh(spec)), expected)


@pytest.mark.slow
def test_split_branches_train_as_whole_ones():
    prompt = rows(4, 32)
    prompt = dataclasses.replace(
        prompt, segment_ids=jnp.ones_like(prompt.segment_ids), positions=jnp.arange(32) + 0 * prompt.positions
    )
    answers = rows(8, 16, seed=1)
    answers = jax.tree.map(lambda x: x.reshape(4, 2, 16), answers)
    answers = dataclasses.replace(
        answers, segment_ids=jnp.ones_like(answers.segment_ids), positions=32 + jnp.arange(16) + 0 * answers.positions
    )
    batch = PreferenceBatch(BranchBatch(prompt, answers), jnp.ones(4), ref_logps=jnp.full((4, 2), -20.0))
    objective = lambda apply: preference_objective(apply, dpo_loss, beta=0.1)  # noqa: E731
    batch = batch, jnp.float32(4)
    same(trained(objective, batch, make_mesh('fsdp=2,sequence=4')), trained(objective, batch, one_device()))


def test_only_keys_values_and_weights_travel():
    optimizer = make_optimizer(1e-3, max_steps=10)
    step = make_train_step(sft_objective(Transformer(CONFIG).apply), optimizer)
    state = jax.eval_shape(lambda k: init_state(init_params(CONFIG, k), optimizer, k), jax.random.key(0))
    tokens = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), rows(2, LENGTH))
    mesh = make_mesh('fsdp=2,sequence=4')
    batch = tokens, jax.ShapeDtypeStruct((), jnp.float32)
    for collective in collectives(compile_step(step, mesh=mesh).lower(state, batch).compile().as_text(), mesh):
        for _, dims in collective.shapes:
            whole = LENGTH in dims and (WIDTH in dims or 80 in dims or 128 in dims)
            assert not whole, f'{collective} gathers activations of whole rows'
