"""Low-rank adapters: a collection `lora` beside frozen parameters (arXiv 2106.09685).

The adapter holds leaves A and B for each map that it adapts, stacked over layers; without it the same variables are the
reference policy. Leaves out the adapted product itself (linear.py) and PEFT's folders (peft.py).
"""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from rlax_ft.errors import InputError
from rlax_ft.models.config import LoRAConfig
from rlax_ft.models.quantized import dequantized, kernel_shape
from rlax_ft.types import ApplyFn, Params


@struct.dataclass
class Adapter:
    """What is trained beside a frozen base.

    Attributes:
      lora: {'layers': {..., 'query': {'A', 'B'}}}, as `init_adapter` makes it.
      head: of a scalar model; None for a policy.
    """

    lora: Params
    head: Params | None = None


@struct.dataclass
class Adapted:
    """What an `adapted` apply takes as parameters.

    Attributes:
      base: of a `Transformer`, which nothing changes.
      lora: of an `Adapter`; None is the base alone.
      head: of a scalar model; None for a policy.
      key: of the adapters' dropout; None: no dropout.
    """

    base: Params
    lora: Params | None = None
    head: Params | None = None
    key: jax.Array | None = None


def adaptable(params: Params) -> dict[str, tuple[int, ...]]:
    """The linear maps of a Transformer's layers that can have an adapter: name -> shape [L, in, out] of the kernel."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params['layers'])[0]:
        *name, last = (key.key for key in path)
        # Experts are stacked once more, and a router is too small to be worth a low rank.
        if last in ('kernel', 'codes') and len(leaf.shape) == 3 and name[-1] != 'router':
            named['/'.join(name)] = leaf.shape if last == 'kernel' else kernel_shape({last: leaf})
    return named


def init_adapter(params: Params, lora: LoRAConfig, key: jax.Array) -> Params:
    """A fresh adapter: A uniform in +-1/sqrt(in), B = 0, so that it changes nothing, to the bit.

    Args:
      params: of the `Transformer` that it adapts, or their shapes.
      lora: rank and targets.
      key: random key.

    Returns:
      {'layers': {..., 'query': {'A': float32[L, in, r], 'B': float32[L, r, out]}}}.

    Raises:
      InputError: the targets name no linear map of the model.
    """
    shapes = adaptable(params)
    chosen = [name for name in shapes if re.search(lora.targets, name)]
    if not chosen:
        raise InputError(f'--lora_targets={lora.targets}: matches none of {", ".join(shapes)}')
    adapter: dict = {'layers': {}}
    for name, subkey in zip(chosen, jax.random.split(key, len(chosen))):
        layers, width, features = shapes[name]
        at = adapter['layers']
        for part in name.split('/'):
            at = at.setdefault(part, {})
        bound = width**-0.5
        at['A'] = jax.random.uniform(subkey, (layers, width, lora.rank), minval=-bound, maxval=bound)
        at['B'] = jnp.zeros((layers, lora.rank, features))
    return adapter


def merge(params: Params, adapter: Params, lora: LoRAConfig) -> Params:
    """W + scaling A B for every adapted map, the parameters of a plain Transformer.

    What is adapted comes out as float32: in the dtype of a bfloat16 base most of a small update would be rounded away.

    Args:
      params: of the `Transformer`; their arrays are shared where nothing changes; codes are written in full.
      adapter: of `init_adapter`'s form.
      lora: its scaling.
    """
    return _merge(dequantized(params, jnp.float32), adapter, lora)


def _merge(params, adapter, lora):
    if 'A' in adapter:
        a, b = (adapter[side].astype(jnp.float32) for side in ('A', 'B'))
        update = jnp.einsum('lir,lro->lio', a, b, precision=jax.lax.Precision.HIGHEST)
        return {**params, 'kernel': params['kernel'].astype(jnp.float32) + lora.scaling * update}
    return {name: _merge(part, adapter[name], lora) if name in adapter else part for name, part in params.items()}


def attach(params: Params, base: Params | None, key: jax.Array | None = None) -> Params:
    """What an `adapted` apply takes as parameters: each adapter in `params` together with the base, which it shares.

    Args:
      params: Adapter, or a dict of such, like PPO's policy and value.
      base: frozen parameters of a `Transformer`; None gives `params` as they are.
      key: of the dropout, in training.
    """
    if base is None:
        return params
    if isinstance(params, Adapter):
        return Adapted(base, params.lora, params.head, key)
    return {name: attach(part, base, key) for name, part in params.items()}


def adapted(apply: ApplyFn) -> ApplyFn:
    """`Transformer.apply` or `ScalarModel.apply` on `Adapted` parameters, as a function of the same shape.

    Without an adapter it is the base alone: the reference policy, at no further memory.
    """

    def applied(variables, *args, **kwargs):
        given = variables['params']
        params, adapter = given.base, given.lora
        if given.head is not None:
            params, adapter = {'backbone': params, 'head': given.head}, {'backbone': adapter}
        collections = {'params': params} if given.lora is None else {'params': params, 'lora': adapter}
        if given.key is not None:
            kwargs['rngs'] = {'dropout': given.key}
        return apply(collections, *args, **kwargs)

    return applied


def adapter_objective(objective: Callable, *, dropout: bool = False) -> Callable:
    """An objective of adapters: gradients reach `params` only, the base comes with each call and stays as it is.

    Args:
      objective: `loss_fn(params, batch, key)`, made with `adapted` apply functions.
      dropout: each call gives its key to the adapters' dropout.

    Returns:
      `loss_fn(params, batch, key, base, *frozen)`; `frozen` is what the objective itself reads and does not train.
    """

    def loss_fn(params, batch, key, base, *frozen):
        return objective(attach(params, base, key if dropout else None), batch, key, *frozen)

    return loss_fn
