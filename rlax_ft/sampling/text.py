"""Sampling for many prompts, in batches of one shape, and functions over many rows in the same way.

Leaves out what is done with the samples.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.data.codec import Codec, Text
from rlax_ft.data.ragged import batch_width
from rlax_ft.data.rows import prompt_arrays
from rlax_ft.parallel.placement import fetch, spread
from rlax_ft.sampling.engine import generate_many
from rlax_ft.sampling.layout import laid_out
from rlax_ft.sampling.progress import shown
from rlax_ft.sampling.sampler import generate
from rlax_ft.types import ApplyFn, Rollout


def make_sampler(
    apply: ApplyFn,
    codec: Codec,
    *,
    rows: int | None = None,
    temperature: float = 1.0,
    group_size: int = 1,
    **truncation,
) -> Callable:
    """A compiled `sample(params, prompts, prompt_mask, key) -> Rollout` for this codec's lengths and ids.

    Parameters are laid out for decoding at their first call, outside the compiled function, and stay so as long as
    they live.

    Args:
      apply: of the policy.
      codec: how text becomes tokens.
      rows: how many completions the rollout engine has under way at a time; None samples all of a batch at once.
      temperature: of the sampling.
      group_size: so many adjacent rows have the same prompt, which is read once; the engine reads every row's.
      **truncation: top_k, top_p, min_p.
    """
    sampler = partial(generate, group_size=group_size) if rows is None else partial(generate_many, rows=rows)

    def sample(params, prompts, prompt_mask, key):
        return sampler(
            apply,
            {'params': params},
            prompts,
            prompt_mask,
            key,
            max_new_tokens=codec.max_new_tokens,
            temperature=temperature,
            eos_ids=codec.eos_ids,
            pad_id=codec.pad_id,
            **truncation,
        )

    compiled = jax.jit(sample)
    return lambda params, *rows: compiled(laid_out(apply, params), *spread(rows))


def sample_prompts(
    sample: Callable, params, codec: Codec, prompts: Sequence[Text], key: jax.Array, *, batch_size: int
) -> Rollout:
    """One completion of each prompt, as a Rollout of numpy arrays [N, ...], whose samples no batching changes.

    Args:
      sample: what `make_sampler` gave.
      params: of the policy.
      codec: how text becomes tokens.
      prompts: N texts.
      key: random key; each prompt draws with its own, made from it.
      batch_size: rows sampled at once, prompts of like length together; the last batch is filled up and cut.
    """
    tokens, mask = prompt_arrays(codec, prompts)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(prompts)))
    order = np.argsort(mask.sum(axis=1), kind='stable')
    parts = []
    for start in shown(range(0, len(prompts), batch_size), 'sampling'):
        rows = order[np.arange(start, start + batch_size) % len(prompts)]
        parts.append(sample(params, *trim_prompts(tokens[rows], mask[rows]), keys[rows]))
        jax.block_until_ready(parts[-2:-1])  # The device is one batch ahead, no more.
    sampled = _join([part.replace(prompts=None, prompt_mask=None) for part in parts], len(prompts))
    sampled = jax.tree.map(lambda leaf: leaf[np.argsort(order)], sampled)
    return sampled.replace(prompts=tokens, prompt_mask=mask)


def trim_prompts(tokens: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left-padded prompts without the columns that all of them pad, down to a `batch_width`: few widths compile.

    On several hosts each gives the whole batch, so that all compile the same.
    """
    width = min(mask.shape[1], batch_width(int(mask.sum(axis=1).max()), mask.shape[1]))
    return tokens[:, -width:], mask[:, -width:]


def map_rows(function: Callable, rows, *, batch_size: int):
    """`function` over a struct of arrays [N, ...] in batches of one shape; the results, numpy, joined along N.

    Args:
      function: a compiled function of a struct [batch_size, ...]; every leaf of its result has that leading axis.
        Within `jax.set_mesh` it gets rows that are split over the mesh.
      rows: a pytree of arrays [N, ...].
      batch_size: rows at once; the last batch is filled up and cut.
    """
    size = jax.tree.leaves(rows)[0].shape[0]
    parts = []
    for start in shown(range(0, size, batch_size), 'scoring'):
        index = np.arange(start, start + batch_size) % size
        parts.append(function(spread(jax.tree.map(lambda leaf, index=index: leaf[index], rows))))
        # The device is one batch ahead, no more: hundreds in flight starve each other on virtual devices.
        parts[-2:-1] = fetch(parts[-2:-1])
    return _join(parts, size)


def _join(parts, size):
    # The device runs ahead while the first batches are fetched.
    return jax.tree.map(lambda *leaves: np.concatenate([fetch(leaf) for leaf in leaves])[:size], *parts)


def rollout_logps(rollout: Rollout) -> jax.Array:
    """The sampler's log-probabilities, aligned with `models.scoring.rollout_batch`: float32[B, P + N], 0 on prompts."""
    return jnp.concatenate([jnp.zeros(rollout.prompts.shape, jnp.float32), rollout.logps], axis=1)
