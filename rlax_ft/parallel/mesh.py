"""The device mesh and where arrays live on it: axes `data`, `fsdp`, `tensor`, and path rules for parameters.

Leaves out compilation (compile.py). Multi-host runs use jax.distributed: call `start_distributed` first.
"""

import os
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlax_ft.errors import InputError

AXES = ('data', 'fsdp', 'tensor')

# A rule names the axes of a parameter's last dimensions; a leading layer axis is never split. The same rules reach the
# optimiser's moments, because their paths end in the parameter's own.
RULES: tuple[tuple[str, P], ...] = (
    (r'embed/embedding$', P('tensor', 'fsdp')),
    (r'attention/(query|key|value)/kernel$', P('fsdp', 'tensor')),
    (r'attention/out/kernel$', P('tensor', 'fsdp')),
    (r'mlp/(gate|up)/kernel$', P('fsdp', 'tensor')),
    (r'mlp/down/kernel$', P('tensor', 'fsdp')),
    (r'(^|/)head$', P('fsdp', 'tensor')),
)


def make_mesh(spec: str = '') -> Mesh:
    """A mesh over all devices, from text such as `data=4,fsdp=2`.

    Args:
      spec: sizes by axis name; an axis left out has size 1, but `data` takes the devices that are left.

    Raises:
      InputError: an unknown axis, or sizes that do not multiply to the number of devices.
    """
    count = jax.device_count()
    sizes = {}
    for part in filter(None, spec.split(',')):
        name, _, size = part.partition('=')
        if name not in AXES or not size.isdigit() or int(size) < 1:
            raise InputError(f'--mesh={spec}: {part!r} is not AXIS=SIZE with an axis of {", ".join(AXES)}')
        sizes[name] = int(size)
    others = sizes.get('fsdp', 1) * sizes.get('tensor', 1)
    sizes.setdefault('data', max(count // others, 1))
    if sizes['data'] * others != count:
        raise InputError(
            f'--mesh={spec}: the sizes multiply to {sizes["data"] * others}, but there are {count} devices'
        )
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh, leaf) -> NamedSharding:
    """The leading axis over `data` and `fsdp`; scalars everywhere."""
    return NamedSharding(mesh, P(('data', 'fsdp')) if np.ndim(leaf) else P())


def batch_devices(mesh: Mesh) -> int:
    """How many ways a batch is split."""
    return mesh.shape['data'] * mesh.shape['fsdp']


def shard_batch(batch, mesh: Mesh):
    """Places a host batch on the mesh; in a multi-host run each process gives its own rows.

    Raises:
      InputError: the leading axis does not divide over the devices.
    """
    ways = batch_devices(mesh) // jax.process_count()

    def place(leaf):
        if np.ndim(leaf) and leaf.shape[0] % ways:
            raise InputError(
                f'a batch of {leaf.shape[0]} rows does not divide over {ways} devices; change --batch_size'
            )
        sharding = batch_sharding(mesh, leaf)
        if getattr(leaf, 'sharding', None) == sharding:
            return leaf  # It was placed ahead of its step.
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(place, batch)


def tree_shardings(tree, mesh: Mesh, rules=RULES):
    """A NamedSharding for each leaf of a state: by the first rule whose pattern its path matches, else replicated.

    A dimension that its axis does not divide stays whole.
    """

    def assign(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        for pattern, spec in rules:
            if re.search(pattern, name) and np.ndim(leaf) >= len(spec):
                dims = np.shape(leaf)[np.ndim(leaf) - len(spec) :]
                fitted = [axis if dim % mesh.shape[axis] == 0 else None for dim, axis in zip(dims, spec)]
                return NamedSharding(mesh, P(*[None] * (np.ndim(leaf) - len(spec)), *fitted))
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(assign, tree)


def shard_state(state, mesh: Mesh, rules=RULES):
    """Places a state on the mesh by its path rules."""
    return jax.device_put(state, tree_shardings(state, mesh, rules))


def start_distributed() -> None:
    """Joins a multi-host run where the launcher's variables say that there is one; does nothing otherwise.

    jax.distributed finds coordinator, process count and id itself on TPU pods, SLURM and Open MPI.
    """
    if os.environ.get('JAX_COORDINATOR_ADDRESS') or int(os.environ.get('SLURM_NTASKS', '1')) > 1:
        jax.distributed.initialize()
