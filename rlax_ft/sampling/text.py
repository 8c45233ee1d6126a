"""Sampling for many prompts, in batches of one shape, and functions over many rows in the same way.

Leaves out what is done with the samples.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.data.batches import Codec, prompt_arrays
from rlax_ft.models.transformer import fuse_projections
from rlax_ft.sampling.sampler import generate
from rlax_ft.types import Rollout


def make_sampler(apply: Callable, codec: Codec, *, temperature: float = 1.0, **truncation) -> Callable:
    """A compiled `sample(params, prompts, prompt_mask, key) -> Rollout` for this codec's lengths and ids."""

    def sample(params, prompts, prompt_mask, key):
        return generate(
            apply,
            {'params': fuse_projections(params) if 'layers' in params else params},
            prompts,
            prompt_mask,
            key,
            max_new_tokens=codec.max_new_tokens,
            temperature=temperature,
            eos_ids=codec.eos_ids,
            pad_id=codec.pad_id,
            **truncation,
        )

    return jax.jit(sample)


def sample_prompts(
    sample: Callable, params, codec: Codec, prompts: list[str], key: jax.Array, *, batch_size: int
) -> Rollout:
    """One completion of each prompt, as a Rollout of numpy arrays [N, ...].

    Args:
      sample: what `make_sampler` gave.
      params: of the policy.
      codec: how text becomes tokens.
      prompts: N texts.
      key: random key; each batch draws its own from it.
      batch_size: rows sampled at once; the last batch is filled up and cut.
    """
    tokens, mask = prompt_arrays(codec, prompts)
    keys = jax.random.split(key, -(-len(prompts) // batch_size))
    parts = []
    for i, start in enumerate(range(0, len(prompts), batch_size)):
        rows = np.arange(start, start + batch_size) % len(prompts)
        parts.append(sample(params, tokens[rows], mask[rows], keys[i]))
    return _join(parts, len(prompts))


def map_rows(function: Callable, rows, *, batch_size: int):
    """`function` over a struct of arrays [N, ...] in batches of one shape; the results, numpy, joined along N.

    Args:
      function: a compiled function of a struct [batch_size, ...]; every leaf of its result has that leading axis.
      rows: a pytree of arrays [N, ...].
      batch_size: rows at once; the last batch is filled up and cut.
    """
    size = jax.tree.leaves(rows)[0].shape[0]
    parts = []
    for start in range(0, size, batch_size):
        index = np.arange(start, start + batch_size) % size
        parts.append(function(jax.tree.map(lambda leaf, index=index: leaf[index], rows)))
    return _join(parts, size)


def _join(parts, size):
    # The device runs ahead while the first batches are fetched.
    return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves])[:size], *parts)


def rollout_logps(rollout: Rollout) -> jax.Array:
    """The sampler's log-probabilities, aligned with `models.scoring.rollout_batch`: float32[B, P + N], 0 on prompts."""
    return jnp.concatenate([jnp.zeros(rollout.prompts.shape, jnp.float32), rollout.logps], axis=1)
