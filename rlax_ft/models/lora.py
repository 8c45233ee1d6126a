"""Low-rank adapters: a collection `lora` beside frozen parameters (arXiv 2106.09685).

The adapter holds leaves A and B for each map that it adapts, stacked over layers; without it the same variables are the
reference policy. Leaves out the adapted product itself (linear.py) and PEFT's folders (peft.py).
"""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_ft.errors import InputError
from rlax_ft.models.config import LoRAConfig
from rlax_ft.types import Params


def adaptable(params: Params) -> dict[str, tuple[int, ...]]:
    """The linear maps of a Transformer's layers that can have an adapter: name -> shape [L, in, out] of the kernel."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params['layers'])[0]:
        *name, last = (key.key for key in path)
        # Experts are stacked once more, and a router is too small to be worth a low rank.
        if last == 'kernel' and len(leaf.shape) == 3 and name[-1] != 'router':
            named['/'.join(name)] = leaf.shape
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
    """W + scaling A B for every adapted map: the parameters of a plain Transformer, in the dtypes of `params`.

    Args:
      params: of the `Transformer`; their arrays are shared where nothing changes.
      adapter: of `init_adapter`'s form.
      lora: its scaling.
    """
    if 'A' in adapter:
        update = jnp.einsum('lir,lro->lio', adapter['A'], adapter['B'], preferred_element_type=jnp.float32)
        kernel = params['kernel']
        return {**params, 'kernel': (kernel.astype(jnp.float32) + lora.scaling * update).astype(kernel.dtype)}
    return {name: merge(part, adapter[name], lora) if name in adapter else part for name, part in params.items()}


def attach(params: Params, base: Params | None, key: jax.Array | None = None) -> Params:
    """What an `adapted` apply takes as parameters: each adapter in `params` together with the base, which it shares.

    Args:
      params: {'lora': adapter}, with a `head` for a scalar model; or a dict of such, like PPO's policy and value.
      base: frozen parameters of a `Transformer`; None gives `params` as they are.
      key: of the dropout, in training.
    """
    if base is None:
        return params
    if 'lora' not in params:
        return {name: attach(part, base, key) for name, part in params.items()}
    return {**params, 'base': base, **({} if key is None else {'key': key})}


def adapted(apply: Callable) -> Callable:
    """`Transformer.apply` or `ScalarModel.apply` on what `attach` gives, as a function of the same shape.

    Without a `lora` entry it is the base alone: the reference policy, at no further memory.
    """

    def applied(variables, *args, **kwargs):
        given = variables['params']
        params, adapter = given['base'], given.get('lora')
        if 'head' in given:
            params, adapter = {'backbone': params, 'head': given['head']}, {'backbone': adapter}
        collections = {'params': params} if given.get('lora') is None else {'params': params, 'lora': adapter}
        if 'key' in given:
            kwargs['rngs'] = {'dropout': given['key']}
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
