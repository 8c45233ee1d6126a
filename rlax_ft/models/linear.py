"""The linear map that every projection is, with room for a low-rank adapter beside it.

Leaves out how an adapter is made and merged (lora.py).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from rlax_ft.models import fp8
from rlax_ft.models.config import LoRAConfig
from rlax_ft.models.quantized import product


class Linear(nn.Module):
    """y = x W + b, and + scaling (dropout(x) A) B where the collection `lora` holds A and B (arXiv 2106.09685).

    W may stand there as codes and scales (quantized.py).

    Attributes:
      features: width of y.
      dtype: of the product; parameters are cast to it.
      use_bias: whether there is a b.
      init_scale: variance of W times its input width, at initialisation.
      lora: scaling and dropout of the adapter; needed only where there is one.
      matmul: `fp8` multiplies x and W in 8 bits (fp8.py), and nothing else.
    """

    features: int
    dtype: str
    use_bias: bool = False
    init_scale: float = 1.0
    lora: LoRAConfig | None = None
    matmul: str = ''

    @nn.compact
    def __call__(self, x):
        """[..., D] -> [..., features]; dropout is on where the call gives a `dropout` key."""
        # As one plain matrix: on a CPU the backward pass of a product with more axes takes twice as long.
        shape, x = x.shape, x.astype(self.dtype).reshape(-1, x.shape[-1])
        if self.has_variable('params', 'codes'):
            y = product(x, *(self.get_variable('params', name) for name in ('codes', 'scales')), self.dtype)
        else:
            init = nn.initializers.variance_scaling(self.init_scale, 'fan_in', 'normal')
            kernel = self.param('kernel', init, (x.shape[-1], self.features))
            y = fp8.product(x, kernel) if self.matmul == 'fp8' else x @ kernel.astype(self.dtype)
        if self.use_bias:
            y = y + self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
        if self.has_variable('lora', 'A'):
            a, b = (self.get_variable('lora', name).astype(self.dtype) for name in ('A', 'B'))
            if self.lora.dropout and self.has_rng('dropout'):
                kept = jax.random.bernoulli(self.make_rng('dropout'), 1.0 - self.lora.dropout, x.shape)
                x = jnp.where(kept, x / (1.0 - self.lora.dropout), 0.0)
            y = y + (x @ a) @ b * self.lora.scaling
        return y.reshape(*shape[:-1], self.features)
