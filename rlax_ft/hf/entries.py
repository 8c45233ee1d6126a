"""What config.json of each family says beyond plain copies: positions, windows, biases, activations, soft caps.

Each `read_*` takes config.json with transformers' defaults filled in and gives fields of ModelConfig; each `write_*`
goes back. Leaves out the table that says who uses which (families.py).
"""

from rlax_ft.errors import InputError
from rlax_ft.models.config import ModelConfig

# Which families have sliding windows, in all their layers, or in those that layer_types names. transformers does not
# look at such an entry in any other's config.json.
_WINDOWED = ('mistral', 'mixtral', 'phi3', 'qwen3_moe')
_WINDOWED_BY_LAYER = ('qwen2', 'qwen3', 'gemma2', 'gemma3_text', 'smollm3')
_PARTLY_ROTARY = ('phi3', 'stablelm', 'gpt_neox')


def read_rotary(raw: dict, head_dim: int) -> dict:
    """Bases and scaling of the rotary frequencies; Gemma 3 has one base for its local layers and one for the others."""
    rope = dict(raw.get('rope_parameters') or {})
    local = None
    if 'full_attention' in rope:
        local = rope['sliding_attention']['rope_theta']
        rope = dict(rope['full_attention'])
    kind = rope.get('rope_type', 'default')
    if kind not in ('default', 'linear', 'llama3', 'yarn'):
        raise InputError(f'rope_type {kind!r} is not supported; default, linear, llama3 and yarn are')
    theta, fraction = rope.pop('rope_theta', 10_000.0), rope.pop('partial_rotary_factor', 1.0)
    if fraction != 1.0 and raw.get('model_type') not in _PARTLY_ROTARY:
        raise InputError(f'partial_rotary_factor {fraction}: a {raw.get("model_type")} model turns whole heads')
    if int(head_dim * fraction) % 2:
        raise InputError(
            f'head_dim {head_dim} times partial_rotary_factor {fraction} is odd, but rotary pairs need it even'
        )
    scaling = tuple(sorted((k, v) for k, v in rope.items() if k != 'type' and v is not None))
    return {
        'rope_theta': float(theta),
        'local_rope_theta': local,
        'rotary_fraction': fraction,
        'rope_scaling': () if kind == 'default' else scaling,
    }


def write_rotary(config: ModelConfig) -> dict:
    """The same as `rope_parameters`."""
    rope = {'rope_type': 'default', **dict(config.rope_scaling), 'rope_theta': config.rope_theta}
    if config.rotary_fraction != 1.0:
        rope['partial_rotary_factor'] = config.rotary_fraction
    if config.local_rope_theta is None:
        # What came before rope_parameters is written beside it, for older readers.
        older = {'rope_scaling': dict(config.rope_scaling)} if config.rope_scaling else {}
        return {'rope_theta': config.rope_theta, 'rope_parameters': rope, **older}
    local = {'rope_type': 'default', 'rope_theta': config.local_rope_theta}
    return {'rope_parameters': {'full_attention': rope, 'sliding_attention': local}}


def read_windows(raw: dict) -> dict:
    """The sliding window, and which layers have it: all of them where nothing says which."""
    window, kinds = raw.get('sliding_window'), raw.get('layer_types')
    family = raw.get('model_type')
    if family not in (*_WINDOWED, *_WINDOWED_BY_LAYER) or (family == 'smollm3' and not raw.get('use_sliding_window')):
        return {}
    if family in _WINDOWED:
        kinds = None
    if unknown := set(kinds or ()) - {'full_attention', 'sliding_attention'}:
        raise InputError(f'layer_types: {min(unknown)!r} is not supported; full_attention and sliding_attention are')
    layers = raw.get('num_hidden_layers', 0)
    local = tuple(kind == 'sliding_attention' for kind in kinds) if kinds else (True,) * layers
    return {'window': window, 'local_layers': local} if window is not None and any(local) else {}


def write_windows(config: ModelConfig) -> dict:
    """The same as `sliding_window` and `layer_types`."""
    if config.window is None:
        return {'use_sliding_window': False}
    said = {'use_sliding_window': True, 'sliding_window': config.window}
    if all(config.local_layers):
        # transformers takes a Mistral with layer_types for another family.
        return said | {'max_window_layers': 0}
    kinds = ['sliding_attention' if local else 'full_attention' for local in config.local_layers]
    return said | {'layer_types': kinds}


def read_activation(raw: dict) -> dict:
    """The MLP's activation."""
    known = {
        'silu': 'silu',
        'gelu': 'gelu',
        'gelu_new': 'gelu_tanh',
        'gelu_pytorch_tanh': 'gelu_tanh',
        'relu': 'relu',
    }
    entry = {'gpt2': 'activation_function', 'gemma2': 'hidden_activation', 'gemma3_text': 'hidden_activation'}
    name = raw.get(entry.get(raw.get('model_type'), 'hidden_act'))
    if name not in known:
        raise InputError(f'the activation {name!r} is not supported; {", ".join(known)} are')
    return {'activation': known[name]}


