"""The sampler of a script from shapes alone: weights as they are laid out for decoding, prompts read, tokens drawn.

Leaves out training steps (preflight.py) and the compiler's report (launch/preflight.py).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlax_ft.errors import InputError
from rlax_ft.models.config import ModelConfig
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.parallel.constrain import KINDS
from rlax_ft.parallel.mesh import batch_sharding, fit, make_mesh
from rlax_ft.sampling.layout import decoding_layout, decoding_shardings, gathered_fits
from rlax_ft.sampling.sampler import generate, shared_group

# Scripts whose batches are sampled.
SAMPLING = ('ppo', 'grpo')


@dataclasses.dataclass(frozen=True)
class PlannedDecoding:
    """A sampler to be compiled.

    Attributes:
      lower: gives the lowered program.
      weights: shapes, as they are laid out.
      shardings: of the weights.
      cache: shapes of keys and values, those that groups share first.
      cache_shardings: of each.
      whole: nothing of the weights stays split over `fsdp` and `expert`.
      rows: under way at once.
      prompt: tokens of a prompt.
      new: tokens drawn.
    """

    lower: Callable[[], Any]
    weights: Any
    shardings: Any
    cache: Any
    cache_shardings: Any
    whole: bool
    rows: int
    prompt: int
    new: int


def plan_decoding(script: str, settings, config: ModelConfig, length: int, memory: float) -> PlannedDecoding:
    """The sampler of a script by its flags, for --batch_size rows of half a prompt and half a completion.

    Args:
      script: one of SAMPLING.
      settings: of that script.
      config: of the model; an adapter counts as merged.
      length: tokens of prompt and completion.
      memory: of a chip, which decides whether weights are gathered once.

    Raises:
      InputError: the script samples nothing, or refills rows.
    """
    if script not in SAMPLING:
        raise InputError(f'--decode: --script={script} draws no batches; use one of {", ".join(SAMPLING)}')
    if settings.engine_rows:
        raise InputError(
            f'--engine_rows={settings.engine_rows}: --decode compiles rows that are drawn together; leave it out, and '
            f'give --batch_size={settings.engine_rows} for as many under way'
        )
    config, mesh = dataclasses.replace(config, lora=None, remat='none'), make_mesh(settings.mesh)
    model, dtype = jax.eval_shape(partial(init_params, config), jax.random.key(0)), jnp.dtype(config.dtype)
    prompt, new, rows = length // 2, length - length // 2, settings.batch_size
    apply = Transformer(config).apply
    with jax.set_mesh(mesh):
        whole = gathered_fits(model, dtype, jax.sharding.get_abstract_mesh(), memory)
        weights = jax.eval_shape(lambda params: decoding_layout(params, dtype, whole=whole), model)
        group = shared_group(rows, settings.group_size)
        sizes = [(rows // group, prompt), (rows, new)] if group > 1 else [(rows, prompt + new)]
        caches = [
            jax.eval_shape(lambda p, size=size: apply({'params': p}, *size, method='init_cache'), weights)
            for size in sizes
        ]
    shardings = decoding_shardings(weights, mesh, whole=whole)
    cache = [(part.key, part.value) for part in caches]
    kinds = {5: KINDS['stacked_cache'], 4: KINDS['cache']}
    split = lambda leaf: NamedSharding(mesh, fit(kinds[leaf.ndim], leaf.shape, mesh))  # noqa: E731

    def sample(params, prompts, mask, key):
        how = dict(max_new_tokens=new, temperature=settings.temperature, eos_ids=(2,), group_size=settings.group_size)
        return generate(apply, {'params': params}, prompts, mask, key, **how)

    def lower():
        place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
        shape = jax.ShapeDtypeStruct((rows, prompt), jnp.int32)
        prompts = place(shape, batch_sharding(mesh, shape))
        key = jax.eval_shape(lambda: jax.random.key(0))
        with jax.set_mesh(mesh):
            return jax.jit(sample).lower(
                jax.tree.map(place, weights, shardings), prompts, prompts, place(key, NamedSharding(mesh, P()))
            )

    return PlannedDecoding(
        lower,
        weights,
        shardings,
        cache,
        jax.tree.map(split, cache),
        whole,
        rows,
        prompt,
        new,
    )
