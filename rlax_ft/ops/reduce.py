"""From per-token losses to one number, with the denominators of the global batch.

The one place that knows `axis_name`. It leaves out gradient accumulation, which the train step does by summing.
"""

import jax
import jax.numpy as jnp

from rlax_ft.ops.arrays import as_float, as_mask, keep

MODES = ('token_mean', 'seq_mean_token_mean', 'seq_mean_token_sum', 'constant')


def _weights(mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The mask as float32 weights; anything not above 0 counts 0."""
    as_mask(shape, mask=mask)
    weights = as_float(mask=mask)
    return keep(weights > 0, weights)


def _psum(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def _divide(total: jax.Array, count: jax.Array) -> jax.Array:
    """total / count, and 0 where there is nothing to count."""
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), 0.0)


def denominator(mask: jax.Array, mode: str, *, axis_name: str | None = None, max_len: int | None = None) -> jax.Array:
    """What `aggregate` divides by: tokens, rows that have a token, or B max_len.

    A script takes it of the whole batch before the batch is split into micro-batches, and hands it to `aggregate`
    for each of them; the micro-batch losses and gradients are then summed.

    Args:
      mask: [B, T] (or [B] for per-example losses), bool or weights of at least 0.
      mode: one of `MODES`.
      axis_name: mapped axis (pmap, shard_map) over which the batch is split; the result is then the global one.
      max_len: tokens per row in the mode `constant`.

    Returns:
      float32[] >= 0.

    Raises:
      ValueError: an unknown mode, or `constant` without `max_len`.
    """
    mask = jnp.asarray(mask)
    weights = _weights(mask, mask.shape)
    if mode == 'token_mean':
        count = jnp.sum(weights)
    elif mode in ('seq_mean_token_mean', 'seq_mean_token_sum'):
        count = jnp.sum(jnp.any(weights.reshape(weights.shape[0], -1) > 0, axis=1), dtype=weights.dtype)
    elif mode == 'constant':
        if max_len is None:
            raise ValueError('aggregate mode `constant` divides by B * max_len: give `max_len`')
        count = jnp.asarray(mask.shape[0] * max_len, weights.dtype)
    else:
        raise ValueError(f'unknown aggregate mode {mode!r}: one of {", ".join(MODES)}')
    return _psum(count, axis_name)


def aggregate(
    x: jax.Array,
    mask: jax.Array,
    mode: str,
    *,
    axis_name: str | None = None,
    max_len: int | None = None,
    denominator: jax.Array | float | None = None,
) -> jax.Array:
    """One number from per-token losses, sum(w x) / denominator, where splitting the batch changes nothing.

    - `token_mean`: sum over tokens / tokens (DAPO, arXiv 2503.14476; TRL's bnpo within a batch).
    - `seq_mean_token_mean`: mean over rows of the mean over tokens (GRPO, arXiv 2402.03300).
    - `seq_mean_token_sum`: mean over rows of the sum over tokens.
    - `constant`: sum / (B max_len), no bias by length (Dr. GRPO, arXiv 2503.20783).

    Rows without a token do not count in the seq modes; `constant` counts all rows. TRL's grpo counts empty rows in
    seq_mean_token_mean: divide by B through `denominator` for that.

    Args:
      x: float[B, T] (or [B]), per-token loss; NaN is fine where masked.
      mask: as x, bool or weights of at least 0.
      mode: one of `MODES`.
      axis_name: mapped axis over which the batch is split. The result is then this device's share, local sum /
        global denominator: the psum of shares, and of their gradients, is the whole.
      max_len: tokens per row in the mode `constant`.
      denominator: divide by this instead, see `denominator`.

    Returns:
      float32[]; 0 if nothing is unmasked.

    Raises:
      ValueError: an unknown mode, or `constant` with neither `max_len` nor `denominator`.
    """
    x = as_float(x=x)
    weights = _weights(mask, x.shape)
    total = keep(weights > 0, x) * weights
    if mode == 'seq_mean_token_mean':
        rows = total.reshape(x.shape[0], -1)
        total = _divide(rows.sum(axis=1), weights.reshape(rows.shape).sum(axis=1))
    elif mode not in MODES:
        raise ValueError(f'unknown aggregate mode {mode!r}: one of {", ".join(MODES)}')
    if denominator is None:
        denominator = _denominator(mask, mode, axis_name=axis_name, max_len=max_len)
    return _divide(jnp.sum(total), jnp.asarray(denominator, total.dtype))


_denominator = denominator  # `aggregate` has an argument of that name.


def masked_mean(x: jax.Array, mask: jax.Array, *, axis_name: str | None = None) -> jax.Array:
    """Mean over all unmasked entries, sum(w x) / sum(w); with `axis_name` that of all devices, not a share.

    Args:
      x: float[...], NaN is fine where masked.
      mask: as x, bool or weights of at least 0.
      axis_name: mapped axis over which the batch is split.

    Returns:
      float32[]; 0 if nothing is unmasked.
    """
    x = as_float(x=x)
    weights = _weights(mask, x.shape)
    return _divide(_psum(jnp.sum(keep(weights > 0, x) * weights), axis_name), _psum(jnp.sum(weights), axis_name))


def masked_var(x: jax.Array, mask: jax.Array, *, axis_name: str | None = None) -> jax.Array:
    """Unbiased variance of the unmasked entries, sum(w (x - mean)^2) / (sum(w) - 1); arguments as `masked_mean`.

    Returns:
      float32[]; 0 with fewer than two unmasked entries.
    """
    x = as_float(x=x)
    weights = _weights(mask, x.shape)
    centred = keep(weights > 0, x) - masked_mean(x, mask, axis_name=axis_name)
    return _divide(_psum(jnp.sum(weights * jnp.square(centred)), axis_name), _psum(jnp.sum(weights), axis_name) - 1.0)


def masked_whiten(x: jax.Array, mask: jax.Array, *, shift_mean: bool = True, axis_name: str | None = None) -> jax.Array:
    """(x - mean) rsqrt(var + 1e-8) over the unmasked entries of the global batch; 0 where masked.

    Args:
      x: float[...], NaN is fine where masked.
      mask: as x.
      shift_mean: centre on 0; False keeps the mean (how PPO for language whitens rewards).
      axis_name: mapped axis over which the batch is split.

    Returns:
      float32 of x's shape, 0 where masked.
    """
    x = as_float(x=x)
    kept = _weights(mask, x.shape) > 0
    mean = masked_mean(x, mask, axis_name=axis_name)
    white = (keep(kept, x) - mean) * jax.lax.rsqrt(masked_var(x, mask, axis_name=axis_name) + 1e-8)
    return keep(kept, white if shift_mean else white + mean)


def above_quantile(x: jax.Array, mask: jax.Array, quantile: float, *, axis_name: str | None = None) -> jax.Array:
    """True on unmasked entries of at least the batch's quantile, to train on high-entropy tokens (arXiv 2506.01939).

    Args:
      x: float[...], NaN is fine where masked.
      mask: as x.
      quantile: in [0, 1]; 0.8 keeps the top fifth (1 - TRL's `top_entropy_quantile`).
      axis_name: mapped axis over which the batch is split.

    Returns:
      bool of x's shape, False where masked.
    """
    x = as_float(x=x)
    mask = as_mask(x.shape, mask=mask)
    counted = jnp.where(mask, x, jnp.nan).reshape(-1)
    return mask & (x >= jnp.nanquantile(gather_rows(counted, axis_name), quantile))


def gather_rows(x: jax.Array, axis_name: str | None) -> jax.Array:
    """[B, ...] of this device -> [devices B, ...] of all, in the order of the axis; itself without an axis."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, axis=0, tiled=True)


def own_rows(x: jax.Array, axis_name: str | None) -> jax.Array:
    """[devices B, ...] -> this device's [B, ...]; undoes `gather_rows`."""
    if axis_name is None:
        return x
    size = x.shape[0] // jax.lax.axis_size(axis_name)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis_name) * size, size)
