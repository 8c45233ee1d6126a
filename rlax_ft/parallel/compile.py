"""One pure step, compiled as jit over a mesh or as pmap; the state never gains a device axis.

Leaves out what the step computes.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rlax_ft.errors import InputError
from rlax_ft.parallel.mesh import RULES, make_mesh, shard_batch, tree_shardings

# The axis that a step sums over under pmap: give the same name to make_train_step.
PMAP_AXIS = 'data'


def compile_step(step: Callable, *, mesh: Mesh | None = None, backend: str = 'jit', rules=RULES) -> Callable:
    """Compiles `step(state, batch, *frozen) -> (state, metrics)`, donating the state and nothing else.

    Under `jit` the batch's leading axis is split over the mesh's `data` and `fsdp` axes and parameters live where the
    rules put them. Under `pmap` the batch is split over the local devices and the state is replicated; the step must
    then have been made with `axis_name=PMAP_AXIS`. Scalars of the batch (denominators) go whole to every device, and
    `frozen` stays where it is.

    Args:
      step: a pure function; each returned state has the structure of the one given.
      mesh: for `jit`; all devices on `data` when absent.
      backend: `jit` or `pmap`.
      rules: path rules for the state under `jit`.

    Raises:
      InputError: an unknown backend, or (when called) a batch that does not divide over the devices.
    """
    if backend == 'pmap':
        return _pmap_step(step)
    if backend != 'jit':
        raise InputError(f'--backend={backend}: use jit or pmap')
    return _jit_step(step, make_mesh() if mesh is None else mesh, rules)


def _jit_step(step, mesh, rules):
    compiled = {}

    def run(state, batch, *frozen):
        if 'step' not in compiled:
            shardings = tree_shardings(state, mesh, rules)
            compiled['shardings'] = shardings
            compiled['step'] = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
        # The state that comes back from a step is where it should be; one from elsewhere is placed first.
        first, sharding = jax.tree.leaves(state)[0], jax.tree.leaves(compiled['shardings'])[0]
        if getattr(first, 'sharding', None) != sharding:
            state = jax.device_put(state, compiled['shardings'])
        # Within set_mesh the chunked LM head keeps rows, and a split vocabulary, where they are.
        with jax.set_mesh(mesh):
            return compiled['step'](state, shard_batch(batch, mesh), *frozen)

    return run


def _pmap_step(step):
    devices = jax.local_device_count()
    mesh = jax.make_mesh((devices,), (PMAP_AXIS,), axis_types=(AxisType.Auto,), devices=jax.local_devices())
    rows = NamedSharding(mesh, PartitionSpec(PMAP_AXIS))
    mapped = partial(jax.pmap, step, axis_name=PMAP_AXIS, out_axes=None, donate_argnums=0)
    pmapped = {}

    def split(leaf):
        if np.ndim(leaf) == 0:
            return jax.device_put(jnp.broadcast_to(leaf, (devices,)), rows)
        if leaf.shape[0] % devices:
            raise InputError(
                f'a batch of {leaf.shape[0]} rows does not divide over {devices} devices; change --batch_size'
            )
        return jax.device_put(leaf.reshape(devices, leaf.shape[0] // devices, *leaf.shape[1:]), rows)

    def run(state, batch, *frozen):
        if 'step' not in pmapped:
            pmapped['step'] = mapped(in_axes=(None, 0, *(None for _ in frozen)))
        return pmapped['step'](state, jax.tree.map(split, batch), *frozen)

    return run
