"""An optimiser's moments in 8 bits: a byte for each number, and a scale for each block of them (arXiv 2110.02861).

Leaves out the optimisers, which see and return float32 moments.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# Numbers along the last axis that share a scale: few, so that a parameter's own split over devices rarely splits one.
BLOCK = 64


class _Code(NamedTuple):
    """`most` is the code of a block's largest number, and code c stands for (c / most)^power of it."""

    dtype: Any
    most: int
    power: int


# The first moment has a sign. The second one's numbers lie decades apart, and its code reaches over nine.
CODES = {'mu': _Code(jnp.int8, 127, 2), 'nu': _Code(jnp.uint8, 255, 4)}


class Quantized(NamedTuple):
    """A moment's codes, as the parameters' tree, and their scales; paths in both end in the parameter's own."""

    codes: Any
    scales: Any


class EightBitState(NamedTuple):
    """What `in_eight_bits` keeps: the number of updates, and the optimiser's state with `Quantized` moments."""

    step: jax.Array
    inner: Any


def quantize(x: jax.Array, kind: str, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes and scales whose values are x on average: x is rounded to one of its two neighbours at random.

    With s the largest |x| of a block, x goes to s (c / m)^p or s ((c + 1) / m)^p, where p is 2 for `mu` and 4 for `nu`,
    and m 127 and 255. An average that moves by less than a step of the code would stand still under rounding to the
    nearest. No positive number of `nu` becomes 0.

    Args:
      x: float[..., D].
      kind: `mu` or `nu`.
      key: of the rounding.

    Returns:
      int8 or uint8[..., D], float32[..., ceil(D / BLOCK)].
    """
    dtype, most, power = CODES[kind]
    blocks = _blocks(x.astype(jnp.float32))
    scales = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True)
    unit = jnp.abs(blocks) / jnp.where(scales, scales, 1.0)
    below = jnp.floor(most * unit ** (1 / power))
    low, high = ((code / most) ** power for code in (below, below + 1))
    draw = _blocks(jax.random.uniform(key, x.shape))
    codes = jnp.minimum(below + (draw * (high - low) < unit - low), most)
    codes = jnp.maximum(codes, blocks > 0) if dtype == jnp.uint8 else jnp.sign(blocks) * codes
    return _joined(codes.astype(dtype), x.shape), scales[..., 0]


def dequantize(codes: jax.Array, scales: jax.Array, kind: str) -> jax.Array:
    """The values of codes and scales, float32[..., D]."""
    _, most, power = CODES[kind]
    unit = _blocks(codes).astype(jnp.float32) / most
    return _joined(jnp.sign(unit) * unit**power * scales[..., None], codes.shape)


def _blocks(x):
    """[..., D] -> [..., ceil(D / BLOCK), BLOCK], with zeros behind; what is shorter than a block is one."""
    x = jnp.atleast_1d(x)
    size = min(BLOCK, x.shape[-1])
    if x.shape[-1] % size:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % size)])
    return x.reshape(*x.shape[:-1], -1, size)


def _joined(blocks, shape):
    """The inverse of `_blocks`."""
    x = blocks.reshape(*blocks.shape[:-2], -1)
    return x[..., : shape[-1]] if shape else x[0]


def in_eight_bits(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimiser, its moments (`mu` and `nu` of its states) in 8 bits between updates.

    An update is made of moments that are not rounded yet. Roundings are drawn by the number of the update, the same on
    every device and in a run that resumes.

    Args:
      optimizer: one whose states name their moments as optax's do, such as adamw, lion, muon.
    """

    def init(params):
        # The moments are 0 in the dtype of what they are made for: none is ever in float32 here.
        small = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.int8), params)
        return EightBitState(jnp.zeros((), jnp.int32), _map_moments(_zeros, optimizer.init(small)))

    def narrow(grads, inner, params, key):
        updates, inner = optimizer.update(grads, _map_moments(_decoded, inner), params)
        return updates, _map_moments(lambda kind, tree: _encoded(kind, tree, key), inner)

    def update(updates, state, params=None):
        key = jax.random.fold_in(jax.random.key(0), state.step)
        changes, kept = [], {}
        for i, (path, leaf) in enumerate(jax.tree_util.tree_flatten_with_path(updates)[0]):
            one = partial(_only, path)
            inner = _map_moments(lambda _, moment, one=one: Quantized(*map(one, moment)), state.inner)
            by_layer = _layer_by_layer if leaf.ndim > 2 else lambda function, *arguments: function(*arguments)
            change, inner = by_layer(narrow, one(updates), inner, one(params), jax.random.fold_in(key, i))
            changes += jax.tree.leaves(change)
            kept |= dict(jax.tree_util.tree_flatten_with_path(inner)[0])
        inner = jax.tree_util.tree_map_with_path(lambda path, _: kept[path], state.inner)
        updates = jax.tree.unflatten(jax.tree.structure(updates), changes)
        return updates, EightBitState(optax.safe_increment(state.step), inner)

    return optax.GradientTransformation(init, update)


