"""The shape of a decoder-only transformer, and the embedded sizes by name.

Leaves out how a Hugging Face configuration maps to this one.
"""

import dataclasses

from rlax_ft.errors import InputError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of one transformer.

    Attributes:
      vocab_size: V, rows of the embedding.
      width: D, the residual stream.
      layers: number of blocks; they are stacked and scanned, so compile time does not grow with it.
      heads: query heads.
      kv_heads: key and value heads; each serves heads / kv_heads query heads (arXiv 2305.13245).
      head_dim: width of one head; even, because rotary positions turn pairs.
      mlp_width: hidden width of the gated MLP.
      max_length: longest sequence, in tokens, that prompt plus response may reach.
      rope_theta: base of the rotary frequencies (arXiv 2104.09864).
      norm_eps: epsilon of RMSNorm.
      tied: the LM head is the transposed embedding.
      dtype: name of the dtype of activations; parameters are stored as float32.
      remat: what the backward pass recomputes: `none`, `dots` (keep matrix products only) or `full`.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    max_length: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = True
    dtype: str = 'float32'
    remat: str = 'none'


_SIZES = {
    'tiny': {'width': 32, 'layers': 2, 'heads': 4, 'kv_heads': 2, 'head_dim': 8, 'mlp_width': 96},
    'small': {'width': 64, 'layers': 2, 'heads': 4, 'kv_heads': 2, 'head_dim': 16, 'mlp_width': 192},
    'medium': {'width': 128, 'layers': 4, 'heads': 8, 'kv_heads': 4, 'head_dim': 16, 'mlp_width': 384},
    'large': {'width': 256, 'layers': 4, 'heads': 8, 'kv_heads': 4, 'head_dim': 32, 'mlp_width': 688},
}

SIZES = tuple(_SIZES)


def embedded_config(size: str, *, vocab_size: int, max_length: int) -> ModelConfig:
    """The configuration of an embedded size, for a vocabulary and a context.

    Raises:
      InputError: `size` is not one of `SIZES`.
    """
    if size not in _SIZES:
        raise InputError(f'--model={size}: no such embedded size; use one of {", ".join(SIZES)}')
    return ModelConfig(vocab_size=vocab_size, max_length=max_length, **_SIZES[size])
