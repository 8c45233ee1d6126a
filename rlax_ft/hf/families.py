"""The families of Hugging Face models that we read and write: one table entry each.

An entry says which class opens the model, how config.json maps to ModelConfig, and what the tensors are called. Leaves
out files (hf.py) and computation (transformer.py); multi-modal models are not here.
"""

import dataclasses
from collections.abc import Callable

from rlax_ft.hf import entries
from rlax_ft.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family maps to ours.

    Attributes:
      architecture: the class that transformers opens a language model with.
      fields: field of ModelConfig -> entry of config.json that says the same.
      names: our path -> their tensor; `{layer}` and `{expert}` count. Where several of ours have one name, they are its
        parts along the output axis, in the order in which they stand here. What a model lacks it does not look up.
      fixed: fields of ModelConfig that are the same for all models of the family.
      read: config.json, with transformers' defaults filled in -> further fields of ModelConfig.
      write: ModelConfig -> further entries of config.json.
      transposed: kernels are stored [out, in].
      parts_by_head: the parts of one tensor alternate from head to head, instead of following one another.
    """

    architecture: str
    fields: dict[str, str]
    names: dict[str, str]
    fixed: dict = dataclasses.field(default_factory=dict)
    read: Callable[[dict], dict] = lambda raw: {}
    write: Callable[[ModelConfig], dict] = lambda config: {}
    transposed: bool = True
    parts_by_head: bool = False

    @property
    def reward_architecture(self) -> str:
        """The class that transformers opens a reward model with."""
        stem = self.architecture.removesuffix('ForCausalLM').removesuffix('LMHeadModel')
        return ('Gemma3Text' if stem == 'Gemma3' else stem) + 'ForSequenceClassification'


def to_config(model_type: str, raw: dict) -> ModelConfig:
    """The ModelConfig of a config.json whose defaults transformers has filled in.

    Raises:
      InputError: it asks for something that the transformer here cannot do.
    """
    family = FAMILIES[model_type]
    given = {ours: raw[theirs] for ours, theirs in family.fields.items() if raw.get(theirs) is not None}
    given.setdefault('kv_heads', given['heads'])
    given.setdefault('head_dim', given['width'] // given['heads'])
    given |= family.fixed
    if not given.get('learned_positions'):
        given |= entries.read_rotary(raw, given['head_dim'])
    return ModelConfig(family=model_type, **given | entries.read_windows(raw) | family.read(raw))


def to_entries(config: ModelConfig) -> dict:
    """The entries of config.json that say what a ModelConfig says."""
    family = FAMILIES[config.family]
    said = {theirs: getattr(config, ours) for ours, theirs in family.fields.items()}
    if not config.learned_positions:
        said |= {'head_dim': config.head_dim, **entries.write_rotary(config)}
    return said | entries.write_windows(config) | family.write(config)


_LLAMA_FIELDS = {
    'vocab_size': 'vocab_size',
    'width': 'hidden_size',
    'layers': 'num_hidden_layers',
    'heads': 'num_attention_heads',
    'kv_heads': 'num_key_value_heads',
    'head_dim': 'head_dim',
    'mlp_width': 'intermediate_size',
    'max_length': 'max_position_embeddings',
    'norm_eps': 'rms_norm_eps',
    'tied': 'tie_word_embeddings',
}

_OUTER_NAMES = {
    'embed/embedding': 'model.embed_tokens.weight',
    'final_norm/scale': 'model.norm.weight',
    'head': 'lm_head.weight',
}


def _layer_names(names: dict[str, str], prefix: str = 'model.layers.{layer}.') -> dict[str, str]:
    return {f'layers/{ours}': prefix + theirs for ours, theirs in names.items()}


_ATTENTION_NAMES = _layer_names(
    {
        'attention/query/kernel': 'self_attn.q_proj.weight',
        'attention/query/bias': 'self_attn.q_proj.bias',
        'attention/query_norm/scale': 'self_attn.q_norm.weight',
        'attention/key/kernel': 'self_attn.k_proj.weight',
        'attention/key/bias': 'self_attn.k_proj.bias',
        'attention/key_norm/scale': 'self_attn.k_norm.weight',
        'attention/value/kernel': 'self_attn.v_proj.weight',
        'attention/value/bias': 'self_attn.v_proj.bias',
        'attention/out/kernel': 'self_attn.o_proj.weight',
        'attention/out/bias': 'self_attn.o_proj.bias',
    }
)

_MLP_NAMES = _layer_names(
    {
        'mlp/gate/kernel': 'mlp.gate_proj.weight',
        'mlp/gate/bias': 'mlp.gate_proj.bias',
        'mlp/up/kernel': 'mlp.up_proj.weight',
        'mlp/up/bias': 'mlp.up_proj.bias',
        'mlp/down/kernel': 'mlp.down_proj.weight',
        'mlp/down/bias': 'mlp.down_proj.bias',
    }
)

_PRE_NORM_NAMES = _layer_names(
    {'attention_norm/scale': 'input_layernorm.weight', 'mlp_norm/scale': 'post_attention_layernorm.weight'}
)

_SANDWICH_NAMES = _layer_names(
    {
        'attention_norm/scale': 'input_layernorm.weight',
        'attention_post_norm/scale': 'post_attention_layernorm.weight',
        'mlp_norm/scale': 'pre_feedforward_layernorm.weight',
        'mlp_post_norm/scale': 'post_feedforward_layernorm.weight',
    }
)

_LLAMA_NAMES = _OUTER_NAMES | _ATTENTION_NAMES | _MLP_NAMES | _PRE_NORM_NAMES


_GPT2_LAYER = 'transformer.h.{layer}.'
_NEOX_LAYER = 'gpt_neox.layers.{layer}.'
_MIXTRAL_EXPERT = 'block_sparse_moe.experts.{expert}.'
_QWEN_EXPERT = 'mlp.experts.{expert}.'

# A dense family that is Llama but for a switch is one entry of a few lines; CONTRIBUTING.md walks through one.
FAMILIES = {
    'llama': Family(
        'LlamaForCausalLM', _LLAMA_FIELDS, _LLAMA_NAMES, read=entries.read_biases, write=entries.write_biases
    ),
    'mistral': Family(
        'MistralForCausalLM', _LLAMA_FIELDS, _LLAMA_NAMES, read=entries.read_activation, write=entries.write_activation
    ),
    'qwen2': Family(
        'Qwen2ForCausalLM',
        _LLAMA_FIELDS,
        _LLAMA_NAMES,
        fixed={'qkv_bias': True},
        read=entries.read_activation,
        write=entries.write_activation,
    ),
    'qwen3': Family(
        'Qwen3ForCausalLM',
        _LLAMA_FIELDS,
        _LLAMA_NAMES,
        fixed={'qk_norm': 'head'},
        read=entries.read_biases,
        write=entries.write_biases,
    ),
    'gemma2': Family(
        'Gemma2ForCausalLM',
        _LLAMA_FIELDS,
        _OUTER_NAMES | _ATTENTION_NAMES | _MLP_NAMES | _SANDWICH_NAMES,
        fixed={'norm': 'rms_plus_one', 'post_norm': True, 'scaled_embedding': True},
        read=entries.read_gemma,
        write=entries.write_gemma,
    ),
    'gemma3_text': Family(
        'Gemma3ForCausalLM',
        _LLAMA_FIELDS,
        _OUTER_NAMES | _ATTENTION_NAMES | _MLP_NAMES | _SANDWICH_NAMES,
        fixed={'norm': 'rms_plus_one', 'post_norm': True, 'scaled_embedding': True, 'qk_norm': 'head'},
        read=entries.read_gemma,
        write=entries.write_gemma,
    ),
    'phi3': Family(
        'Phi3ForCausalLM',
        _LLAMA_FIELDS,
        {
            **_OUTER_NAMES,
            **_PRE_NORM_NAMES,
            **_layer_names(
                {
                    'attention/query/kernel': 'self_attn.qkv_proj.weight',
                    'attention/key/kernel': 'self_attn.qkv_proj.weight',
                    'attention/value/kernel': 'self_attn.qkv_proj.weight',
                    'attention/out/kernel': 'self_attn.o_proj.weight',
                    'mlp/gate/kernel': 'mlp.gate_up_proj.weight',
                    'mlp/up/kernel': 'mlp.gate_up_proj.weight',
                    'mlp/down/kernel': 'mlp.down_proj.weight',
                }
            ),
        },
        read=entries.read_activation,
        write=entries.write_activation,
    ),
    'smollm3': Family(
        'SmolLM3ForCausalLM', _LLAMA_FIELDS, _LLAMA_NAMES, read=entries.read_smollm3, write=entries.write_smollm3
    ),
    'stablelm': Family(
        'StableLmForCausalLM',
        _LLAMA_FIELDS | {'norm_eps': 'layer_norm_eps'},
        {
            **_LLAMA_NAMES,
            'final_norm/bias': 'model.norm.bias',
            **_layer_names(
                {'attention_norm/bias': 'input_layernorm.bias', 'mlp_norm/bias': 'post_attention_layernorm.bias'}
            ),
        },
        fixed={'norm': 'layer'},
        read=entries.read_stablelm,
        write=entries.write_stablelm,
    ),
    'olmo2': Family(
        'Olmo2ForCausalLM',
        _LLAMA_FIELDS,
        {
            **_OUTER_NAMES,
            **_ATTENTION_NAMES,
            **_MLP_NAMES,
            **_layer_names(
                {
                    'attention_post_norm/scale': 'post_attention_layernorm.weight',
                    'mlp_post_norm/scale': 'post_feedforward_layernorm.weight',
                }
            ),
        },
        fixed={'pre_norm': False, 'post_norm': True, 'qk_norm': 'full'},
        read=entries.read_biases,
        write=entries.write_biases,
    ),
    'gpt2': Family(
        'GPT2LMHeadModel',
        {
            'vocab_size': 'vocab_size',
            'width': 'n_embd',
            'layers': 'n_layer',
            'heads': 'n_head',
            'max_length': 'n_positions',
            'norm_eps': 'layer_norm_epsilon',
            'tied': 'tie_word_embeddings',
        },
        {
            'embed/embedding': 'transformer.wte.weight',
            'position_embed/embedding': 'transformer.wpe.weight',
            'final_norm/scale': 'transformer.ln_f.weight',
            'final_norm/bias': 'transformer.ln_f.bias',
            'head': 'lm_head.weight',
            **_layer_names(
                {
                    'attention_norm/scale': 'ln_1.weight',
                    'attention_norm/bias': 'ln_1.bias',
                    'attention/query/kernel': 'attn.c_attn.weight',
                    'attention/query/bias': 'attn.c_attn.bias',
                    'attention/key/kernel': 'attn.c_attn.weight',
                    'attention/key/bias': 'attn.c_attn.bias',
                    'attention/value/kernel': 'attn.c_attn.weight',
                    'attention/value/bias': 'attn.c_attn.bias',
                    'attention/out/kernel': 'attn.c_proj.weight',
                    'attention/out/bias': 'attn.c_proj.bias',
                    'mlp_norm/scale': 'ln_2.weight',
                    'mlp_norm/bias': 'ln_2.bias',
                    'mlp/up/kernel': 'mlp.c_fc.weight',
                    'mlp/up/bias': 'mlp.c_fc.bias',
                    'mlp/down/kernel': 'mlp.c_proj.weight',
                    'mlp/down/bias': 'mlp.c_proj.bias',
                },
                _GPT2_LAYER,
            ),
        },
        fixed={
            'norm': 'layer',
            'qkv_bias': True,
            'out_bias': True,
            'mlp_bias': True,
            'gated': False,
            'learned_positions': True,
        },
        read=entries.read_gpt2,
        write=entries.write_gpt2,
        transposed=False,
    ),
    'gpt_neox': Family(
        'GPTNeoXForCausalLM',
        {k: v for k, v in _LLAMA_FIELDS.items() if k not in ('kv_heads', 'head_dim')} | {'norm_eps': 'layer_norm_eps'},
        {
            'embed/embedding': 'gpt_neox.embed_in.weight',
            'final_norm/scale': 'gpt_neox.final_layer_norm.weight',
            'final_norm/bias': 'gpt_neox.final_layer_norm.bias',
            'head': 'embed_out.weight',
            **_layer_names(
                {
                    'attention_norm/scale': 'input_layernorm.weight',
                    'attention_norm/bias': 'input_layernorm.bias',
                    'attention/query/kernel': 'attention.query_key_value.weight',
                    'attention/query/bias': 'attention.query_key_value.bias',
                    'attention/key/kernel': 'attention.query_key_value.weight',
                    'attention/key/bias': 'attention.query_key_value.bias',
                    'attention/value/kernel': 'attention.query_key_value.weight',
                    'attention/value/bias': 'attention.query_key_value.bias',
                    'attention/out/kernel': 'attention.dense.weight',
                    'attention/out/bias': 'attention.dense.bias',
                    'mlp_norm/scale': 'post_attention_layernorm.weight',
                    'mlp_norm/bias': 'post_attention_layernorm.bias',
                    'mlp/up/kernel': 'mlp.dense_h_to_4h.weight',
                    'mlp/up/bias': 'mlp.dense_h_to_4h.bias',
                    'mlp/down/kernel': 'mlp.dense_4h_to_h.weight',
                    'mlp/down/bias': 'mlp.dense_4h_to_h.bias',
                },
                _NEOX_LAYER,
            ),
        },
        fixed={'norm': 'layer', 'mlp_bias': True, 'gated': False},
        read=entries.read_neox,
        write=entries.write_neox,
        parts_by_head=True,
    ),
    'qwen3_moe': Family(
        'Qwen3MoeForCausalLM',
        _LLAMA_FIELDS
        | {
            'mlp_width': 'moe_intermediate_size',
            'experts': 'num_local_experts',
            'experts_per_token': 'num_experts_per_tok',
            'normalized_experts': 'norm_topk_prob',
        },
        {
            **_LLAMA_NAMES,
            **_layer_names(
                {
                    'mlp/router/kernel': 'mlp.gate.weight',
                    'mlp/gate/kernel': _QWEN_EXPERT + 'gate_proj.weight',
                    'mlp/up/kernel': _QWEN_EXPERT + 'up_proj.weight',
                    'mlp/down/kernel': _QWEN_EXPERT + 'down_proj.weight',
                }
            ),
        },
        fixed={'qk_norm': 'head'},
        read=entries.read_qwen3_moe,
        write=entries.write_qwen3_moe,
    ),
    'mixtral': Family(
        'MixtralForCausalLM',
        _LLAMA_FIELDS | {'experts': 'num_local_experts', 'experts_per_token': 'num_experts_per_tok'},
        {
            **_LLAMA_NAMES,
            **_layer_names(
                {
                    'mlp/router/kernel': 'block_sparse_moe.gate.weight',
                    'mlp/gate/kernel': _MIXTRAL_EXPERT + 'w1.weight',
                    'mlp/up/kernel': _MIXTRAL_EXPERT + 'w3.weight',
                    'mlp/down/kernel': _MIXTRAL_EXPERT + 'w2.weight',
                }
            ),
        },
        read=entries.read_activation,
        write=entries.write_activation,
    ),
}
