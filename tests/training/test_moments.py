"""Moments in 8 bits: how far off a number may be, that roundings are fair, and that training ends where it would."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_ft.errors import InputError
from rlax_ft.models.lora import Adapter
from rlax_ft.parallel.compile import compile_step
from rlax_ft.parallel.mesh import make_mesh
from rlax_ft.training.checkpoint import Checkpoints
from rlax_ft.training.moments import BLOCK, dequantize, in_eight_bits, quantize
from rlax_ft.training.optimizer import make_optimizer
from rlax_ft.training.step import init_state, make_train_step


def numbers(shape, kind):
    """Blocks whose numbers lie up to eight decades apart, as those of a second moment do."""
    x = np.random.default_rng(0).normal(size=shape) * 10 ** np.random.default_rng(1).uniform(-4, 0, shape)
    return jnp.asarray(x if kind == 'mu' else x**2, jnp.float32)


@pytest.mark.parametrize('shape', [(3, BLOCK), (2, 4, 3 * BLOCK), (5, 100), (7, 3), (1,), ()], ids=str)
@pytest.mark.parametrize(('kind', 'root', 'most'), [('mu', 2, 127), ('nu', 4, 255)])
def test_a_number_is_off_by_at_most_one_step_of_its_block(shape, kind, root, most):
    x = numbers(shape, kind)
    codes, scales = quantize(x, kind, jax.random.key(0))
    last = shape[-1] if shape else 1
    assert codes.shape == shape and codes.dtype == {'mu': jnp.int8, 'nu': jnp.uint8}[kind]
    assert scales.shape == (*shape[:-1], -(-last // BLOCK)) and scales.dtype == jnp.float32
    back = dequantize(codes, scales, kind)
    largest = np.repeat(scales, BLOCK, axis=-1)[..., :last].reshape(shape)
    off = np.abs(np.abs(back) ** (1 / root) - np.abs(x) ** (1 / root))
    assert (off <= largest ** (1 / root) / most * 1.001).all()
    assert (np.sign(back) * np.sign(x) >= 0).all()
    np.testing.assert_allclose(back[np.abs(x) == largest], x[np.abs(x) == largest], rtol=1e-6)  # The largest is exact.


@pytest.mark.parametrize(('kind', 'root', 'most'), [('mu', 2, 127), ('nu', 4, 255)])
def test_roundings_are_right_on_average(kind, root, most):
    x, count = numbers((4, BLOCK), kind), 4000
    draw = jax.jit(jax.vmap(lambda key: dequantize(*quantize(x, kind, key), kind)))
    mean = np.asarray(draw(jax.random.split(jax.random.key(1), count)), np.float64).mean(0)
    unit = np.abs(x) / np.max(np.abs(x), axis=-1, keepdims=True)
    below = np.floor(most * unit ** (1 / root))
    step = ((below + 1) ** root - below**root) / most**root
    errors = (mean - x) / np.max(np.abs(x), axis=-1, keepdims=True) / (step / 2 / count**0.5)
    errors = errors[below > 0]  # Numbers of nu that are lifted from 0 to the smallest code are not right on average.
    assert errors.size > 200 and np.abs(errors).max() < 4.5 and abs(errors.mean()) < 0.3


def test_no_second_moment_becomes_zero():
    x = jnp.asarray([1.0, 1e-6, 1e-12, 1e-30, 0.0])
    for seed in range(8):
        back = dequantize(*quantize(x, 'nu', jax.random.key(seed)), 'nu')
        assert (back[:4] > 0).all() and back[4] == 0


def test_two_steps_by_hand():
    optimizer = in_eight_bits(optax.adam(0.1, eps=0.0))
    params = jnp.zeros(2)
    state = optimizer.init(params)
    updates, state = optimizer.update(jnp.asarray([1.0, -1.0]), state, params)
    np.testing.assert_allclose(updates, [-0.1, 0.1], rtol=1e-5)
    mu, nu = state.inner[0].mu, state.inner[0].nu
    assert mu.codes.tolist() == [127, -127] and nu.codes.tolist() == [255, 255]
    np.testing.assert_allclose([mu.scales[0], nu.scales[0]], [0.1, 0.001], rtol=1e-5)
    updates, state = optimizer.update(jnp.asarray([0.0, 1.0]), state, params)
    # m = 0.9 m + 0.1 g and v = 0.999 v + 0.001 g^2, over 1 - 0.9^2 and 1 - 0.999^2.
    m, v = np.asarray([0.09, 0.01]), np.asarray([0.000999, 0.001999])
    np.testing.assert_allclose(updates, -0.1 * (m / 0.19) / np.sqrt(v / 0.001999), rtol=1e-4)
    scales = [state.inner[0].mu.scales[0], state.inner[0].nu.scales[0]]
    np.testing.assert_allclose(scales, [0.09, 0.001999], rtol=1e-5)
    assert state.inner[0].mu.codes[1] in (42, 43)  # 127 sqrt(1 / 9) = 42.3


def regression(dtype, kind, steps=300):
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = {'kernel': (32, 128), 'head': (128, 8)}
    draw = lambda key: {n: jax.random.normal(key, s) / s[0] ** 0.5 for n, s in shapes.items()}  # noqa: E731
    apply = lambda params, x: jnp.tanh(x @ params['kernel']) @ params['head']  # noqa: E731
    start, target = draw(keys[0]), draw(keys[1])
    # Inputs of which some are a hundred times as large as others: so are the gradients.
    inputs = jax.random.normal(keys[2], (1024, 32)) * jnp.logspace(-2, 0, 32)
    objective = lambda params, x: jnp.mean((apply(params, x) - apply(target, x)) ** 2)  # noqa: E731
    rate = {'adamw': 3e-3, 'muon': 3e-3, 'lion': 3e-4}[kind]
    optimizer = make_optimizer(rate, max_steps=steps, kind=kind, schedule='cosine', moment_dtype=dtype)

    def step(carry, key):
        rows = inputs[jax.random.randint(key, (64,), 0, 1024)]
        updates, state = optimizer.update(jax.grad(objective)(carry[0], rows), carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    ended = jax.jit(lambda carry: jax.lax.scan(step, carry, jax.random.split(keys[3], steps))[0])
    params, state = ended((start, optimizer.init(start)))
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (state, start)]
    return float(objective(start, inputs)), float(objective(params, inputs)), sizes[0] / sizes[1] * 4


@pytest.mark.parametrize(('kind', 'size'), [('adamw', 2.31), ('lion', 1.16), ('muon', 2.31)])
def test_training_ends_within_two_hundredths_of_float32(kind, size):
    (first, wide, _), (_, narrow, bytes_each) = (regression(dtype, kind) for dtype in (None, 'int8'))
    assert wide < first / 20
    assert abs(narrow / wide - 1) < 0.02
    assert bytes_each < size  # A head of 8 columns has a scale for each 8.


def test_the_state_takes_little_more_than_two_bytes_a_parameter():
    params = {'layers': {'kernel': jnp.zeros((4, 256, 512))}, 'scale': jnp.zeros(256)}
    state = make_optimizer(1e-3, max_steps=9, moment_dtype='int8').init(params)
    leaves = jax.tree.leaves(state)
    assert sum(leaf.nbytes for leaf in leaves) / sum(leaf.size for leaf in jax.tree.leaves(params)) < 2.13
    assert {leaf.dtype.name for leaf in leaves if leaf.size > 1e5} == {'int8', 'uint8'}


def test_a_moment_moves_by_what_is_less_than_a_step_of_its_code():
    optimizer = in_eight_bits(optax.adam(0.0))
    params = jnp.zeros((64, BLOCK))
    first, then = jnp.ones_like(params), jnp.ones_like(params).at[:, 1:].set(2.0)

    def run(state, grads):
        step = lambda state, _: (optimizer.update(grads, state, params)[1], None)  # noqa: E731
        return jax.lax.scan(step, state, length=700)[0]

    state = jax.jit(lambda: run(run(optimizer.init(params), first), then))()
    nu = dequantize(*state.inner[0].nu, 'nu')
    settled = lambda square, before: square + (before - square) * 0.999**700  # noqa: E731
    before = settled(1.0, 0.0)
    np.testing.assert_allclose([nu[:, 0].mean(), nu[:, 1:].mean()], [settled(1, before), settled(4, before)], rtol=0.01)


def alike(a, b, at_most):
    """Equal but for one in a thousand, which differs by no more than this."""
    off = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    assert off.max() <= at_most and np.mean(off > 1e-5) <= 1e-3


@pytest.mark.parametrize('spec', ['fsdp=8', 'data=2,fsdp=2,tensor=2'])
def test_eight_devices_are_as_one(spec):
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)  # noqa: E731
    # 96 columns over 2 and 4 devices split a block of 64; 3 x 40 rows do not divide.
    layers = {'attention': {'query': {'kernel': draw(0, 2, 16, 96)}, 'out': {'kernel': draw(1, 2, 96, 16)}}}
    params = {'layers': layers | {'mlp': {'down': {'kernel': draw(2, 2, 120, 256)}}}, 'bias': draw(3, 5)}
    optimizer = make_optimizer(1e-2, max_steps=9, moment_dtype='int8')
    squares = lambda p, b, k: (sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p)) * jnp.mean(b), {})  # noqa: E731
    step = make_train_step(squares, optimizer)
    ended = []
    for compiled in (jax.jit(step), compile_step(step, mesh=make_mesh(spec))):
        state = init_state(jax.tree.map(jnp.copy, params), optimizer, jax.random.key(0))
        for _ in range(4):
            state, _ = compiled(state, jnp.ones(8))
        ended.append(state)
    # A sum in another order is another last bit, which turns a rounding here and there.
    jax.tree.map(lambda a, b: alike(a, b, 1e-3), ended[0].params, ended[1].params)
    inner = lambda state: state.opt_state[1].inner_state.inner[0]  # noqa: E731
    for kind in ('mu', 'nu'):
        plain, split = (getattr(inner(state), kind) for state in ended)
        jax.tree.map(lambda a, b: alike(a.astype(int), b.astype(int), 1), plain.codes, split.codes)
        jax.tree.map(lambda a, b: alike(a, b, 1e-3), plain.scales, split.scales)
        lies = lambda tree: jax.tree.map(lambda leaf: leaf.sharding.spec, tree)  # noqa: E731
        assert lies(split.codes) == lies(ended[1].params)
        down = split.scales['layers']['mlp']['down']['kernel']
        assert 'fsdp' in down.sharding.spec if spec != 'fsdp=8' else down.is_fully_replicated


def test_a_run_that_resumes_goes_on_to_the_bit(tmp_path):
    params = Adapter({'layers': {'A': jax.random.normal(jax.random.key(0), (2, 80, 4)), 'B': jnp.zeros((2, 4, 80))}})
    optimizer = make_optimizer(1e-2, max_steps=9, moment_dtype='int8')
    loss = lambda p, b, k: (jnp.sum((p.lora['layers']['A'] @ p.lora['layers']['B'] - b[0]) ** 2), {})  # noqa: E731
    step, batch = jax.jit(make_train_step(loss, optimizer)), jnp.ones((1, 80, 80))
    first = init_state(params, optimizer, jax.random.key(0))
    state, states = first, []
    for _ in range(4):
        state, _ = step(state, batch)
        states.append(state)
    checkpoints = Checkpoints(tmp_path / 'checkpoints')
    checkpoints.save(2, states[1])
    checkpoints.close()
    again, _ = Checkpoints(tmp_path / 'checkpoints').restore(first)
    for _ in range(2):
        again, _ = step(again, batch)
    jax.tree.map(np.testing.assert_array_equal, *(jax.device_get((s.params, s.opt_state)) for s in (again, states[3])))


@pytest.mark.parametrize(('kind', 'name'), [('adafactor', 'adafactor'), (optax.sgd, 'a function')])
def test_an_optimiser_without_moments_says_so(kind, name):
    with pytest.raises(InputError, match=f'--moment_dtype=int8: --optimizer={name} has no first moment'):
        make_optimizer(1e-2, max_steps=10, kind=kind, moment_dtype='int8')
