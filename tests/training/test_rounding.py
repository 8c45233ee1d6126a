"""Parameters in bfloat16: roundings that are right on average, alike on all devices, and drawn again by who resumes."""

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.parallel.compile import PMAP_AXIS, compile_step
from rlax_ft.parallel.mesh import make_mesh
from rlax_ft.training.checkpoint import Checkpoints
from rlax_ft.training.optimizer import make_optimizer
from rlax_ft.training.rounding import in_float32, round_at_random
from rlax_ft.training.step import init_state, make_train_step


def test_the_mean_of_many_roundings_is_the_number():
    x = jax.random.normal(jax.random.key(0), (64,)) * 10.0 ** jnp.linspace(-20, 20, 64)
    count = 20_000
    draws = jax.jit(jax.vmap(lambda key: round_at_random(x, key)))(jax.random.split(jax.random.key(1), count))
    draws, x = np.asarray(draws, np.float64), np.asarray(x, np.float64)
    step = 2.0 ** (np.floor(np.log2(np.abs(x))) - 7)  # A bfloat16 has 8 bits of which the first is not written.
    assert (np.abs(draws - x) < step).all() and ((draws > x).any(0) & (draws < x).any(0)).all()
    errors = (draws.mean(0) - x) / (step / 2 / count**0.5)
    assert np.abs(errors).max() < 4.5 and abs(errors.mean()) < 0.4


def test_what_bfloat16_has_stays():
    x = jnp.asarray([0.0, -0.0, 1.0, -1.5, 2.0**-130, 3.0e38, jnp.inf, -jnp.inf, jnp.nan], jnp.bfloat16)
    for seed in range(8):
        rounded = round_at_random(x.astype(jnp.float32), jax.random.key(seed))
        assert rounded.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(rounded, np.float32), np.asarray(x, np.float32))


OPTIMIZER = make_optimizer(1e-4, max_steps=99, schedule='constant')


def ones_loss(params, batch, key):
    """A slope of 1 everywhere: Adam takes steps of the learning rate."""
    return sum(jnp.sum(in_float32(leaf)) for leaf in jax.tree.leaves(params)) * jnp.mean(batch), {}


def start(dtype=jnp.bfloat16):
    params = {'kernel': jnp.ones((64, 256), dtype), 'scale': jnp.ones(8)}
    return init_state(params, OPTIMIZER, jax.random.key(3))


def test_an_update_of_a_ten_thousandth_moves_parameters_on_average():
    step, state = jax.jit(make_train_step(ones_loss, OPTIMIZER)), start()
    for _ in range(50):
        state, _ = step(state, jnp.ones(8))
    kernel = state.params['kernel']
    assert kernel.dtype == jnp.bfloat16 and state.params['scale'].dtype == jnp.float32
    assert jnp.bfloat16(1.0) - jnp.bfloat16(1e-4) == 1.0  # To the nearest none would move.
    np.testing.assert_allclose(np.asarray(kernel, np.float64).mean(), 1 - 50 * 1e-4, atol=2e-4)
    np.testing.assert_allclose(state.params['scale'], 1 - 50 * 1e-4, rtol=1e-5)


def test_moments_stay_in_float32_and_parameters_take_half():
    wide, narrow = start(jnp.float32), start()
    assert all(leaf.dtype != jnp.bfloat16 for leaf in jax.tree.leaves(narrow.opt_state))
    assert narrow.params['kernel'].nbytes * 2 == wide.params['kernel'].nbytes
    small = make_optimizer(1e-4, max_steps=9, moment_dtype='int8')
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(init_state(narrow.params, small, narrow.key))[:-1])
    assert size < 4.2 * narrow.params['kernel'].size  # 2 of parameters, 2.1 of moments.


def test_copies_on_many_devices_are_rounded_alike():
    ended = []
    for options in ({'mesh': make_mesh('data=8')}, {'mesh': make_mesh('data=2,fsdp=4')}, {'backend': 'pmap'}):
        axis = PMAP_AXIS if 'backend' in options else None
        loss = lambda p, b, k, axis=axis: (ones_loss(p, b, k)[0] / (8 if axis else 1), {})  # noqa: E731
        step, state = compile_step(make_train_step(loss, OPTIMIZER, axis_name=axis), **options), start()
        for _ in range(3):
            state, _ = step(state, jnp.ones(8))
        ended.append(np.asarray(state.params['kernel'], np.float32))
        shards = [shard for shard in state.params['kernel'].addressable_shards]
        for shard in shards:
            np.testing.assert_array_equal(np.asarray(shard.data, np.float32), ended[-1][shard.index])
    assert len(np.unique(ended[0])) > 1
    np.testing.assert_array_equal(ended[0], ended[1])
    np.testing.assert_array_equal(ended[0], ended[2])


def test_parts_are_summed_in_float32():
    # 1 and then 15 times 2^-9: in bfloat16 none of them would count.
    loss = lambda params, batch, key: (jnp.sum(params * batch.astype(params.dtype)), {})  # noqa: E731
    batch = jnp.full((16, 1), 2.0**-9).at[0].set(1.0)
    step = jax.jit(make_train_step(loss, OPTIMIZER, micro_batches=16))
    _, metrics = step(init_state(jnp.zeros(1, jnp.bfloat16), OPTIMIZER, jax.random.key(0)), batch)
    np.testing.assert_allclose(metrics['grad_norm'], 1 + 15 * 2.0**-9, rtol=1e-6)


def test_a_run_that_resumes_is_rounded_as_the_first_one(tmp_path):
    step, state, states = jax.jit(make_train_step(ones_loss, OPTIMIZER)), start(), []
    for _ in range(4):
        state, _ = step(state, jnp.ones(8))
        states.append(state)
    checkpoints = Checkpoints(tmp_path / 'checkpoints')
    checkpoints.save(2, states[1])
    checkpoints.close()
    again, _ = Checkpoints(tmp_path / 'checkpoints').restore(start())
    for _ in range(2):
        again, _ = step(again, jnp.ones(8))
    jax.tree.map(np.testing.assert_array_equal, *(jax.device_get(s.params) for s in (again, states[3])))
