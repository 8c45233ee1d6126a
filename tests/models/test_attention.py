"""Attention's kernels against a plain softmax in float64, gradients included, and the cache in blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.models import attention, blockwise, cache, kernels
from rlax_ft.models.attention import attend, choose_kernel
from rlax_ft.models.blockwise import blockwise_attention
from rlax_ft.models.cache import Reading
from rlax_ft.models.dense import visible
from rlax_ft.parallel.mesh import make_mesh

HEADS, GROUPS, WIDTH = 4, 2, 8


def arrays(batch, length, keys=None, seed=0):
    a, b, c = jax.random.split(jax.random.key(seed), 3)
    keys = keys or length
    query = jax.random.normal(a, (batch, length, HEADS, WIDTH))
    return query, *(jax.random.normal(k, (batch, keys, GROUPS, WIDTH)) for k in (b, c))


def plain(query, key, value, mask, *, scale, soft_cap=None):
    """Loops over rows, heads and queries, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(q.shape[:3]):
        scores = k[b, :, h // (HEADS // GROUPS)] @ q[b, t, h] * scale
        if soft_cap:
            scores = soft_cap * np.tanh(scores / soft_cap)
        weights = np.where(mask[b, t], np.exp(scores - scores.max()), 0.0)
        out[b, t, h] = weights / weights.sum() @ v[b, :, h // (HEADS // GROUPS)]
    return out


PLACES = {
    'causal': (jnp.ones((2, 20), jnp.int32), jnp.tile(jnp.arange(20), (2, 1))),
    'padded left and right': (
        jnp.asarray([[0] * 7 + [1] * 13, [1] * 15 + [0] * 5]),
        jnp.asarray([[0] * 7 + [*range(13)], [*range(20)]]),
    ),
    'packed': (
        jnp.asarray([[1] * 9 + [2] * 11, [1] * 3 + [2] * 3 + [3] * 14]),
        jnp.asarray([[*range(9), *range(11)], [*range(3), *range(3), *range(14)]]),
    ),
}


@pytest.mark.parametrize('places', PLACES)
@pytest.mark.parametrize(
    ('options', 'block'), [({}, 7), ({'soft_cap': 1.5}, 64), ({'window': 5}, 4), ({'window': 5, 'soft_cap': 2.0}, 7)]
)
def test_blocks_are_a_plain_softmax(places, options, block):
    segments, positions = PLACES[places]
    query, key, value = arrays(2, 20)
    mask = np.asarray(visible(segments, positions, segments, positions, options.get('window')))
    at = (segments, positions, segments, positions)
    out = blockwise_attention(query, key, value, *at, scale=0.3, block=block, **options)
    expected = plain(query, key, value, mask, scale=0.3, soft_cap=options.get('soft_cap'))
    real = np.asarray(segments) > 0  # nobody reads what padding gets
    np.testing.assert_allclose(out[real], expected[real], atol=2e-6)


@pytest.mark.parametrize('rows', ['together', 'one by one'])
@pytest.mark.parametrize('options', [{}, {'soft_cap': 1.5}, {'window': 5}])
def test_gradients_of_blocks_are_those_of_a_plain_softmax(options, rows, monkeypatch):
    monkeypatch.setattr(blockwise, '_IN_CACHE', 1 if rows == 'one by one' else 2**17)
    segments, positions = PLACES['packed']
    at = (segments, positions, segments, positions)
    weight = jax.random.normal(jax.random.key(9), (2, 20, HEADS, WIDTH))

    def loss(kernel):
        how = dict(scale=0.3, soft_cap=options.get('soft_cap'), window=options.get('window'))
        return lambda q, k, v: jnp.sum(weight * kernel(q, k, v, *at, **how))

    def dense(q, k, v, *at, scale, soft_cap, window):
        return attention._attend_keys(q, k, v, *at, scale=scale, soft_cap=soft_cap, window=window, kernel='dense')

    blocks = lambda *args, **how: blockwise_attention(*args, block=6, **how)  # noqa: E731
    ours = jax.grad(loss(blocks), argnums=(0, 1, 2))(*arrays(2, 20))
    theirs = jax.grad(loss(dense), argnums=(0, 1, 2))(*arrays(2, 20))
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, atol=5e-6)


def test_blocks_that_nobody_sees_are_not_computed():
    """NaN in keys that causality hides would spread through 0 * NaN if their blocks were multiplied."""
    query, key, value = arrays(1, 16)
    poisoned = value.at[:, 8:].set(jnp.nan)
    at = (jnp.ones((1, 16), jnp.int32), jnp.arange(16)[None]) * 2
    out = blockwise_attention(query, key, poisoned, *at, scale=1.0, block=4)
    assert np.isfinite(out[:, :8]).all() and np.isnan(out[:, 8:]).any()


def test_memory_grows_with_blocks_not_with_the_square():
    length = 2048
    at = (jnp.ones((1, length), jnp.int32), jnp.arange(length)[None]) * 2
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in jax.eval_shape(lambda: arrays(1, length))]
    loss = lambda q, k, v: jnp.sum(blockwise_attention(q, k, v, *at, scale=1.0))  # noqa: E731
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < HEADS * length * length * 4 / 8


