"""The device mesh and where parameters live on it: its axes, and path rules.

Activations are constrain.py's, moving arrays between hosts and devices is placement.py's.
"""

import collections
import contextlib
import contextvars
import logging
import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlax_ft.errors import InputError

AXES = ('data', 'fsdp', 'expert', 'sequence', 'tensor')

# The axes that the rows of a batch are split over.
ROWS = ('data', 'fsdp', 'expert')

# What `fsdp` stands for in a rule: devices that have other parts of the same rows hold other parts of the parameters.
FSDP = ('fsdp', 'sequence')

# As it is, or as codes (models/quantized.py). Their scales have too few rows to be split by: they are by column.
_MATRIX = '(kernel|codes)$'

# A rule names the axes of a parameter's last dimensions; a leading layer axis is never split. The same rules reach the
# optimiser's moments, because their paths end in the parameter's own. Experts come first: their kernels have one
# dimension more than those of a dense MLP, whose rules they would otherwise take.
RULES: tuple[tuple[str, P], ...] = (
    (r'(^|/)v_(row|col)/', P()),  # Adafactor's: a row or column of each matrix.
    (rf'layers/mlp/(gate|up)/{_MATRIX}', P(None, 'expert', 'fsdp', 'tensor')),
    (rf'layers/mlp/down/{_MATRIX}', P(None, 'expert', 'tensor', 'fsdp')),
    (rf'layers_\d+/mlp/(gate|up)/{_MATRIX}', P('expert', 'fsdp', 'tensor')),
    (rf'layers_\d+/mlp/down/{_MATRIX}', P('expert', 'tensor', 'fsdp')),
    (r'mlp/router/kernel$', P('fsdp', None)),
    (r'(^|/)embed/embedding$', P('tensor', 'fsdp')),
    (r'position_embed/embedding$', P(None, 'fsdp')),
    (rf'attention/(query|key|value|qkv)/{_MATRIX}', P('fsdp', 'tensor')),
    (rf'attention/out/{_MATRIX}', P('tensor', 'fsdp')),
    (rf'mlp/(gate|up|gate_up)/{_MATRIX}', P('fsdp', 'tensor')),
    (rf'mlp/down/{_MATRIX}', P('tensor', 'fsdp')),
    (r'(out|down)/A$', P('tensor', 'fsdp')),
    (r'(out|down)/B$', P(None, 'fsdp')),
    (r'/A$', P('fsdp', None)),
    (r'/B$', P('fsdp', 'tensor')),
    (r'(^|/)head$', P('fsdp', 'tensor')),
    (r'(^|/)head/kernel$', P('fsdp', None)),
    (r'/scales$', P(None, 'fsdp')),
    (r'(^|/)(bias|scale)$', P()),
)

# Numbers from which a parameter that stays whole on every device is worth a warning.
LARGE = 2**16


_target = contextvars.ContextVar('target', default=None)


@contextlib.contextmanager
def compiling_for(devices):
    """Meshes are made of these devices, which need not be here: what is lowered on them can be compiled and not run."""
    token = _target.set(tuple(devices))
    try:
        yield
    finally:
        _target.reset(token)


def make_mesh(spec: str = '', devices=None) -> Mesh:
    """A mesh over all devices, from text such as `data=4,fsdp=2`.

    Args:
      spec: sizes by axis name; an axis left out has size 1. One size may be -1: what is left; where none is, `data`
        takes that.
      devices: to use in place of `jax.devices()`, or of those of `compiling_for`. Devices of several slices are laid
        out so that only `data`, or the outermost axis that can, crosses from one to another.

    Raises:
      InputError: an unknown axis, one named twice, or sizes that do not multiply to the number of devices.
    """
    devices = list(devices or _target.get() or jax.devices())
    count, sizes = len(devices), {}
    for part in filter(None, spec.split(',')):
        name, _, size = part.partition('=')
        if name not in AXES or not re.fullmatch(r'-1|[1-9]\d*', size):
            raise InputError(f'--mesh={spec}: {part!r} is not AXIS=SIZE with an axis of {", ".join(AXES)}')
        if name in sizes:
            raise InputError(f'--mesh={spec}: {name} stands there twice; give it one size')
        sizes[name] = int(size)
    filled = [name for name, size in sizes.items() if size == -1] or ([] if 'data' in sizes else ['data'])
    if len(filled) > 1:
        raise InputError(f'--mesh={spec}: -1 stands at {" and ".join(filled)}; only one axis can take what is left')
    given = math.prod(size for size in sizes.values() if size > 0)
    for name in filled:
        sizes[name] = max(count // given, 1)
    if math.prod(sizes.values()) != count:
        total = math.prod(sizes.values())
        raise InputError(f'--mesh={spec}: the sizes multiply to {total}, but there are {count} devices')
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    kinds = (AxisType.Auto,) * len(AXES)
    slices = slice_count(devices)
    if slices > 1:
        return Mesh(_over_slices(shape, slices, devices, spec), AXES, axis_types=kinds)
    return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)


def slice_count(devices) -> int:
    """How many TPU slices the devices are of."""
    return len({getattr(device, 'slice_index', 0) for device in devices})


