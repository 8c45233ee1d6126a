"""Where activations and gradients live within `jax.set_mesh`; without a mesh, and on one device, nothing is said.

Rows stay where the batch put them, so that what travels under `fsdp` are the weights and never the batch; heads, the
MLP's hidden width and the vocabulary are split over `tensor`. Parameters at rest are mesh.py's.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec as P

from rlax_ft.parallel.mesh import FSDP, ROWS, RULES, fit, path_name, rule_of, stored, without

# What each kind of array is split over, from its first dimension on; a missing middle is whole.
KINDS = {
    'rows': P(ROWS),  # [B, ...]
    'tokens': P(ROWS, 'sequence'),  # [B, T]
    'residual': P(ROWS, 'sequence', None),  # [B, T, D]
    'heads': P(ROWS, 'sequence', 'tensor', None),  # [B, T, heads, H]
    'mlp': P(ROWS, 'sequence', 'tensor'),  # [B, T, F]
    'logits': P(ROWS, 'tensor'),  # [B, ..., V]
    'cache': P(ROWS, 'tensor', None, None),  # [B, kv_heads, ., .]
    'stacked_cache': P(None, ROWS, 'tensor', None, None),  # [L, B, kv_heads, ., .]
    'parts': P(None, ROWS),  # [micro-batches, B, ...]
    'expert_in': P(None, None, 'tensor'),  # [E, D, F], gathered for use
    'expert_out': P(None, 'tensor', None),  # [E, F, D]
}


_silent = contextvars.ContextVar('silent', default=False)


@contextlib.contextmanager
def unconstrained():
    """Says nothing about where arrays live: for what one process computes for itself within `jax.set_mesh`."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def active_mesh(*arrays: jax.Array):
    """The abstract mesh of `jax.set_mesh`; None where nothing is to be said.

    That is without a mesh or with one device, where somebody maps over the mesh by hand, and outside of what is traced.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes or _silent.get():
        return None
    return mesh if all(isinstance(x, jax.core.Tracer) for x in arrays) else None


def constrain(x: jax.Array, kind: str) -> jax.Array:
    """The same array, kept where arrays of its kind live; its gradient is kept there, too.

    Args:
      x: of any shape that `KINDS` allows; a dimension that does not divide over its axes is left to the compiler.
      kind: one of `KINDS`.
    """
    mesh = active_mesh(x)
    if mesh is None or not x.ndim:
        return x
    spec = KINDS[kind]
    if kind == 'logits':
        spec = P(spec[0], *[None] * (x.ndim - 2), spec[1])
    spec = P(*spec, *[None] * (x.ndim - len(spec)))
    spec = fit(spec, x.shape, mesh, P.UNCONSTRAINED)
    return x if P.UNCONSTRAINED in spec and len(set(spec)) == 1 else jax.lax.with_sharding_constraint(x, spec)


def constrain_like_params(tree, rules=RULES):
    """Gradients, or sums of them, where the path rules put their parameters: each device then sums its own share."""
    mesh = active_mesh(*jax.tree.leaves(tree))
    if mesh is None:
        return tree

    def keep(path, leaf):
        spec = rule_of(path_name(path), leaf.shape, rules)
        return jax.lax.with_sharding_constraint(leaf, fit(spec or P(), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(keep, tree)


def gathered(param: jax.Array, rule: P) -> jax.Array:
    """A parameter whole along `fsdp` for use, still split along its other axes; its gradient is scattered again.

    Args:
      param: as it is stored.
      rule: that says how it is stored.
    """
    mesh = active_mesh(param)
    if mesh is None:
        return param
    return _gather(param, fit(without(rule, FSDP), param.shape, mesh), fit(stored(rule), param.shape, mesh))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(param, whole, stored):
    return jax.lax.with_sharding_constraint(param, whole)


_gather.defvjp(
    lambda param, whole, stored: (_gather(param, whole, stored), None),
    lambda whole, stored, _, gradient: (jax.lax.with_sharding_constraint(gradient, stored),),
)


def over_devices(function: Callable, kinds: tuple, out: str, arguments: tuple) -> Callable | None:
    """`function` run by each device on its own rows and heads, for what the compiler cannot split by itself.

    Args:
      function: of arrays, whose rows and heads do not look at each other.
      kinds: for each argument a kind, or None for what goes whole to every device.
      out: the kind of the result.
      arguments: that it will be called with.

    Returns:
      The mapped function: itself without a mesh, None where an argument does not divide over its axes.
    """
    mesh = active_mesh(*arguments)
    if mesh is None:
        return function
    specs = []
    for kind, shape in zip(kinds, (x.shape for x in arguments)):
        spec = P() if kind is None else P(*KINDS[kind], *[None] * (len(shape) - len(KINDS[kind])))
        fitted = fit(spec, shape, mesh, 'too few')
        if 'too few' in fitted:
            return None
        specs.append(fitted)
    return jax.shard_map(function, in_specs=tuple(specs), out_specs=specs[kinds.index(out)], check_vma=False)
