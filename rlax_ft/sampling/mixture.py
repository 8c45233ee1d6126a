"""Two policies sampled as one: the geometric mixture pi^(1 - s) pi_ref^s, token by token (Nash-MD, arXiv 2312.00886).

Leaves out the sampler, which takes this `apply` as any other.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def mixture_apply(apply: Callable, share: float) -> Callable:
    """An apply function of log pi_mix = (1 - s) log pi + s log pi_ref + const, for parameters {'policy', 'reference'}.

    Args:
      apply: of both policies; `Transformer.apply` or of the same shape.
      share: s, of the reference.
    """

    def applied(variables, *args, method=None, **kwargs):
        both = [{'params': variables['params'][name]} for name in ('policy', 'reference')]
        if method == 'init_cache':
            return tuple(apply(own, *args, method=method, **kwargs) for own in both)
        if method == 'unembed':
            halves = jnp.split(args[0], 2, axis=-1)
            logps = [jax.nn.log_softmax(apply(own, half, method=method)) for own, half in zip(both, halves)]
            return (1.0 - share) * logps[0] + share * logps[1]
        *rest, caches = args
        outputs = [apply(own, *rest, cache, **kwargs) for own, cache in zip(both, caches)]
        return jnp.concatenate([hidden for hidden, _ in outputs], axis=-1), tuple(cache for _, cache in outputs)

    return applied