def _only(path, tree):
    """The tree with one of its leaves; optax passes over the others."""
    return jax.tree_util.tree_map_with_path(lambda at, leaf: leaf if at == path else optax.MaskedNode(), tree)


def _layer_by_layer(narrow, grads, inner, params, key):
    """`narrow` of each layer of a stack, one after another and in place: moments in float32 are there for one only."""
    stacked = lambda leaf: leaf.ndim > 2  # noqa: E731
    counts = lambda tree: [leaf for leaf in jax.tree.leaves(tree) if not stacked(leaf)]  # noqa: E731

    at, replaced = jax.lax.dynamic_index_in_dim, jax.lax.dynamic_update_index_in_dim

    def one(number, carry):
        grads, inner, _ = carry
        cut = partial(jax.tree.map, lambda leaf: at(leaf, number, keepdims=False) if stacked(leaf) else leaf)
        updates, new = narrow(cut(grads), cut(inner), cut(params), jax.random.fold_in(key, number))
        put = partial(jax.tree.map, lambda leaf, part: replaced(leaf, part, number, 0) if stacked(leaf) else leaf)
        return (
            put(grads, updates),
            put(inner, new),
            [x for x, y in zip(*map(jax.tree.leaves, (new, inner))) if not stacked(y)],
        )

    layers = jax.tree.leaves(grads)[0].shape[0]
    updates, inner, last = jax.lax.fori_loop(0, layers, one, (grads, inner, counts(inner)))
    last = iter(last)
    return updates, jax.tree.map(lambda leaf: leaf if stacked(leaf) else next(last), inner)


def _map_moments(function, state):
    """A state with `function(name, moment)` in place of each moment."""

    def has_moments(node):
        return any(name in getattr(node, '_fields', ()) for name in CODES)

    def replaced(node):
        if not has_moments(node):
            return node
        return node._replace(**{name: function(name, getattr(node, name)) for name in CODES if name in node._fields})

    return jax.tree.map(replaced, state, is_leaf=has_moments)


def _zeros(kind, tree):
    codes = jax.tree.map(lambda leaf: leaf.astype(CODES[kind].dtype), tree)
    # Sliced and not made: so they lie where the codes do.
    return Quantized(codes, jax.tree.map(lambda leaf: jnp.atleast_1d(leaf)[..., ::BLOCK].astype(jnp.float32), codes))


def _decoded(kind, moment):
    return jax.tree.map(lambda codes, scales: dequantize(codes, scales, kind), *moment)


def _encoded(kind, tree, key):
    leaves, structure = jax.tree.flatten(tree)
    keys = (jax.random.fold_in(key, 2 * i + (kind == 'nu')) for i in range(len(leaves)))
    pairs = [quantize(leaf, kind, leaf_key) for leaf, leaf_key in zip(leaves, keys)]
    return Quantized(*(jax.tree.unflatten(structure, [pair[side] for pair in pairs]) for side in (0, 1)))
