"""Hugging Face folders in and out: config.json, safetensors and tokenizer, as transformers reads and writes them.

One entry of `FAMILIES` says how a family's configuration and parameter names map to ours. Leaves out remote code and
any format but safetensors.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rlax_ft.errors import InputError
from rlax_ft.models.config import ModelConfig
from rlax_ft.models.heads import ScalarModel
from rlax_ft.models.transformer import Transformer
from rlax_ft.parallel.mesh import shard_state
from rlax_ft.types import Params

WEIGHTS = 'model.safetensors'


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family maps to ours.

    Attributes:
      architecture: the class that transformers opens a language model with.
      reward_architecture: the class that transformers opens a reward model with.
      to_config: config.json as a dict -> ModelConfig.
      from_config: ModelConfig -> the entries of config.json.
      layer_names: our path within a layer -> theirs; a kernel is stored transposed.
    """

    architecture: str
    reward_architecture: str
    to_config: Callable[[dict], ModelConfig]
    from_config: Callable[[ModelConfig], dict]
    layer_names: dict[str, str]


def _llama_config(raw: dict) -> ModelConfig:
    rope = raw.get('rope_parameters') or raw.get('rope_scaling') or {}
    if rope.get('rope_type', 'default') != 'default':
        raise InputError(f'config.json: rope_type {rope["rope_type"]!r} is not supported; only the default is')
    return ModelConfig(
        vocab_size=raw['vocab_size'],
        width=raw['hidden_size'],
        layers=raw['num_hidden_layers'],
        heads=raw['num_attention_heads'],
        kv_heads=raw.get('num_key_value_heads') or raw['num_attention_heads'],
        head_dim=raw.get('head_dim') or raw['hidden_size'] // raw['num_attention_heads'],
        mlp_width=raw['intermediate_size'],
        max_length=raw['max_position_embeddings'],
        rope_theta=rope.get('rope_theta') or raw.get('rope_theta', 10_000.0),
        norm_eps=raw['rms_norm_eps'],
        tied=raw.get('tie_word_embeddings', False),
    )


def _llama_entries(config: ModelConfig) -> dict:
    return {
        'vocab_size': config.vocab_size,
        'hidden_size': config.width,
        'num_hidden_layers': config.layers,
        'num_attention_heads': config.heads,
        'num_key_value_heads': config.kv_heads,
        'head_dim': config.head_dim,
        'intermediate_size': config.mlp_width,
        'max_position_embeddings': config.max_length,
        'rope_theta': config.rope_theta,
        'rms_norm_eps': config.norm_eps,
        'tie_word_embeddings': config.tied,
        'hidden_act': 'silu',
    }


FAMILIES = {
    'llama': Family(
        architecture='LlamaForCausalLM',
        reward_architecture='LlamaForSequenceClassification',
        to_config=_llama_config,
        from_config=_llama_entries,
        layer_names={
            'attention_norm/scale': 'input_layernorm.weight',
            'attention/query/kernel': 'self_attn.q_proj.weight',
            'attention/key/kernel': 'self_attn.k_proj.weight',
            'attention/value/kernel': 'self_attn.v_proj.weight',
            'attention/out/kernel': 'self_attn.o_proj.weight',
            'mlp_norm/scale': 'post_attention_layernorm.weight',
            'mlp/gate/kernel': 'mlp.gate_proj.weight',
            'mlp/up/kernel': 'mlp.up_proj.weight',
            'mlp/down/kernel': 'mlp.down_proj.weight',
        },
    ),
}


# What our own configuration is written as.
_FAMILY = FAMILIES['llama']


def load_pretrained(path_or_repo: str | Path, *, mesh=None, dtype=None) -> tuple[ModelConfig, Params, object]:
    """Reads a language model or a reward model from a folder that transformers wrote.

    Args:
      path_or_repo: a folder, or the id of a repository on the hub.
      mesh: where parameters go; the default device when absent.
      dtype: of the parameters; float32 when absent.

    Returns:
      (config, params, tokenizer): params are those of `Transformer`, or of `ScalarModel` where the folder holds a
      sequence classifier; the tokenizer is None where the folder has none.

    Raises:
      InputError: a missing or broken file, an unknown family, or a tensor whose shape the configuration denies.
    """
    folder = _folder(path_or_repo)
    config, family, scalar = _read_config(folder)
    params = _read_params(folder, family, config, scalar, dtype or jnp.float32)
    if mesh is not None:
        params = shard_state(params, mesh)
    return config, params, _read_tokenizer(folder)


def read_config(folder: str | Path) -> ModelConfig:
    """The configuration of a model folder, as in `load_pretrained`, without its weights."""
    return _read_config(Path(folder))[0]


def _read_config(folder: Path) -> tuple[ModelConfig, Family, bool]:
    raw = read_json(folder / 'config.json')
    family = FAMILIES.get(raw.get('model_type'))
    if family is None:
        raise InputError(f'{folder}/config.json: model_type {raw.get("model_type")!r}; known are {", ".join(FAMILIES)}')
    try:
        config = family.to_config(raw)
    except KeyError as error:
        raise InputError(f'{folder}/config.json: no entry {error}, which a {raw["model_type"]} model needs') from error
    return config, family, raw.get('architectures') == [family.reward_architecture]


