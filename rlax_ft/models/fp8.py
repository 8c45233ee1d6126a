"""Matrix products in 8-bit floating point, for chips that multiply it faster (arXiv 2209.05433).

Rows of one factor and columns of the other are scaled, each by its own largest number, so that a row's product does not
hang on the rows beside it. Leaves out which products those are (linear.py).
"""

import jax
import jax.numpy as jnp

# What is multiplied in the forward pass, and gradients, which reach further.
FORWARD, GRADIENT = jnp.float8_e4m3fn, jnp.float8_e5m2

# TPUs without 8-bit floating point, by how their names begin.
_TPUS_WITHOUT = ('TPU v2', 'TPU v3', 'TPU v4', 'TPU v5', 'TPU v6')
_FIRST_GPU = 8.9  # Compute capability: Ada.


def scaled(x: jax.Array, axis: int, dtype) -> tuple[jax.Array, jax.Array]:
    """(x / s in `dtype`, s): s is the largest |x| along `axis`, kept with size 1, over the largest of `dtype`."""
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0) / float(jnp.finfo(dtype).max)
    return (x / scale).astype(dtype), scale


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x[N, in] times kernel[in, out] with both in e4m3; gradients are products of e5m2 with e4m3, summed in float32.

    Factors are scaled along what is summed over: y = s_x (x / s_x) (W / s_w) s_w with s_x[N, 1] and s_w[1, out]. In the
    backward pass s_w and s_x belong to what is summed over, and go into the gradient before it is scaled.
    """
    return _forward(x, kernel)[0]


def _forward(x, kernel):
    (narrow, rows), (codes, columns) = scaled(x, 1, FORWARD), scaled(kernel, 0, FORWARD)
    y = _dot(narrow, codes, 1, 0) * rows * columns
    return y.astype(x.dtype), (narrow, rows, kernel, jnp.zeros((), x.dtype))


def _backward(saved, gradient):
    narrow, rows, kernel, like = saved
    codes, columns = scaled(kernel, 0, FORWARD)
    of_rows, scale = scaled(gradient * columns, 1, GRADIENT)
    to_x = _dot(of_rows, codes, 1, 1) * scale
    of_columns, scale = scaled(gradient * rows, 0, GRADIENT)
    to_kernel = _dot(narrow, of_columns, 0, 0) * scale
    return to_x.astype(like.dtype), to_kernel.astype(kernel.dtype)


product.defvjp(_forward, _backward)


def _dot(a, b, of_a, of_b):
    return jax.lax.dot_general(a, b, (((of_a,), (of_b,)), ((), ())), preferred_element_type=jnp.float32)


def lacks_fp8(device: jax.Device) -> str:
    """The name of a chip that would only widen the numbers again; empty for one that multiplies them, and for CPUs."""
    kind = device.device_kind
    old = float(getattr(device, 'compute_capability', _FIRST_GPU)) < _FIRST_GPU if device.platform == 'gpu' else False
    return kind if old or kind.startswith(_TPUS_WITHOUT) else ''