def test_the_windows_of_positions_and_a_traced_window():
    query, key, value = arrays(1, 12)
    reading = Reading(jnp.ones((1, 12), jnp.int32), jnp.arange(12)[None])
    fixed, _ = attend(query, key, value, reading, window=3, kernel='blockwise')
    traced, _ = jax.jit(lambda w: attend(query, key, value, reading, window=w, kernel='blockwise'))(3)
    dense, _ = attend(query, key, value, reading, window=3, kernel='dense')
    np.testing.assert_allclose(fixed, traced, atol=1e-6)
    np.testing.assert_allclose(fixed, dense, atol=1e-6)


def test_the_cache_in_blocks_is_the_cache_as_a_whole(monkeypatch):
    query, _, _ = arrays(2, 1)
    keys = jax.random.normal(jax.random.key(3), (2, GROUPS, WIDTH, 21))
    values = jax.random.normal(jax.random.key(4), (2, GROUPS, 21, WIDTH))
    filled = jnp.arange(21) < 14
    segments = jnp.where(filled, jnp.asarray([[1], [1]]), 0)
    segments = segments.at[0, :4].set(0)
    positions = jnp.broadcast_to(jnp.arange(21), (2, 21))
    reading = Reading(jnp.ones((2, 1), jnp.int32), jnp.full((2, 1), 13), segments, positions)
    how = dict(scale=0.4, soft_cap=None, window=None)
    whole = cache.attend_cache(query, (keys, values), reading, None, **how)
    monkeypatch.setattr(cache, '_BLOCK', 5)
    blocks = cache.attend_cache(query, (keys, values), reading, None, **how)
    np.testing.assert_allclose(blocks, whole, atol=1e-6)
    # Slots that are not filled are not read: NaN there would spread.
    poisoned = keys.at[..., 15:].set(jnp.nan), values.at[:, :, 15:].set(jnp.nan)
    np.testing.assert_allclose(cache.attend_cache(query, poisoned, reading, None, **how), whole, atol=1e-6)


def test_the_kernel_is_the_platforms_unless_it_is_forced(monkeypatch):
    wide = jnp.zeros((1, 256, 2, 128), jnp.bfloat16)
    how = dict(scale=1.0, soft_cap=None, window=None)
    assert choose_kernel('dense', wide, wide, **how) == 'dense'
    expected = {'cpu': 'blockwise', 'gpu': 'cudnn', 'tpu': 'splash'}
    for platform, kernel in expected.items():
        monkeypatch.setattr(jax, 'default_backend', lambda platform=platform: platform)
        assert choose_kernel('auto', wide, wide, **how) == kernel
    assert choose_kernel('auto', wide[:, :100], wide[:, :100], **how) == 'blockwise'
    assert choose_kernel('auto', wide[:, :50], wide[:, :50], **how) == 'dense'
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert choose_kernel('auto', wide, wide, **{**how, 'soft_cap': 3.0}) == 'blockwise'
    assert choose_kernel('auto', wide.astype(jnp.float32), wide, **how) == 'blockwise'


@pytest.mark.parametrize('window', [None, 40])
def test_the_tpu_kernel_interpreted(window):
    query, key, value = (
        jax.random.normal(jax.random.key(i), (1, 128, heads, 128)) * 0.3 for i, heads in enumerate((2, 1, 1))
    )
    segments = jnp.asarray([[1] * 50 + [2] * 78])
    positions = jnp.asarray([[*range(50), *range(78)]])
    reading = Reading(segments, positions)
    splash, _ = attend(query, key, value, reading, window=window, kernel='splash')
    dense, _ = attend(query, key, value, reading, window=window, kernel='dense')
    np.testing.assert_allclose(splash, dense, atol=2e-5)


