"""The shape of a decoder-only transformer, and the embedded sizes by name.

Leaves out how a Hugging Face configuration maps to this one (families.py).
"""

import dataclasses
from typing import Any

from rlax_ft.errors import InputError


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """A low-rank adapter: y += scaling * (dropout(x) A) B on the linear maps that it names (arXiv 2106.09685).

    Attributes:
      rank: r, columns of A and rows of B.
      alpha: scaling is alpha / r.
      dropout: share of the adapter's inputs that training sets to 0.
      targets: regular expression on paths such as `attention/query` or `mlp/down`.
      rslora: scaling is alpha / sqrt(r), so that it does not shrink with the rank (arXiv 2312.03732).
    """

    rank: int
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str = 'attention|mlp'
    rslora: bool = False

    @property
    def scaling(self) -> float:
        """What the adapter's output is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of one transformer.

    Attributes:
      vocab_size: V, rows of the embedding.
      width: D, the residual stream.
      layers: number of blocks; they are stacked and scanned, so compile time does not grow with it.
      heads: query heads.
      kv_heads: key and value heads; each serves heads / kv_heads query heads (arXiv 2305.13245).
      head_dim: width of one head.
      mlp_width: hidden width of the MLP, or of each expert.
      max_length: longest sequence, in tokens, that prompt plus response may reach.
      rope_theta: base of the rotary frequencies (arXiv 2104.09864).
      norm_eps: epsilon of every norm.
      tied: the LM head is the transposed embedding.
      dtype: name of the dtype of activations; parameters keep the dtype that they have.
      remat: what the backward pass recomputes: `none`, `dots` (keep matrix products only) or `full`.
      kernel: what computes attention, one of attention.KERNELS.
      matmul: `fp8` multiplies in 8 bits where a dense matrix of the layers multiplies (fp8.py); empty: in `dtype`.
      family: which of families.FAMILIES the model is written as.
      norm: `rms`, `rms_plus_one` (the scale is 1 + its parameter) or `layer` (layer norm with a bias).
      pre_norm: attention and MLP read a norm of the residual stream.
      post_norm: what attention and MLP give is normed before it is added.
      parallel: attention and MLP read the same residual stream, and both are added.
      qk_norm: `none`, `head` (queries and keys are normed head by head) or `full` (over all heads at once).
      qkv_bias: queries, keys and values have biases.
      out_bias: attention's output has a bias.
      mlp_bias: the MLP's maps have biases.
      gated: down(act(gate(x)) * up(x)) (arXiv 2002.05202), or down(act(up(x))).
      activation: `silu`, `gelu`, `gelu_tanh` or `relu`.
      learned_positions: an embedding of positions in place of rotary ones.
      rotary_fraction: share of each head that is turned, from its front.
      rope_scaling: entries of Hugging Face's rope_parameters, sorted: rope_type llama3, linear or yarn and its numbers.
      local_rope_theta: base of the local layers' frequencies; None where it is the others', with their scaling.
      window: how many places a query of a local layer sees.
      local_layers: bool by layer; empty where none is local.
      nope_layers: bool by layer, True where there are no rotary positions; empty where all have them.
      attention_scale: of the scores; None is 1 / sqrt(head_dim).
      attention_soft_cap: scores become cap tanh(scores / cap) (arXiv 2408.00118); None leaves them.
      final_soft_cap: the same for logits.
      scaled_embedding: embeddings are multiplied by sqrt(D).
      experts: number of experts of each MLP; 0 for a dense one.
      experts_per_token: how many of them a token goes to, none ever dropped.
      normalized_experts: the weights of a token's experts are divided by their sum.
      lora: the adapter that the collection `lora` is to hold, or None.
      notes: JSON text of what the folder that it was read from says besides; written back by save_pretrained.
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
    kernel: str = 'auto'
    matmul: str = ''
    family: str = 'llama'
    norm: str = 'rms'
    pre_norm: bool = True
    post_norm: bool = False
    parallel: bool = False
    qk_norm: str = 'none'
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    gated: bool = True
    activation: str = 'silu'
    learned_positions: bool = False
    rotary_fraction: float = 1.0
    rope_scaling: tuple[tuple[str, float | str], ...] = ()
    local_rope_theta: float | None = None
    window: int | None = None
    local_layers: tuple[bool, ...] = ()
    nope_layers: tuple[bool, ...] = ()
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    scaled_embedding: bool = False
    experts: int = 0
    experts_per_token: int = 0
    normalized_experts: bool = True
    lora: LoRAConfig | None = None
    notes: str = dataclasses.field(default='', compare=False, repr=False)

    @property
    def rotary_dim(self) -> int:
        """How many of a head's numbers are turned."""
        return 0 if self.learned_positions else int(self.head_dim * self.rotary_fraction)


_SIZES: dict[str, dict[str, Any]] = {
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
