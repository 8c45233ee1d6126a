"""Attention by the vendors' kernels: splash (Pallas, TPU) and cuDNN (NVIDIA), on the rows and heads of one device.

Both know causality by place, so they take whole rows, and no mask is ever made. Leaves out which kernel is used where
(attention.py).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.models.blockwise import blockwise_attention
from rlax_ft.parallel.mesh import platform

# What jax.nn.dot_product_attention computes by; a test on a CPU says `xla`.
_CUDNN = 'cudnn'


def splash_attention(
    query, key, value, segments, positions, key_segments, key_positions, *, scale, soft_cap, window, branches=None
) -> jax.Array:
    """Grouped-query attention in its multi-query form, a key head with its queries at a time; interpreted off the TPU.

    Args:
      query: [B, T, heads, H], T a multiple of 128 and H of 64.
      key, value: [B, T, kv_heads, H].
      segments, key_segments: int32[B, T].
      positions, key_positions: not looked at: within a segment, places are positions.
      scale, soft_cap: as in `attend`.
      window: int or None.
      branches: (P, K) of rows that hold a prompt and K responses of equal width; None for plain rows.

    Returns:
      [B, T, heads, H].
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    del positions, key_positions
    batch, length, heads, width = query.shape
    groups = heads // key.shape[2]
    if branches is not None:
        prompt, count = branches
        seen = _branch_mask(masks, length, prompt, count, window)
    else:
        seen = masks.CausalMask((length,) * 2) if window is None else masks.LocalMask((length,) * 2, (window - 1, 0), 0)
    block = math.gcd(length, 512)
    kernel = splash.make_splash_mqa(
        masks.MultiHeadMask([seen] * groups),
        block_sizes=splash.BlockSizes(*(block,) * 8),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=soft_cap,
        interpret=platform() != 'tpu',
    )
    # [B, T, heads, H] -> [B, kv_heads, heads / kv_heads, T, H], [B, kv_heads, T, H].
    query = (query * scale).reshape(batch, length, -1, groups, width).transpose(0, 2, 3, 1, 4)
    key, value = (x.transpose(0, 2, 1, 3) for x in (key, value))
    by_head = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    out = jax.vmap(by_head)(query, key, value, splash.SegmentIds(segments, key_segments))
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width).astype(value.dtype)


def _branch_mask(masks, length, prompt, count, window):
    """Splash's mask of a prompt and the responses behind it, each of which sees the prompt and itself."""
    place = np.arange(length)
    width = (length - prompt) // count
    branch = np.where(place < prompt, -1, (place - prompt) // width)
    position = np.where(place < prompt, place, prompt + (place - prompt) % width)

    class BranchMask(masks.Mask):
        """Made a block at a time, as the kernel's plan asks for it; blocks that nobody sees are not computed."""

        shape = (length, length)

        def __getitem__(self, blocks):
            rows, columns = blocks
            behind = position[rows][:, None] - position[columns][None]
            own = (branch[columns] == -1)[None] | (branch[rows][:, None] == branch[columns][None])
            return own & (behind >= 0) & (behind < (length if window is None else window))

    return BranchMask()


def cudnn_attention(
    query, key, value, segments, positions, key_segments, key_positions, *, scale, soft_cap, window
) -> jax.Array:
    """cuDNN's causal kernel on rows that hold one segment each, padded at either end; blockwise where rows are packed.

    Rows are turned so that their padding stands last, and their lengths are given: no mask of [B, 1, T, T].

    Args:
      query: [B, T, heads, H], bfloat16 or float16.
      key, value: [B, T, kv_heads, H].
      segments, positions, key_segments, key_positions: int32[B, T].
      scale: of the scores.
      soft_cap: None.
      window: int or None.

    Returns:
      [B, T, heads, H]; rows of padding hold anything.
    """
    real = segments > 0
    length, count = segments.shape[1], jnp.sum(real, axis=1)
    first = jnp.argmax(real, axis=1)
    last = length - 1 - jnp.argmax(real[:, ::-1], axis=1)
    ids = jnp.where(real, segments, jnp.max(segments, axis=1, keepdims=True))
    one_run = jnp.all((last - first + 1 == count) | (count == 0)) & jnp.all(ids == ids[:, :1])

    def turned(x, by):
        places = (jnp.arange(length) + by[:, None]) % length
        return jnp.take_along_axis(x, places.reshape(places.shape + (1,) * (x.ndim - 2)), axis=1)

    def causal():
        lengths = jnp.maximum(count, 1)
        out = jax.nn.dot_product_attention(
            *(turned(x, first) for x in (query, key, value)),
            scale=scale,
            is_causal=True,
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            local_window_size=None if window is None else (window - 1, 0),
            implementation=_CUDNN,
        )
        return turned(out, -first).astype(value.dtype)

    def packed():
        places = (segments, positions, key_segments, key_positions)
        return blockwise_attention(query, key, value, *places, scale=scale, soft_cap=soft_cap, window=window)

    return jax.lax.cond(one_run, causal, packed)
