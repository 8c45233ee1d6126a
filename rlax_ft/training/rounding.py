"""Parameters that are kept in bfloat16: gradients and moments in float32, and a sum that is rounded at random.

Leaves out the step that applies updates (step.py).
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import optax

from rlax_ft.types import Params

Tree = TypeVar('Tree')


def in_float32(tree: Tree) -> Tree:
    """The tree with its bfloat16 arrays in float32."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if _is_narrow(leaf) else leaf, tree)


def apply_updates(params: Params, updates: Params, key: jax.Array) -> Params:
    """params + updates in the parameters' dtypes; those in bfloat16 are right on average (`round_at_random`).

    Args:
      params: of any dtypes.
      updates: of the same structure, in float32 where parameters are in bfloat16.
      key: of the roundings: the same on every device that has a copy of a parameter.
    """
    leaves, structure = jax.tree.flatten(params)
    if not any(map(_is_narrow, leaves)):
        return optax.apply_updates(params, updates)
    keys = (jax.random.fold_in(key, i) for i in range(len(leaves)))
    added = [
        round_at_random(leaf.astype(jnp.float32) + update, leaf_key)
        if _is_narrow(leaf)
        else (leaf + update).astype(leaf.dtype)
        for leaf, update, leaf_key in zip(leaves, jax.tree.leaves(updates), keys)
    ]
    return jax.tree.unflatten(structure, added)


def round_at_random(x: jax.Array, key: jax.Array) -> jax.Array:
    """x in bfloat16, rounded up or down with the chances that make it x on average (arXiv 2010.06192).

    The 16 bits that bfloat16 lacks are a share of the step to its next number: 16 random bits are added, and what is
    then below the step is cut off. What bfloat16 can represent, infinities and NaN stay.

    Args:
      x: float32.
      key: of the random bits.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    high = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), high, x.astype(jnp.bfloat16))


def _is_narrow(leaf):
    return leaf.dtype == jnp.bfloat16
