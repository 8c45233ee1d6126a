"""How arrays enter the arithmetic: checked by name, promoted to at least float32, emptied where masked.

Leaves out everything that has a formula.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp


def as_float(rank: int | None = None, /, **arrays: Any) -> Any:
    """Checks that arrays are real numbers of one shape, and promotes each to at least float32.

    Args:
      rank: the rank that all must have; None for any.
      **arrays: by the name that an error shall give them; float or integer, float64 stays float64.

    Returns:
      The arrays in the order given; the array itself when there is one.

    Raises:
      AssertionError: a rank, dtype or shape is wrong; the message names the argument.
    """
    checked: list[jax.Array] = []
    for name, value in arrays.items():
        x = jnp.asarray(value)
        if rank is not None:
            chex.assert_rank(x, rank, custom_message=f'`{name}` must have rank {rank}, got shape {x.shape}.')
        if checked:
            first = next(iter(arrays))
            chex.assert_equal_shape(
                [checked[0], x],
                custom_message=f'`{name}` {x.shape} must have the shape of `{first}` {checked[0].shape}.',
            )
        real = jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == bool
        chex.assert_equal(real, True, custom_message=f'`{name}` must hold real numbers, got dtype {x.dtype}.')
        checked.append(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    return checked[0] if len(checked) == 1 else tuple(checked)


def as_logps(rank: int | None = None, /, **arrays: Any) -> Any:
    """`as_float` for log-probabilities: integers are refused, since they are token ids passed by mistake."""
    for name, value in arrays.items():
        x = jnp.asarray(value)
        chex.assert_type(x, float, custom_message=f'`{name}` must be floating point, got dtype {x.dtype}.')
    return as_float(rank, **arrays)


def as_ids(shape: tuple[int, ...], /, **arrays: jax.Array) -> Any:
    """Checks that the one array is of an integer type and of the given shape; returns it."""
    ((name, value),) = arrays.items()
    x = jnp.asarray(value)
    chex.assert_type(x, int, custom_message=f'`{name}` must be of an integer type, got dtype {x.dtype}.')
    chex.assert_shape(x, shape, custom_message=f'`{name}` must have shape {shape}, got {x.shape}.')
    return x


def as_per_example(like: jax.Array, /, **arrays: Any) -> jax.Array:
    """`as_float` of the one array: a scalar, or of the shape of `like`; [B, 1] would silently broadcast to [B, B]."""
    x = as_float(**arrays)
    return x if x.ndim == 0 else as_float(like.ndim, batch=like, **arrays)[1]


def as_mask(shape: tuple[int, ...], /, **arrays: jax.Array) -> jax.Array:
    """Checks the shape of the one mask (bool, or numbers of which those above 0 count); returns bool."""
    ((name, value),) = arrays.items()
    x = jnp.asarray(value)
    chex.assert_shape(x, shape, custom_message=f'`{name}` must have shape {shape}, got {x.shape}.')
    return x if x.dtype == bool else x > 0


def keep(mask: jax.Array, *arrays: jax.Array) -> Any:
    """0 where `mask` is False. Before the arithmetic it keeps masked NaN out of values and gradients alike."""
    kept = tuple(jnp.where(mask, x, jnp.zeros_like(x)) for x in arrays)
    return kept[0] if len(kept) == 1 else kept


def safe_exp(log_ratio: jax.Array) -> jax.Array:
    """exp of a log-ratio clipped to +-20, finite in float32 whatever the policies; the gradient is 0 beyond."""
    return jnp.exp(jnp.clip(log_ratio, -20.0, 20.0))
