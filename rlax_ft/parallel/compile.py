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
from rlax_ft.parallel.mesh import RULES, batch_sharding, check_rules, make_mesh, tree_shardings
from rlax_ft.parallel.placement import HOST_MEMORY, reshard, split_rows

# The axis that a step sums over under pmap: give the same name to make_train_step.
PMAP_AXIS = 'data'


def compile_step(
    step: Callable, *, mesh: Mesh | None = None, backend: str = 'jit', rules=RULES, offload: bool = False
) -> Callable:
    """Compiles `step(state, batch, *frozen) -> (state, metrics)`, donating the state and nothing else.

    Under `jit` the batch's leading axis is split over the mesh's row axes and parameters live where the rules put
    them. Under `pmap` the batch is split over the local devices and the state is replicated; the step must then have
    been made with `axis_name=PMAP_AXIS`. Scalars of the batch (denominators) go whole to every device, and `frozen`
    stays where it is.

    Args:
      step: a pure function; each returned state has the structure of the one given.
      mesh: for `jit`; all devices on `data` when absent.
      backend: `jit` or `pmap`.
      rules: path rules for the state under `jit`.
      offload: the optimiser's state is in the host's memory between updates, under `jit`.

    Raises:
      InputError: an unknown backend, `offload` under another than `jit`, or (when called) a batch that does not divide
        over the devices.
    """
    if offload and backend != 'jit':
        raise InputError(f'--offload_optimizer: keeps its state where --backend={backend} cannot; use --backend=jit')
    if backend == 'pmap':
        return _pmap_step(step)
    if backend != 'jit':
        raise InputError(f'--backend={backend}: use jit or pmap')
    return MeshStep(step, make_mesh() if mesh is None else mesh, rules, offload)


class MeshStep:
    """A step compiled for a mesh at its first call."""

    def __init__(self, step: Callable, mesh: Mesh, rules=RULES, offload: bool = False):
        """Takes what `compile_step` takes."""
        self._step, self.mesh, self._rules, self._offload = step, mesh, rules, offload
        self._compiled = self._shardings = None

    def __call__(self, state, batch, *frozen):
        """(state, metrics).

        Args:
          state: placed by the rules, or to be placed.
          batch: whole, of host arrays in a run of one process; on the mesh where there are several.
          *frozen: as the step takes it.

        Raises:
          ValueError: host arrays in a run of several processes, which may be one's rows or all of them.
        """
        new = self._compiled is None
        if new:
            self._compiled = self._jit(state)
        # The state that comes back from a step is where it should be; one from elsewhere is placed first.
        first, sharding = jax.tree.leaves(state)[0], jax.tree.leaves(self._shardings)[0]
        if new or getattr(first, 'sharding', None) != sharding:
            state = reshard(state, self._shardings)
        if jax.process_count() > 1:
            jax.tree.map(self._check_global, batch)
        with jax.set_mesh(self.mesh):
            return self._compiled(state, split_rows(batch, self.mesh), *frozen)

    def lower(self, state, batch, *frozen):
        """The step lowered from shapes alone: each argument a pytree of ShapeDtypeStruct."""
        jitted = self._jit(state)
        state = jax.tree.map(_with_sharding, state, self._shardings)
        batch = jax.tree.map(lambda leaf: _with_sharding(leaf, batch_sharding(self.mesh, leaf)), batch)
        placed = [jax.tree.map(_with_sharding, tree, tree_shardings(tree, self.mesh, self._rules)) for tree in frozen]
        with jax.set_mesh(self.mesh):
            return jitted.lower(state, batch, *placed)

    def _jit(self, state):
        check_rules(state, self.mesh, self._rules)
        self._shardings = on_device = tree_shardings(state, self.mesh, self._rules)
        if self._offload:
            self._shardings = on_device.replace(opt_state=jax.tree.map(_on_host, on_device.opt_state, state.opt_state))

        def step(state, batch, *frozen):
            if self._offload:
                state = state.replace(opt_state=jax.device_put(state.opt_state, on_device.opt_state))
            return self._step(state, batch, *frozen)

        return jax.jit(step, donate_argnums=0, out_shardings=(self._shardings, None))

    def _check_global(self, leaf):
        whole = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) == self.mesh.size
        if np.ndim(leaf) and not whole:
            raise ValueError(
                f'an array {np.shape(leaf)} of one process in a run of several: place it by from_local_rows, split_rows'
            )


def _on_host(sharding, leaf):
    """The same in the host's memory; numbers stay, as the program reads them at once."""
    return sharding.with_memory_kind(HOST_MEMORY) if np.ndim(leaf) else sharding


def _with_sharding(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def on_mesh(function: Callable, mesh: Mesh, *, rows: int = 1) -> Callable:
    """A compiled function whose last `rows` arguments are batches that every process has whole.

    Their rows are split over the mesh (whole where they do not divide), and it runs within `jax.set_mesh`, so that
    activations stay with their rows.

    Args:
      function: `f(*others, *batches)`, compiled; what else it reads is on the mesh already.
      mesh: to run on.
      rows: how many batches it takes.
    """

    def run(*arguments):
        others, batches = arguments[: len(arguments) - rows], arguments[len(arguments) - rows :]
        with jax.set_mesh(mesh):
            return function(*others, *(split_rows(batch, mesh, strict=False) for batch in batches))

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
        if jax.process_count() > 1:
            raise InputError('--backend=pmap: works on the devices of one process; use --backend=jit on several')
        if 'step' not in pmapped:
            pmapped['step'] = mapped(in_axes=(None, 0, *(None for _ in frozen)))
        return pmapped['step'](state, jax.tree.map(split, batch), *frozen)

    return run
