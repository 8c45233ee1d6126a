"""A frozen base in 8 or 4 bits under an adapter (QLoRA, arXiv 2305.14314): codes, and a scale for each block of them.

A matrix is dequantised where it multiplies, one layer at a time, and again in the backward pass: nobody ever holds the
layers in full precision. Leaves out the scales' own quantisation, embeddings, heads and routers, which stay.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.errors import InputError
from rlax_ft.types import Params

KINDS = ('int8', 'nf4')

# Input places that share a scale, as in the paper; fewer where a width is not a multiple of them.
BLOCK = 64
_LEAST = 8

# NormalFloat: quantiles of a normal distribution, 0 among them, scaled to [-1, 1] (the paper's appendix E).
NF4 = np.asarray(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334]
    + [-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
    + [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
    np.float32,
)


def quantize(kernel: jax.Array, kind: str) -> dict[str, jax.Array]:
    """Codes and scales of matrices; a block is `BLOCK` inputs of one output.

    Args:
      kernel: float[..., in, out].
      kind: `int8`: rounded to [-127, 127] times absmax / 127; `nf4`: the nearest of 16 quantiles times absmax.

    Returns:
      {'codes': int8[..., in, out], or uint8[..., in / 2, out] with two codes each, the first in the low bits;
      'scales': float32[..., in / block, out]}.
    """
    *rest, width, out = kernel.shape
    block = math.gcd(width, BLOCK)
    blocks = kernel.astype(jnp.float32).reshape(*rest, width // block, block, out)
    scales = jnp.max(jnp.abs(blocks), axis=-2)
    scales = scales / 127 if kind == 'int8' else scales
    unit = (blocks / jnp.where(scales, scales, 1.0)[..., None, :]).reshape(kernel.shape)
    if kind == 'int8':
        return {'codes': jnp.round(unit).astype(jnp.int8), 'scales': scales}
    places = jnp.searchsorted((NF4[1:] + NF4[:-1]) / 2, unit).astype(jnp.uint8)
    pairs = places.reshape(*rest, width // 2, 2, out)
    return {'codes': pairs[..., 0, :] | pairs[..., 1, :] << 4, 'scales': scales}


def dequantize(codes: jax.Array, scales: jax.Array, dtype) -> jax.Array:
    """The matrices [..., in, out] of codes and scales."""
    if codes.dtype == jnp.uint8:
        # Two numbers from a byte: they stand next to each other, so that a block stays on its device.
        codes = jnp.stack([codes & 15, codes >> 4], axis=-2).reshape(*codes.shape[:-2], -1, codes.shape[-1])
        values = jnp.asarray(NF4)[codes.astype(jnp.int32)]
    else:
        values = codes.astype(jnp.float32)
    blocks = values.reshape(*scales.shape[:-1], -1, scales.shape[-1]) * scales[..., None, :]
    return blocks.reshape(values.shape).astype(dtype)


def kernel_shape(module: Params) -> tuple[int, ...]:
    """The shape of the matrices of a module that `quantize_base` has changed."""
    *rest, width, out = module['codes'].shape
    return (*rest, width * (2 if module['codes'].dtype == jnp.uint8 else 1), out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def product(x: jax.Array, codes: jax.Array, scales: jax.Array, dtype: str) -> jax.Array:
    """x[N, in] times the dequantised matrix; the matrix is made again for the gradient, which reaches x alone."""
    return x @ dequantize(codes, scales, dtype)


def _product_forward(x, codes, scales, dtype):
    return product(x, codes, scales, dtype), (codes, scales)


def _product_backward(dtype, saved, gradient):
    codes, scales = saved
    return gradient @ dequantize(codes, scales, dtype).T, None, None


product.defvjp(_product_forward, _product_backward)


def quantize_base(params: Params, kind: str, name: str = '') -> Params:
    """Parameters of a `Transformer` with `codes` and `scales` in place of the `kernel` of every map in its layers.

    Args:
      params: a nested dict; what is quantised is taken out of it on the way, so that its memory is free again.
      kind: one of KINDS.
      name: path of `params`, for messages.

    Raises:
      InputError: a map whose input width allows no blocks.
    """
    if not name:
        return {**params, 'layers': quantize_base(params['layers'], kind, 'layers')}
    if 'kernel' not in params:
        return {
            key: quantize_base(part, kind, f'{name}/{key}') if isinstance(part, dict) and key != 'router' else part
            for key, part in params.items()
        }
    width = params['kernel'].shape[-2]
    if math.gcd(width, BLOCK) < _LEAST:
        raise InputError(f'--base_dtype={kind}: {name}/kernel has {width} inputs, not a multiple of {_LEAST}')
    return _quantize(params.pop('kernel'), kind) | params


_quantize = jax.jit(quantize, static_argnums=1)


def dequantized(params: Params, dtype) -> Params:
    """The parameters with a `kernel` everywhere, in full; those that have nothing quantised are shared."""
    if 'codes' in params:
        rest = {key: leaf for key, leaf in params.items() if key not in ('codes', 'scales')}
        return {'kernel': dequantize(params['codes'], params['scales'], dtype)} | rest
    return {key: dequantized(part, dtype) if isinstance(part, dict) else part for key, part in params.items()}
