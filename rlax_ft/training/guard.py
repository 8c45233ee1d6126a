"""A run in which nothing trains is stopped: the classic fault of adapters whose parameters no gradient reaches.

Leaves out whether what changes gets better.
"""

import jax
import jax.numpy as jnp

from rlax_ft.errors import InputError
from rlax_ft.types import Params

# A learning rate that warms up is 0 at the first step; by the third every run moves.
STEPS = 3


class ChangeGuard:
    """Compares parameters with what they were, once, after the first steps; holds one number a leaf."""

    def __init__(self, params: Params, start: int = 0):
        """Takes the trainable parameters of a run that goes on after step `start`."""
        self._before = fingerprints(params)
        self._when = start + STEPS

    def check(self, step: int, params: Params) -> None:
        """Looks at the parameters after `step`.

        Raises:
          InputError: no parameter is another than it was `STEPS` steps ago.
        """
        if step == self._when and bool(jnp.all(self._before == fingerprints(params))):
            raise InputError(
                f'after {STEPS} steps none of the {len(self._before)} trainable arrays has changed: '
                'look at --learning_rate, --lora_targets and the loss'
            )


@jax.jit
def fingerprints(params: Params) -> jax.Array:
    """A checksum of the bits of each leaf, uint32[leaves]; a change of one number always shows."""
    return jnp.stack([_checksum(leaf) for leaf in jax.tree.leaves(params)])


def _checksum(leaf):
    bits = jax.lax.bitcast_convert_type(leaf, {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[leaf.dtype.itemsize])
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)
