"""Parameters as decoding reads them: in the dtype of activations, and made once for as long as the originals live.

Whatever stands beside a model's own: an adapter, or a second policy. Shallow models get layers apart and wide matrices
joined, which is fastest; deep ones stay stacked and are scanned, so that compile time does not grow with depth. On a
mesh weights that fit are gathered over `fsdp` once, and not for every token. Leaves out the joining itself
(`models.transformer.for_decoding`).
"""

import collections
import functools
import math
import re
import weakref
from collections.abc import Callable

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlax_ft.models.lora import Adapted
from rlax_ft.models.transformer import for_decoding, layers_apart
from rlax_ft.parallel.constrain import active_mesh
from rlax_ft.parallel.mesh import FSDP, fit, path_name, platform, rule_of, without

# Layers up to which each is compiled by itself. On a CPU a scan of 24 takes a quarter more time for a token of one row.
SHALLOW, SHALLOW_ON_CPU = 8, 32

# Share of a device's memory that gathered weights may take, and that memory where a device does not say.
SHARE, MEMORY = 0.25, 4 * 2**30

# Axes over which decoding may have weights whole.
_GATHERED = (*FSDP, 'expert')

# Layouts that are kept: of a policy and its opponent, or of a base and its adapter.
_KEPT = 2


def decoding_layout(params, dtype=None, *, whole: bool | None = None):
    """The same parameters for decoding; each product with them gives the same numbers.

    Args:
      params: of a `Transformer`; `Adapted`; or several of these by name, `policy` among them, that are sampled as one.
        Others are left as they are.
      dtype: of activations, which wider matrices are cast to; None leaves them.
      whole: whether nothing stays split over `fsdp` and `expert` within `jax.set_mesh`; where that fits, when absent.
    """
    return _by_part(params, lambda part, joins: _laid(part, dtype, joins, whole))


def laid_out(apply: Callable, params):
    """`decoding_layout` of the parameters in the dtype that `apply` computes in, made once while they live.

    Args:
      apply: `Transformer.apply`, or any function of the same shape.
      params: its parameters; what is being traced is laid out where it stands.
    """
    dtype = functools.cache(lambda: _activations(apply, params))
    return _by_part(params, lambda part, joins: _kept.layout(part, apply, dtype, joins))


def release(params) -> None:
    """Drops the layouts that were made of any of these parameters: before an update, which needs their memory.

    An adapter's base, which no update changes, keeps its own.
    """
    _kept.release(params)


def _activations(apply, params):
    """The dtype that a model computes in; found by tracing it, which takes longer than to look a layout up."""
    cache = jax.eval_shape(lambda p: apply({'params': p}, 1, 1, method='init_cache'), params)
    return jax.tree.leaves(cache)[0].dtype


def _by_part(params, layout):
    if isinstance(params, Adapted):
        # An adapter beside its base fits no joined matrices.
        return params.replace(base=layout(params.base, False), lora=params.lora and layout(params.lora, False))
    if 'policy' in params:
        return {name: _by_part(part, layout) for name, part in params.items()}
    # A joined matrix would be split over `tensor` across its parts.
    mesh = active_mesh()
    return layout(params, mesh is None or mesh.shape.get('tensor', 1) == 1) if 'layers' in params else params


def _laid(params, dtype, joins, whole=None):
    mesh = active_mesh()
    whole = gathered_fits(params, dtype, mesh, _memory()) if whole is None else whole

    def convert(path, leaf):
        name = path_name(path)
        # Norms multiply by their scales in float32, whatever the dtype of activations; so do codes.
        exact = re.search('norm/(scale|bias)$|/scales$', name)
        narrow = dtype is not None and leaf.dtype.itemsize > dtype.itemsize and not exact
        spec = _gathered_spec(name, leaf.shape, mesh) if whole and mesh is not None else None
        # What needs no change is no copy.
        return _convert(leaf, dtype, spec) if narrow or spec is not None else leaf

    def convert_all(params):
        return jax.tree_util.tree_map_with_path(convert, params)

    if not _apart(params):
        return convert_all(params)
    return (for_decoding if joins else layers_apart)(convert_all(params))


def _apart(params):
    depth = jax.tree.leaves(params['layers'])[0].shape[0]
    return depth <= (SHALLOW_ON_CPU if platform() == 'cpu' else SHALLOW)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _convert(leaf, dtype, spec):
    leaf = leaf if dtype is None else leaf.astype(dtype)
    return leaf if spec is None else jax.lax.with_sharding_constraint(leaf, spec)


def _gathered_spec(name, shape, mesh):
    """Where a parameter lives that is whole over `fsdp` and `expert`."""
    return fit(without(rule_of(name, shape) or P(), _GATHERED), shape, mesh)


def decoding_shardings(params, mesh, *, whole: bool):
    """Where weights laid out for decoding live on a mesh, given their arrays or shapes."""

    def assign(path, leaf):
        name = path_name(path)
        spec = (
            _gathered_spec(name, leaf.shape, mesh) if whole else fit(rule_of(name, leaf.shape) or P(), leaf.shape, mesh)
        )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(assign, params)


def gathered_fits(params, dtype, mesh, memory: float) -> bool:
    """Whether parameters gathered over `fsdp` and `expert` take no more than their share of a device's memory.

    Args:
      params: arrays or shapes.
      dtype: that they are cast to; None for their own.
      mesh: None, or one where it may be that nothing is split.
      memory: of a device, bytes.
    """
    if mesh is None or max(mesh.shape.get(axis, 1) for axis in _GATHERED) == 1:
        return False
    total = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        spec = _gathered_spec(path_name(path), leaf.shape, mesh)
        ways = math.prod(mesh.shape[axis] for axis in spec if axis)
        size = leaf.dtype.itemsize if dtype is None else min(dtype.itemsize, leaf.dtype.itemsize)
        total += math.prod(leaf.shape) * size / ways
    return total <= SHARE * memory


def _memory():
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get('bytes_limit', MEMORY)


class _Kept:
    """Layouts of the parameters that were sampled from last; one is dropped with any array that it was made of."""

    def __init__(self):
        self._entries = collections.OrderedDict()

    def layout(self, params, apply, dtype, joins):
        leaves = jax.tree.leaves(params)
        if not all(isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return _laid(params, dtype(), joins)
        key = (*map(id, leaves), apply, joins, _apart(params), active_mesh())
        if key not in self._entries:
            while len(self._entries) >= _KEPT:
                self._entries.popitem(last=False)  # Before the new one is made.
            laid = _compiled(params, dtype(), joins)
            drop = functools.partial(self._drop, key)
            self._entries[key] = laid, [weakref.ref(leaf, drop) for leaf in leaves]
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def release(self, params):
        leaves = set(map(id, jax.tree.leaves(params)))
        for key in [key for key in self._entries if not leaves.isdisjoint(key)]:
            self._entries.pop(key)

    def _drop(self, key, _):
        self._entries.pop(key, None)


def _compiled(params, dtype, joins):
    """Layers apart are made by one program; of stacked ones only what changes is copied, an array at a time."""
    return (_laid_apart if _apart(params) else _laid)(params, dtype, joins)


_laid_apart = jax.jit(_laid, static_argnums=(1, 2, 3))
_kept = _Kept()
