"""Attention in one piece: who sees whom, the scores, and the weighted sum of the values.

Leaves out what holds no more than a block of the scores (blockwise.py, cache.py).
"""

import jax
import jax.numpy as jnp


def visible(segments, positions, key_segments, key_positions, window=None) -> jax.Array:
    """Which keys each query sees: of its segment, at no later position, within the window.

    Padding (segment 0) sees padding, so that no row of the softmax is empty; nobody reads those rows.

    Args:
      segments, positions: int32[B, T] of the queries.
      key_segments, key_positions: int32[B, S].
      window: positions that a query sees, its own included; None for all.

    Returns:
      bool[B, T, S].
    """
    behind = positions[:, :, None] - key_positions[:, None, :]
    seen = (segments[:, :, None] == key_segments[:, None, :]) & (behind >= 0)
    return seen if window is None else seen & (behind < window)


def scores(query, key, mask, scale, soft_cap):
    """[B, T, heads, H], [B, kv_heads, H, S] -> float32[B, kv_heads, heads / kv_heads, T, S]."""
    batch, length, _, width = query.shape
    groups = query.reshape(batch, length, key.shape[1], -1, width).transpose(0, 2, 3, 1, 4)
    # All queries of a key's head in one axis: with two, XLA's CPU products would copy the keys in another order.
    rows = groups.reshape(batch, key.shape[1], -1, width)
    scores = jnp.einsum('bkqh,bkhs->bkqs', rows, key, preferred_element_type=jnp.float32) * scale
    scores = scores.reshape(*groups.shape[:4], -1)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    return jnp.where(mask[:, None, None], scores, -1e30)


def weighted(weights, value):
    """[B, kv_heads, heads / kv_heads, T, S], [B, kv_heads, S, H] -> [B, kv_heads, heads / kv_heads, T, H]."""
    rows = weights.reshape(*weights.shape[:2], -1, weights.shape[-1]).astype(value.dtype)
    return jnp.einsum('bkqs,bksh->bkqh', rows, value).reshape(*weights.shape[:4], -1)


def softmax_product(query, key, value, mask, scale, soft_cap):
    """softmax(scores) v of queries [B, T, heads, H], with the values in the order of `weighted`: [B, T, heads, H]."""
    weights = jax.nn.softmax(scores(query, key, mask, scale, soft_cap), axis=-1)
    return weighted(weights, value).transpose(0, 3, 1, 2, 4).reshape(query.shape)