@pytest.mark.parametrize('window', [None, 40])
def test_the_tpu_kernel_takes_a_prompt_and_its_responses_at_once(window):
    query, key, value = (
        jax.random.normal(jax.random.key(i), (2, 256, heads, 64)) * 0.3 for i, heads in enumerate((2, 1, 1))
    )
    # 64 places of a prompt that is padded at the left, and two responses of 96 that are padded at the right.
    real = [*(np.arange(64) >= 9), *(np.arange(96) < 70), *(np.arange(96) < 96)]
    segments = jnp.asarray([real, [True] * 256], jnp.int32)
    before = 64 - np.asarray(segments[:, :64]).sum(axis=1)[:, None]
    place = np.asarray([*range(64), *(64 + np.arange(96)), *(64 + np.arange(96))])
    reading = Reading(segments, jnp.asarray(np.maximum(place - before, 0)), prompt=64, branches=2)

    def total(kernel):
        def f(query, key, value):
            out, _ = attend(query, key, value, reading, window=window, kernel=kernel)
            return jnp.sum(jnp.sin(out) * segments[:, :, None, None]), out

        return jax.grad(f, (0, 1, 2), has_aux=True)(query, key, value)

    (splash, out), (dense, expected) = total('splash'), total('dense')
    seen = np.asarray(segments, bool)
    np.testing.assert_allclose(out[seen], expected[seen], atol=2e-5)
    for ours, theirs in zip(splash, dense):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize('window', [None, 5])
def test_the_gpu_kernel_takes_lengths_and_no_mask(monkeypatch, window):
    """The same call as on a GPU, computed by XLA: rows padded at either end, and packed ones by blocks."""
    monkeypatch.setattr(kernels, '_CUDNN', 'xla')
    query, key, value = (jax.random.normal(jax.random.key(i), (3, 12, heads, 8)) for i, heads in enumerate((4, 2, 2)))
    padded = jnp.asarray([[0] * 5 + [1] * 7, [2] * 9 + [0] * 3, [1] * 12])
    packed = jnp.asarray([[1] * 5 + [2] * 7, [2] * 9 + [0] * 3, [1] * 12])
    for segments in (padded, packed):
        reading = Reading(segments, jnp.broadcast_to(jnp.arange(12), (3, 12)))
        ours, _ = attend(query, key, value, reading, window=window, kernel='cudnn')
        dense, _ = attend(query, key, value, reading, window=window, kernel='dense')
        real = (segments > 0)[:, :, None, None]
        np.testing.assert_allclose(jnp.where(real, ours, 0), jnp.where(real, dense, 0), atol=1e-5)


def test_a_traced_window_chooses_between_two_kernels():
    query, key, value = (
        jax.random.normal(jax.random.key(i), (1, 128, heads, 64)) * 0.3 for i, heads in enumerate((2, 1, 1))
    )
    reading = Reading(jnp.ones((1, 128), jnp.int32), jnp.arange(128)[None])

    @jax.jit
    def splash(window):
        return attend(query, key, value, reading, window=window, local_window=40, kernel='splash')[0]

    for window, traced in ((40, 40), (None, jnp.iinfo(jnp.int32).max)):
        dense, _ = attend(query, key, value, reading, window=window, kernel='dense')
        np.testing.assert_allclose(splash(jnp.int32(traced)), dense, atol=2e-5)


def test_a_vendors_kernel_runs_on_each_devices_own_rows_and_heads():
    query, key, value = (
        jax.random.normal(jax.random.key(i), (4, 128, heads, 64)) * 0.3 for i, heads in enumerate((4, 2, 2))
    )
    reading = Reading(jnp.ones((4, 128), jnp.int32), jnp.broadcast_to(jnp.arange(128), (4, 128)))
    dense, _ = attend(query, key, value, reading, kernel='dense')
    with jax.set_mesh(make_mesh('fsdp=2,tensor=4')):  # More devices than key heads.
        ours = jax.jit(lambda *x: attend(*x, reading, kernel='splash')[0])(query, key, value)
    np.testing.assert_allclose(ours, dense, atol=2e-5)


def test_rows_that_the_compiler_splits_are_not_gathered_for_the_sake_of_a_cache(monkeypatch):
    """Where rows or heads do not divide, nobody maps blocks over the devices by hand."""
    monkeypatch.setattr(blockwise, '_IN_CACHE', 1)
    mesh = make_mesh('data=8')
    with jax.set_mesh(mesh):
        rows = jax.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
        arguments = [jax.device_put(x, rows) for x in arrays(16, 8)]
        at = [jax.device_put(jnp.ones((16, 8), jnp.int32), rows)] * 4
        compiled = jax.jit(lambda *a: blockwise_attention(*a, scale=0.3, block=4)).lower(*arguments, *at).compile()
    assert 'all-gather' not in compiled.as_text() and 'all-to-all' not in compiled.as_text()
