"""A mixture of experts in place of the MLP: every token goes to its k likeliest experts, and none is dropped.

Leaves out load-balancing losses and capacity limits.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from rlax_ft.models.config import ModelConfig

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
        tokens = x.reshape(-1, c.width)
        weights, chosen = self._route(tokens)
        order = jnp.argsort(chosen.reshape(-1), stable=True)
        sizes = jnp.bincount(chosen.reshape(-1), length=c.experts)
        source = order // c.experts_per_token

        def each(rows, name, shape, scale=1.0):
            kernel = _Kernel((c.experts, *shape), scale, name=name)()
            return jax.lax.ragged_dot(rows, kernel.astype(c.dtype), sizes)

        rows = tokens[source].astype(c.dtype)
        gate = ACTIVATIONS[c.activation](each(rows, 'gate', (c.width, c.mlp_width)))
        hidden = gate * each(rows, 'up', (c.width, c.mlp_width))
        out = each(hidden, 'down', (c.mlp_width, c.width), 0.5 / c.layers)
        out = out * weights.reshape(-1)[order][:, None].astype(out.dtype)
        return jnp.zeros_like(tokens, out.dtype).at[source].add(out).reshape(x.shape)

    def _route(self, tokens):
        """[N, D] -> (float32[N, k], int32[N, k]): the weights of each token's experts, and which they are."""
        c = self.config
        router = _Kernel((c.width, c.experts), name='router')()
        logits = jnp.matmul(tokens, router.astype(tokens.dtype), preferred_element_type=jnp.float32)
        weights, chosen = jax.lax.top_k(jax.nn.softmax(logits), c.experts_per_token)
        if c.normalized_experts:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        return weights, chosen


class _Kernel(nn.Module):
    """A parameter `kernel` under a name of its own, so that paths end as those of a dense model do."""

    shape: tuple[int, ...]
    scale: float = 1.0

    @nn.compact
    def __call__(self):
        init = nn.initializers.variance_scaling(self.scale, 'fan_in', 'normal', batch_axis=range(len(self.shape) - 2))
        return self.param('kernel', init, self.shape)
