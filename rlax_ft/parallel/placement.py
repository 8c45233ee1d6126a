"""Arrays between hosts and devices, in a run of one process or of many: rows in, states placed, results fetched.

Three questions have three functions, because no function can tell from an array which is meant: rows that each process
has of its own (`from_local_rows`), values that all processes have alike, or that are spread over the mesh already
(`reshard`), and what a host wants to read (`fetch`).
"""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from rlax_ft.errors import InputError
from rlax_ft.parallel.mesh import RULES, batch_devices, batch_sharding, check_rules, fit, tree_shardings

# JAX's name of the host's memory that devices copy from by themselves.
HOST_MEMORY = 'pinned_host'


def from_local_rows(batch, mesh: Mesh):
    """A batch on the mesh of which each process gives its own rows, in the order of the processes.

    Args:
      batch: a pytree of host arrays [B / processes, ...]; scalars are the same on every process.
      mesh: over whose row axes the whole batch is split.

    Raises:
      InputError: the rows do not divide over this process's devices.
      ValueError: an array is spread over the mesh already; `reshard` moves that.
    """
    ways = max(batch_devices(mesh) // jax.process_count(), 1)

    def place(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise ValueError(f"an array {leaf.shape} that is spread over the mesh is no process's own rows: reshard it")
        if np.ndim(leaf) == 0:
            return reshard(leaf, batch_sharding(mesh, leaf))
        _check_rows(leaf.shape[0], ways)
        sharding = batch_sharding(mesh, leaf)
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(place, batch)


def split_rows(batch, mesh: Mesh, *, strict: bool = True):
    """A batch that every process has whole, or that is on the mesh already, with its rows split over the mesh.

    Args:
      batch: a pytree of arrays [B, ...] and scalars; each process sends its own devices their rows and no others.
      mesh: over whose row axes it is split.
      strict: False leaves rows that do not divide whole on every device.

    Raises:
      InputError: the rows do not divide over the devices.
    """

    def place(leaf):
        sharding = batch_sharding(mesh, leaf)
        if getattr(leaf, 'sharding', None) == sharding:
            return leaf  # It was placed ahead of its step.
        if np.ndim(leaf) and strict:
            _check_rows(leaf.shape[0], batch_devices(mesh))
        elif np.ndim(leaf):
            sharding = NamedSharding(mesh, fit(sharding.spec, leaf.shape[:1], mesh))
        return reshard(leaf, sharding)

    return jax.tree.map(place, batch)


def reshard(tree, shardings):
    """Arrays where `shardings` say, given values that every process has alike, or that are on the mesh already.

    Args:
      tree: a pytree of arrays, numbers and random keys.
      shardings: a pytree of the same structure, or one sharding for all.
    """
    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: _reshard(leaf, shardings), tree)
    return jax.tree.map(_reshard, tree, shardings)


def _reshard(leaf, sharding):
    if getattr(leaf, 'sharding', None) == sharding:
        return leaf
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        # What travels are the numbers behind a key.
        return jax.random.wrap_key_data(_reshard(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    value = np.asarray(leaf)
    value = value.astype(jax.dtypes.canonicalize_dtype(value.dtype))
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def spread(batch):
    """A batch that every process has whole, split over the mesh of `jax.set_mesh`; as it is where there is none.

    Rows that do not divide stay whole on every device; so do keys without a leading axis. A mesh of one device counts,
    too: it may be another one than where the rows are (--rollout_devices=1).
    """
    try:
        mesh = jax.sharding.get_mesh()
    except ValueError:
        return batch  # Within somebody else's compiled function.
    return batch if mesh.empty else split_rows(batch, mesh, strict=False)


def shard_state(state, mesh: Mesh, rules=RULES):
    """Places a state on the mesh by its path rules; a warning names large arrays that they leave whole."""
    if rules:
        check_rules(state, mesh, rules)
    return reshard(state, tree_shardings(state, mesh, rules))


def to_host_memory(tree):
    """A copy of a tree's arrays in the host's memory, split as they are; a device reads it by `to_device_memory`."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding.with_memory_kind(HOST_MEMORY)), tree)


def to_device_memory(tree):
    """The tree with what lies in the host's memory copied to the devices; the rest is shared."""

    def move(leaf):
        sharding = getattr(leaf, 'sharding', None)
        moves = sharding is not None and sharding.memory_kind == HOST_MEMORY
        return jax.device_put(leaf, sharding.with_memory_kind('device')) if moves else leaf

    return jax.tree.map(move, tree)


def fetch(tree):
    """The same pytree of numpy arrays, whole, on every process; all must call it, also those that do not read it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def one(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return np.asarray(leaf)
        if leaf.is_fully_replicated:
            return np.asarray(leaf.addressable_data(0))
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(one, tree)


def on_host(tree):
    """What a host can read leaf by leaf: `fetch` in a run of several processes, the arrays themselves in one."""
    return tree if jax.process_count() == 1 else fetch(tree)


def _check_rows(rows, ways):
    if rows % ways:
        raise InputError(f'a batch of {rows} rows does not divide over {ways} devices; change --batch_size')