def save_pretrained(path: str | Path, config: ModelConfig, params: Params, tokenizer=None, extra: dict | None = None):
    """Writes a folder that `AutoModelForCausalLM` (or, for a reward model, ...SequenceClassification) opens.

    Args:
      path: the folder; made if need be.
      config: of the model.
      params: of `Transformer`, or of `ScalarModel`.
      tokenizer: a transformers tokenizer, or None.
      extra: further entries of config.json.
    """
    folder = Path(path)
    scalar = 'backbone' in params
    save_config(folder, config, tokenizer, scalar=scalar, extra=extra)
    save_file(_tensors(_FAMILY, config, params), folder / (WEIGHTS + '.tmp'), metadata={'format': 'pt'})
    os.replace(folder / (WEIGHTS + '.tmp'), folder / WEIGHTS)


def save_config(path: str | Path, config: ModelConfig, tokenizer=None, *, scalar: bool = False, extra=None) -> None:
    """Writes what a model folder holds besides weights, so that checkpoints of a running run can be read."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    entries = {
        'model_type': 'llama',
        'architectures': [_FAMILY.reward_architecture if scalar else _FAMILY.architecture],
        **_FAMILY.from_config(config),
        'dtype': 'float32',
        **({'num_labels': 1, 'id2label': {'0': 'score'}, 'label2id': {'score': 0}} if scalar else {}),
        **(extra or {}),
    }
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        ids = {name: getattr(tokenizer, name) for name in ('bos_token_id', 'eos_token_id', 'pad_token_id')}
        entries |= ids
        if not scalar:
            (folder / 'generation_config.json').write_text(json.dumps(ids, indent=2) + '\n')
    (folder / 'config.json').write_text(json.dumps(entries, indent=2) + '\n')


def read_json(path: Path) -> dict:
    """A JSON file.

    Raises:
      InputError: it is missing or broken.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f'{path}: no such file; give a folder that transformers or this package wrote') from error
    except json.JSONDecodeError as error:
        raise InputError(f'{path}: not JSON ({error})') from error


def _folder(path_or_repo):
    if Path(path_or_repo).is_dir():
        return Path(path_or_repo)
    text = str(path_or_repo)
    if text.count('/') != 1 or text.startswith(('.', '/')):
        raise InputError(f'{text}: no such folder, and not a hub id such as OWNER/NAME')
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=['*.json', '*.safetensors', 'tokenizer*', '*.model']))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f'{text}: no such folder, and the hub did not give it ({first})') from error


def _names(family, config, scalar):
    """(our path, layer or None, their name, whether it is transposed) of every tensor."""
    prefix = ('backbone',) if scalar else ()
    yield (*prefix, 'embed', 'embedding'), None, 'model.embed_tokens.weight', False
    yield (*prefix, 'final_norm', 'scale'), None, 'model.norm.weight', False
    if not config.tied and not scalar:
        yield ('head',), None, 'lm_head.weight', True
    if scalar:
        yield ('head', 'kernel'), None, 'score.weight', True
    for ours, theirs in family.layer_names.items():
        for layer in range(config.layers):
            path = (*prefix, 'layers', *ours.split('/'))
            yield path, layer, f'model.layers.{layer}.{theirs}', ours.endswith('kernel')


def _tensors(family, config, params):
    tensors = {}
    for path, layer, name, transposed in _names(family, config, 'backbone' in params):
        leaf = params
        for part in path:
            leaf = leaf[part]
        array = np.asarray(leaf if layer is None else leaf[layer], np.float32)
        tensors[name] = np.ascontiguousarray(array.T if transposed else array)
    return tensors


def _read_params(folder, family, config, scalar, dtype):
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f'{path}: no such file; the folder holds no weights as safetensors')
    flat: dict[tuple, list] = {}
    try:
        with safe_open(path, framework='numpy') as file:
            present = set(file.keys())
            for ours, _, name, transposed in _names(family, config, scalar):
                if name not in present:
                    raise InputError(f'{path}: no tensor {name}, which config.json asks for')
                array = file.get_tensor(name)
                flat.setdefault(ours, []).append(jnp.asarray(array.T if transposed else array, dtype))
    except SafetensorError as error:
        raise InputError(f'{path}: a broken safetensors file ({error})') from error
    params: dict = {}
    for ours, leaves in flat.items():
        at = params
        for part in ours[:-1]:
            at = at.setdefault(part, {})
        at[ours[-1]] = jnp.stack(leaves) if 'layers' in ours else leaves[0]
    _check_shapes(path, config, scalar, params)
    return params


def _check_shapes(path, config, scalar, params):

    model = ScalarModel(config) if scalar else Transformer(config)
    wanted = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))['params']
    shapes = dict(jax.tree_util.tree_flatten_with_path(wanted)[0])
    for ours, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if shapes[ours].shape != leaf.shape:
            name = jax.tree_util.keystr(ours, simple=True, separator='/')
            raise InputError(f'{path}: {name} is {leaf.shape} where config.json says {shapes[ours].shape}')


def _read_tokenizer(folder):
    if not any((folder / name).is_file() for name in ('tokenizer.json', 'tokenizer.model', 'vocab.json')):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
