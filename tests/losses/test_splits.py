"""Splitting a batch changes nothing: micro-batches, rows, padding, packing, devices, jit against pmap and shard_map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rlax_ft.losses import policy_gradient, preference, unpaired
from rlax_ft.ops import reduce, returns
from rlax_ft.types import PairLogps

B, T, F, MAX_LEN = 8, 6, 3, 9
THETA = np.array([0.3, -0.8, 0.5])
seeds = st.integers(0, 2**16)
few = settings(max_examples=10, deadline=None)


def make_batch(seed, length=T):
    """Ragged rows with holes, one of them empty."""
    rng = np.random.default_rng(seed)
    mask = rng.random((B, length)) < rng.random((B, 1))
    mask[rng.integers(B)] = False
    return {
        'x': rng.normal(size=(B, length, F)),
        'old': -rng.random((B, length)) - 0.2,
        'advantages': rng.normal(size=(B, length)),
        'mask': mask,
    }


def token_losses(theta, batch):
    """PPO's loss of a toy policy log pi = -softplus(x theta)."""
    logps = -jax.nn.softplus(batch['x'] @ theta)
    return policy_gradient.ppo_clip_loss(logps, batch['old'], batch['advantages'], batch['mask'])


@functools.cache
def whole(mode):
    def loss(theta, batch):
        return reduce.aggregate(token_losses(theta, batch), batch['mask'], mode, max_len=MAX_LEN)

    return jax.jit(jax.value_and_grad(loss))


@functools.cache
def share(mode):
    def loss(theta, batch, denominator):
        return reduce.aggregate(token_losses(theta, batch), batch['mask'], mode, denominator=denominator)

    return jax.jit(jax.value_and_grad(loss))


def assert_same(ours, truth):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12), ours, truth)


modes = pytest.mark.parametrize('mode', reduce.MODES)


@modes
def test_micro_batches_sum_to_the_whole(mode):
    @few
    @given(seed=seeds, pieces=st.sampled_from([2, 4, 8]))
    def check(seed, pieces):
        batch = make_batch(seed)
        denominator = reduce.denominator(batch['mask'], mode, max_len=MAX_LEN)
        parts = [jax.tree.map(lambda x, i=i: np.split(x, pieces)[i], batch) for i in range(pieces)]
        results = [share(mode)(THETA, part, denominator) for part in parts]
        assert_same(jax.tree.map(lambda *xs: sum(xs), *results), whole(mode)(THETA, batch))

    with jax.enable_x64(True):
        check()


@modes
def test_rows_and_padding_do_not_matter(mode):
    @few
    @given(seed=seeds, left=st.integers(0, 1))
    def check(seed, left):
        batch = make_batch(seed)
        order = np.random.default_rng(seed).permutation(B)

        def pad(x):
            return np.pad(x[order], ((0, 0), (left, 2 - left)) + ((0, 0),) * (x.ndim - 2))

        assert_same(whole(mode)(THETA, jax.tree.map(pad, batch)), whole(mode)(THETA, batch))

    with jax.enable_x64(True):
        check()


def test_packing_two_rows_into_one_changes_no_token_mean():
    @few
    @given(seed=seeds)
    def check(seed):
        batch = make_batch(seed)
        packed = jax.tree.map(lambda x: x.reshape(B // 2, 2 * T, *x.shape[2:]), batch)
        assert_same(whole('token_mean')(THETA, packed), whole('token_mean')(THETA, batch))
        # With the unpacked denominator the modes that sum over tokens agree as well.
        for mode in ('seq_mean_token_sum', 'constant'):
            denominator = reduce.denominator(batch['mask'], mode, max_len=MAX_LEN)
            assert_same(share(mode)(THETA, packed, denominator), whole(mode)(THETA, batch))

    with jax.enable_x64(True):
        check()


def in_pmap(function, devices):
    """function(theta, rows) -> sums over devices of its results, under pmap."""
    run = jax.pmap(
        lambda theta, rows: jax.lax.psum(function(theta, rows), 'rows'),
        axis_name='rows',
        in_axes=(None, 0),
        out_axes=None,
        devices=jax.devices()[:devices],
    )
    return lambda theta, batch: run(theta, jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch))


def in_shard_map(function, devices):
    """The same under shard_map, where theta is made to vary so that its gradient stays a device's own."""
    mesh = jax.make_mesh((devices,), ('rows',), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])

    def local(theta, rows):
        return jax.lax.psum(function(jax.lax.pcast(theta, 'rows', to='varying'), rows), 'rows')

    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), P('rows')), out_specs=P()))


