"""A mixture of experts in place of the MLP: every token goes to its k likeliest experts, and none is dropped.

Leaves out load-balancing losses and capacity limits.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from rlax_ft.models.config import ModelConfig
from rlax_ft.models.quantized import dequantize
from rlax_ft.parallel.constrain import active_mesh, over_devices

ACTIVATIONS = {
    'silu': nn.silu,
    'gelu': lambda x: nn.gelu(x, approximate=False),
    'gelu_tanh': nn.gelu,
    'relu': nn.relu,
}


class MixtureOfExperts(nn.Module):
    """sum over the top k of softmax(x R) of p_e down_e(act(gate_e(x)) * up_e(x)) (arXiv 2401.04088).

    Tokens are sorted by expert and multiplied as ragged groups, so the work is that of k experts a token, whoever is
    chosen. Parameters: `router/kernel` [D, E], `gate/kernel` and `up/kernel` [E, D, F], `down/kernel` [E, F, D].
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        """[B, T, D] -> [B, T, D]."""
        c = self.config
        wide, narrow = (c.experts, c.width, c.mlp_width), (c.experts, c.mlp_width, c.width)
        router = _Kernel((c.width, c.experts), name='router')()
        kernels = [_Kernel(wide, name=name)() for name in ('gate', 'up')]
        kernels.append(_Kernel(narrow, 0.5 / c.layers, name='down')())
        if not isinstance(kernels[0], tuple):
            return self._mix(x, router, *(kernel.astype(c.dtype) for kernel in kernels))

        def mix(x, router, *kernels):
            return self._mix(x, router, *(dequantize(*kernel, c.dtype) for kernel in kernels))

        # Else the backward pass would keep every layer's experts in full.
        return jax.checkpoint(mix, prevent_cse=False)(x, router, *kernels)

    def _mix(self, *arguments):
        kinds = ('residual', None, 'expert_in', 'expert_in', 'expert_out')
        # Tokens are sorted among those of their device, which gathers the experts that it does not have.
        mesh = active_mesh(*arguments)
        split = mesh is not None and mesh.shape.get('tensor', 1) > 1
        local = partial(self._apply_experts, axis='tensor' if split else None)
        mapped = over_devices(local, kinds, 'residual', arguments)
        return self._apply_experts(*arguments) if mapped is None else mapped(*arguments)

    def _apply_experts(self, x, router, gate, up, down, *, axis=None):
        """[B, T, D] -> [B, T, D]; `axis` is the mapped one over which the experts' hidden width is split."""
        c = self.config
        tokens = x.reshape(-1, c.width)
        weights, chosen = self._route(tokens, router)
        order = jnp.argsort(chosen.reshape(-1), stable=True)
        sizes = jnp.bincount(chosen.reshape(-1), length=c.experts)
        source = order // c.experts_per_token
        rows = tokens[source].astype(c.dtype)
        hidden = ACTIVATIONS[c.activation](jax.lax.ragged_dot(rows, gate, sizes))
        hidden = hidden * jax.lax.ragged_dot(rows, up, sizes)
        out = jax.lax.ragged_dot(hidden, down, sizes)
        out = out * weights.reshape(-1)[order][:, None].astype(out.dtype)
        out = jnp.zeros_like(tokens, out.dtype).at[source].add(out).reshape(x.shape)
        return out if axis is None else jax.lax.psum(out, axis)

    def _route(self, tokens, router):
        """[N, D] -> (float32[N, k], int32[N, k]): the weights of each token's experts, and which they are."""
        c = self.config
        logits = jnp.matmul(tokens, router.astype(tokens.dtype), preferred_element_type=jnp.float32)
        weights, chosen = jax.lax.top_k(jax.nn.softmax(logits), c.experts_per_token)
        if c.normalized_experts:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        return weights, chosen


class _Kernel(nn.Module):
    """A parameter `kernel`, or its codes and scales, under a name of its own: paths end as a dense model's do."""

    shape: tuple[int, ...]
    scale: float = 1.0

    @nn.compact
    def __call__(self):
        if self.has_variable('params', 'codes'):
            return tuple(self.get_variable('params', name) for name in ('codes', 'scales'))
        init = nn.initializers.variance_scaling(self.scale, 'fan_in', 'normal', batch_axis=range(len(self.shape) - 2))
        return self.param('kernel', init, self.shape)