def _over_slices(shape, slices, devices, spec):
    """Devices [shape] such that one axis crosses the slower network between slices, and the others stay within one."""
    from jax.experimental.mesh_utils import create_hybrid_device_mesh

    for axis, size in enumerate(shape):
        if size % slices == 0:
            across = tuple(slices if i == axis else 1 for i in range(len(shape)))
            within = tuple(size // slices if i == axis else size for i, size in enumerate(shape))
            return create_hybrid_device_mesh(within, across, devices)
    raise InputError(f'--mesh={spec}: no axis is a multiple of the {slices} slices; let data be one')


def platform() -> str:
    """What the program that is being traced will run on: the platform of the mesh within `jax.set_mesh`, or jax's."""
    device = getattr(jax.sharding.get_abstract_mesh(), 'abstract_device', None)
    return jax.default_backend() if device is None else device.platform


def fit(spec: P, shape: tuple[int, ...], mesh, otherwise=None) -> P:
    """The spec without axes that the mesh does not have, and with `otherwise` where an axis does not divide.

    Args:
      spec: of the dimensions of `shape`.
      shape: of the array.
      mesh: concrete or abstract.
      otherwise: what stands in place of axes that do not divide a dimension.
    """
    fitted = []
    for dim, axes in zip(shape, spec):
        names = tuple(a for a in (axes if isinstance(axes, tuple) else (axes,)) if a and mesh.shape.get(a, 1) > 1)
        ways = math.prod(mesh.shape[a] for a in names)
        fitted.append(otherwise if dim % ways else names if len(names) > 1 else names[0] if names else None)
    return P(*fitted)


def batch_sharding(mesh: Mesh, leaf) -> NamedSharding:
    """The leading axis over the axes of rows; scalars everywhere."""
    rows = tuple(axis for axis in ROWS if axis in mesh.shape)
    return NamedSharding(mesh, P(rows) if np.ndim(leaf) else P())


def batch_devices(mesh: Mesh) -> int:
    """How many ways a batch is split."""
    return math.prod(mesh.shape.get(axis, 1) for axis in ROWS)


def rule_of(name: str, shape: tuple[int, ...], rules=RULES) -> P | None:
    """What the first rule that fits a path and its number of dimensions says of all of them; None where none fits."""
    for pattern, spec in rules:
        if re.search(pattern, name) and len(shape) >= len(spec):
            return P(*[None] * (len(shape) - len(spec)), *stored(spec))
    return None


def stored(spec: P) -> P:
    """A rule's spec with all the axes that its `fsdp` stands for."""
    return P(*(FSDP if axis == 'fsdp' else axis for axis in spec))


def without(spec: P, axes: tuple[str, ...]) -> P:
    """The spec of an array that is whole over these axes."""
    parts = (part if isinstance(part, tuple) else (part,) for part in spec)
    return P(*(tuple(axis for axis in part if axis and axis not in axes) for part in parts))


def tree_shardings(tree, mesh: Mesh, rules=RULES):
    """A NamedSharding for each leaf of a state: by the first rule whose pattern its path matches, else replicated.

    A dimension that its axis does not divide stays whole; `check_rules` says which.
    """

    def assign(path, leaf):
        spec = rule_of(path_name(path), np.shape(leaf), rules)
        return NamedSharding(mesh, P() if spec is None else fit(spec, np.shape(leaf), mesh))

    return jax.tree_util.tree_map_with_path(assign, tree)


def check_rules(tree, mesh: Mesh, rules=RULES) -> list[str]:
    """Warns, in one line, of large arrays that stay whole on every device of a mesh that is there to split them.

    Args:
      tree: parameters, or a state with them.
      mesh: its axes but `data` split parameters.
      rules: as in `tree_shardings`.

    Returns:
      What it says of each such array.
    """
    splitting = {axis: mesh.shape[axis] for axis in (*FSDP, 'expert', 'tensor') if mesh.shape.get(axis, 1) > 1}
    found = collections.OrderedDict()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0] if splitting else ():
        shape, name = np.shape(leaf), path_name(path)
        if math.prod(shape) < LARGE:
            continue
        spec = rule_of(name, shape, rules)
        sizes = ', '.join(f'{axis}={size}' for axis, size in splitting.items())
        if spec is None:
            found[name] = f'{name} {list(shape)}: no rule names it, so it stays whole on every device of {sizes}'
            continue
        for dim, axes in zip(shape, spec):
            ways = {a: splitting[a] for a in (axes if isinstance(axes, tuple) else (axes,)) if a in splitting}
            if dim % math.prod(ways.values()):
                by = ' x '.join(f'{axis}={size}' for axis, size in ways.items())
                found[name] = f'{name} {list(shape)}: {by} does not divide {dim}, which stays whole'
    # An optimiser's moments say nothing that their parameter has not said.
    lines = [line for name, line in found.items() if not any(name.endswith('/' + other) for other in found)]
    if lines:
        more = f' (and {len(lines) - 1} more like it)' if len(lines) > 1 else ''
        logging.warning('--mesh: %s%s', lines[0], more)
    return lines


def path_name(path) -> str:
    """`params/layers/mlp/up/kernel` of a path in a tree."""
    return jax.tree_util.keystr(path, simple=True, separator='/')