_ACTIVATION_NAMES = {'silu': 'silu', 'gelu': 'gelu', 'gelu_tanh': 'gelu_pytorch_tanh', 'relu': 'relu'}


def read_biases(raw: dict) -> dict:
    """Biases of attention and MLP, and the activation."""
    attention, mlp = raw.get('attention_bias', False), raw.get('mlp_bias', False)
    return {'qkv_bias': attention, 'out_bias': attention, 'mlp_bias': mlp, **read_activation(raw)}


def write_biases(config: ModelConfig) -> dict:
    """The same as `attention_bias`, `mlp_bias` and `hidden_act`."""
    act = _ACTIVATION_NAMES[config.activation]
    return {'attention_bias': config.qkv_bias, 'mlp_bias': config.mlp_bias, 'hidden_act': act}


def write_activation(config: ModelConfig) -> dict:
    """The same as `hidden_act`."""
    return {'hidden_act': _ACTIVATION_NAMES[config.activation]}


def read_smollm3(raw: dict) -> dict:
    """The layers without rotary positions."""
    without = tuple(not flag for flag in raw['no_rope_layers'])
    return {**read_biases(raw), 'nope_layers': without if any(without) else ()}


def write_smollm3(config: ModelConfig) -> dict:
    """The same as `no_rope_layers`."""
    without = config.nope_layers or (False,) * config.layers
    return {**write_biases(config), 'no_rope_layers': [int(not layer) for layer in without]}


def read_stablelm(raw: dict) -> dict:
    """StableLM's biases; two of its switches make another computation of the same names."""
    if raw['use_parallel_residual'] or raw['qk_layernorm']:
        raise InputError('use_parallel_residual and qk_layernorm: not supported')
    return {'qkv_bias': raw['use_qkv_bias'], **read_activation(raw)}


def write_stablelm(config: ModelConfig) -> dict:
    """The same as `use_qkv_bias`, and the share of each head that older readers look for outside rope_parameters."""
    fraction = {'partial_rotary_factor': config.rotary_fraction}
    return {'use_qkv_bias': config.qkv_bias, **fraction, **write_activation(config)}


def read_gemma(raw: dict) -> dict:
    """Gemma's scale of the scores, and its soft caps."""
    if raw.get('use_bidirectional_attention'):
        raise InputError('use_bidirectional_attention: only models that attend to earlier tokens are supported')
    return {
        **read_biases(raw),
        'attention_scale': raw['query_pre_attn_scalar'] ** -0.5,
        'attention_soft_cap': raw.get('attn_logit_softcapping'),
        'final_soft_cap': raw.get('final_logit_softcapping'),
    }


def write_gemma(config: ModelConfig) -> dict:
    """The same as `query_pre_attn_scalar` and the caps."""
    scalar = config.attention_scale**-2
    return {
        **write_biases(config),
        'hidden_activation': _ACTIVATION_NAMES[config.activation],
        'query_pre_attn_scalar': round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
        'attn_logit_softcapping': config.attention_soft_cap,
        'final_logit_softcapping': config.final_soft_cap,
    }


def read_gpt2(raw: dict) -> dict:
    """GPT-2's MLP."""
    if raw['scale_attn_by_inverse_layer_idx'] or not raw['scale_attn_weights'] or raw.get('add_cross_attention'):
        raise InputError('scale_attn_by_inverse_layer_idx, unscaled or cross attention: not supported')
    return {'mlp_width': raw['n_inner'] or 4 * raw['n_embd'], **read_activation(raw)}


def write_gpt2(config: ModelConfig) -> dict:
    """The same under GPT-2's names."""
    act = {'gelu_tanh': 'gelu_new'}.get(config.activation, config.activation)
    return {'n_inner': config.mlp_width, 'activation_function': act}


def read_neox(raw: dict) -> dict:
    """GPT-NeoX's residual streams, side by side or in turn, and biases."""
    biases = {'qkv_bias': raw['attention_bias'], 'out_bias': raw['attention_bias']}
    return {'parallel': raw['use_parallel_residual'], **biases, **read_activation(raw)}


def write_neox(config: ModelConfig) -> dict:
    """The same under GPT-NeoX's names."""
    biases = {'attention_bias': config.qkv_bias, **write_activation(config)}
    return {'use_parallel_residual': config.parallel, 'rotary_pct': config.rotary_fraction, **biases}


def read_qwen3_moe(raw: dict) -> dict:
    """Refuses models in which only some MLPs are mixtures."""
    if raw['mlp_only_layers'] or raw['decoder_sparse_step'] != 1:
        raise InputError('mlp_only_layers and decoder_sparse_step: all MLPs must be mixtures')
    return read_biases(raw)


def write_qwen3_moe(config: ModelConfig) -> dict:
    """Says that all of them are."""
    sparse = {'mlp_only_layers': [], 'decoder_sparse_step': 1, 'num_experts': config.experts}
    return write_biases(config) | sparse