@modes
@pytest.mark.parametrize(('backend', 'devices'), [(in_pmap, 2), (in_pmap, 8), (in_shard_map, 4)])
def test_devices_give_shares_whose_sum_is_the_whole(mode, backend, devices):
    def loss(theta, batch):
        losses = token_losses(theta, batch)
        return reduce.aggregate(losses, batch['mask'], mode, axis_name='rows', max_len=MAX_LEN)

    with jax.enable_x64(True):
        split = backend(jax.value_and_grad(loss), devices)
        for seed in range(3):
            batch = make_batch(seed)
            assert_same(split(THETA, batch), whole(mode)(THETA, batch))


def whole_batch_losses(axis_name):
    """Losses that look at the whole batch, as one mean per kind of this device's share."""

    def pair(theta, rows):
        logps = -jax.nn.softplus(rows['x'] @ theta)
        return PairLogps(logps[:, 0], logps[:, 1], rows['old'][:, 0], rows['old'][:, 1])

    def aot(theta, rows):
        return jnp.sum(preference.aot_loss(pair(theta, rows), beta=0.6, axis_name=axis_name)) / B

    def aot_unpaired(theta, rows):
        return jnp.sum(preference.aot_unpaired_loss(pair(theta, rows), beta=0.6, axis_name=axis_name)) / B

    def kto(theta, rows):
        p = pair(theta, rows)
        baseline = unpaired.kto_kl(p.chosen, p.ref_chosen - 2.0, axis_name=axis_name)
        return jnp.sum(unpaired.kto_loss(p.rejected, p.ref_rejected, rows['advantages'][:, 0] > 0, baseline)) / B

    def bco(theta, rows):
        p, thumbs = pair(theta, rows), rows['advantages'][:, 0] > 0
        shift = unpaired.bco_shift(p.chosen, p.ref_chosen, thumbs, axis_name=axis_name)
        return jnp.sum(unpaired.bco_loss(p.chosen, p.ref_chosen, thumbs, shift)) / B

    def whitened(theta, rows):
        advantages = reduce.masked_whiten(rows['advantages'], rows['mask'], axis_name=axis_name)
        losses = token_losses(theta, rows | {'advantages': advantages})
        return reduce.aggregate(losses, rows['mask'], 'token_mean', axis_name=axis_name)

    def plus(theta, rows):
        advantages = returns.reinforce_pp_advantages(rows['advantages'], rows['mask'], axis_name=axis_name)
        losses = token_losses(theta, rows | {'advantages': advantages})
        return reduce.aggregate(losses, rows['mask'], 'token_mean', axis_name=axis_name)

    def covariance(theta, rows):
        arguments = -jax.nn.softplus(rows['x'] @ theta), rows['old'], rows['advantages'], rows['mask']
        clip = policy_gradient.clip_cov_loss(*arguments, cov_low=0.0, fraction=0.2, axis_name=axis_name)
        kl = policy_gradient.kl_cov_loss(*arguments, fraction=0.2, axis_name=axis_name)
        return reduce.aggregate(clip + kl, rows['mask'], 'token_mean', axis_name=axis_name)

    def high_entropy(theta, rows):
        chosen = reduce.above_quantile(rows['old'], rows['mask'], 0.6, axis_name=axis_name)
        return reduce.aggregate(token_losses(theta, rows), chosen, 'token_mean', axis_name=axis_name)

    losses = [aot, aot_unpaired, kto, bco, whitened, plus, covariance, high_entropy]
    return {f.__name__: jax.value_and_grad(f) for f in losses}


@pytest.mark.parametrize('backend', [in_pmap, in_shard_map])
def test_whole_batch_losses_are_right_across_devices(backend):
    with jax.enable_x64(True):
        together = jax.jit(lambda theta, rows: {k: f(theta, rows) for k, f in whole_batch_losses(None).items()})
        split = backend(lambda theta, rows: {k: f(theta, rows) for k, f in whole_batch_losses('rows').items()}, 4)
        for seed in range(3):
            assert_same(split(THETA, make_batch(seed)), together(THETA, make_batch(seed)))


def test_whole_batch_losses_are_right_under_a_mesh():
    with jax.enable_x64(True):
        mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
        together = jax.jit(lambda theta, rows: {k: f(theta, rows) for k, f in whole_batch_losses(None).items()})
        batch = make_batch(5)
        spread = jax.device_put(batch, NamedSharding(mesh, P('data')))
        assert_same(together(THETA, spread), together(THETA, batch))
