"""Several scalar models on one base, computed under one vmap: heads on one backbone, or whole adapters on a frozen one.

What members share is read once; parameters are those of one model, with a leading axis [E] on what each member has of
its own: `head`, and `lora` where there is one. Leaves out what the members are for (rewards/ensemble.py).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_ft.models.config import LoRAConfig
from rlax_ft.models.heads import sequence_scores
from rlax_ft.models.lora import Adapted, Adapter
from rlax_ft.types import BranchBatch, Params, TokenBatch

_OWN = ('head', 'lora')


def over_members(function: Callable, params: Params, *others, in_axes=()):
    """`function(member's params, *others)` of every member, the results stacked along a new first axis [E].

    Args:
      function: of the parameters of one member.
      params: of the ensemble.
      *others: further arguments.
      in_axes: where each of them has the members' axis; None: it is the same for all.
    """
    return jax.vmap(function, in_axes=(_axes(params), *in_axes))(params, *others)


def ensemble_scores(apply: Callable, params: Params, batch: TokenBatch | BranchBatch) -> jax.Array:
    """`heads.sequence_scores` of every member, float32[E, B], or [E, B * K] of branches."""
    return over_members(lambda member: sequence_scores(apply, member, batch), params)


def member(params: Params, index: int) -> Params:
    """The parameters of one member."""
    pick = lambda part: jax.tree.map(lambda leaf: leaf[index], part)  # noqa: E731
    if isinstance(params, Adapter):
        return pick(params)
    return {name: pick(part) if name in _OWN else part for name, part in params.items()}


def beside_first(adapters: Params, lora: LoRAConfig) -> tuple[Params, LoRAConfig]:
    """Adapters [E] of a base as adapters of the base with the first one merged in: A' = [A_e, A_0], B' = s [B_e, -B_0].

    Args:
      adapters: of `lora.init_adapter`'s form, stacked along a first axis [E].
      lora: whose scaling s is.

    Returns:
      (the adapters, of twice the rank; their configuration, of scaling 1).
    """
    if 'A' not in adapters:
        return {name: beside_first(part, lora)[0] for name, part in adapters.items()}, _unscaled(2 * lora.rank)
    a, b = adapters['A'], lora.scaling * adapters['B']
    first = lambda x: jnp.broadcast_to(x[:1], x.shape)  # noqa: E731
    both = {'A': jnp.concatenate([a, first(a)], axis=-1), 'B': jnp.concatenate([b, -first(b)], axis=-2)}
    return both, _unscaled(2 * lora.rank)


def _axes(params):
    """0 for what each member has of its own, None for what they share."""
    if isinstance(params, Adapted):
        return Adapted(base=None, lora=0, head=0, key=None)
    if isinstance(params, Adapter):
        return Adapter(lora=0, head=0)
    return {name: 0 if name in _OWN else None for name in params}


def _unscaled(rank):
    return LoRAConfig(rank, alpha=float(rank))
