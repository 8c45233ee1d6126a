"""Adapter folders as PEFT reads and writes them: adapter_config.json and adapter_model.safetensors.

Where a family keeps several of our maps in one tensor, their adapters go out as one of the summed rank, with a block
for each. Leaves out everything that PEFT can do besides LoRA on linear maps.
"""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rlax_ft.errors import InputError
from rlax_ft.hf.families import FAMILIES
from rlax_ft.hf.folder import param_shapes
from rlax_ft.hf.peft_entries import is_targeted, of_module, read_entries
from rlax_ft.hf.reading import check_links, read_json
from rlax_ft.hf.weights import Leaf, join_parts, leaves_of, split_parts
from rlax_ft.models.config import ModelConfig
from rlax_ft.models.lora import adaptable
from rlax_ft.types import Params

CONFIG, ADAPTER = 'adapter_config.json', 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'


def save_adapter(path: str | Path, config: ModelConfig, adapter: Params, *, base: str = '') -> None:
    """Writes an adapter so that `peft.PeftModel.from_pretrained` puts it on the base model.

    Args:
      path: the folder; made if need be.
      config: of the model, with `lora`.
      adapter: of `lora.init_adapter`'s form.
      base: folder or hub id of the base model, for whoever opens the adapter by itself.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors, ranks = {}, {}
    for module, sharing in _modules(config).items():
        parts = [_at(adapter, leaf) for leaf in sharing]
        if not any(parts):
            continue
        ranks[_suffix(module)] = sum(part['A'].shape[-1] for part in parts if part)
        for layer in range(config.layers):
            name = _PREFIX + module.format(layer=layer)
            a, b = _joined(parts, sharing, layer)
            tensors[f'{name}.lora_A.weight'], tensors[f'{name}.lora_B.weight'] = a, b
    save_file(tensors, folder / ADAPTER, metadata={'format': 'pt'})
    lora = config.lora
    other = {name: rank for name, rank in ranks.items() if rank != lora.rank}
    entries = {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': base or None,
        'r': lora.rank,
        'lora_alpha': lora.alpha,
        'lora_dropout': lora.dropout,
        'use_rslora': lora.rslora,
        'target_modules': sorted(ranks),
        'rank_pattern': other,
        'alpha_pattern': {n: lora.scaling * (r**0.5 if lora.rslora else r) for n, r in other.items()},
        'fan_in_fan_out': not FAMILIES[config.family].transposed,
        'bias': 'none',
        'inference_mode': True,
    }
    (folder / CONFIG).write_text(json.dumps(entries, indent=2) + '\n')


def load_adapter(path: str | Path, config: ModelConfig) -> tuple[ModelConfig, Params]:
    """Reads what PEFT wrote: (the configuration with `lora`, the adapter).

    Args:
      path: the folder.
      config: of the base model.

    Raises:
      InputError: a missing or broken file, something other than plain LoRA, or a tensor that does not fit the model.
    """
    folder = Path(path)
    raw = read_json(folder / CONFIG)
    try:
        lora = read_entries(raw)
    except InputError as error:
        raise InputError(f'{folder}/{CONFIG}: {error}') from error
    tensors = _read_tensors(folder)
    adapter: dict = {'layers': {}}
    targets = []
    for module, sharing in _modules(config).items():
        layers = [_pop_layer(folder, tensors, module.format(layer=i), sharing, raw, lora) for i in range(config.layers)]
        if not any(layers):
            continue
        rank = max(layer[0].shape[1] for layer in layers if layer)
        a = np.zeros((config.layers, sharing[0].shape[-2], rank), np.float32)
        # A layer without an adapter has one of zeros, and a smaller rank is filled up with them.
        b = [np.zeros((config.layers, rank, leaf.shape[-1]), np.float32) for leaf in sharing]
        for i, layer in enumerate(layers):
            if layer:
                a[i, :, : layer[0].shape[1]] = layer[0]
                for part, values in zip(b, layer[1]):
                    part[i, : len(values)] = values
        for leaf, values in zip(sharing, b):
            targets.append('/'.join(leaf.path[1:-1]))
            at = adapter['layers']
            for name in leaf.path[1:-1]:
                at = at.setdefault(name, {})
            at['A'], at['B'] = jnp.asarray(a), jnp.asarray(values)
    if tensors or not targets:
        found = min(tensors) if tensors else 'nothing'
        raise InputError(f'{folder}/{ADAPTER}: {found} fits no linear map of a {config.family} model')
    lora = dataclasses.replace(lora, targets=f'^({"|".join(targets)})$')
    return dataclasses.replace(config, lora=lora), adapter


def _read_tensors(folder):
    check_links(folder)
    path = folder / ADAPTER
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise InputError(f'{path}: not to be read ({reason})') from error
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or not np.isfinite(tensor.astype(np.float32)).all():
            raise InputError(f'{path}: {name} is no matrix of finite numbers')
    return tensors


def _modules(config: ModelConfig) -> dict[str, list[Leaf]]:
    """Their linear modules, with `{layer}`, and which of our kernels each holds, in order."""
    shapes = param_shapes(dataclasses.replace(config, lora=None))
    names = adaptable(shapes)
    modules: dict[str, list[Leaf]] = {}
    for leaf in leaves_of(config, shapes):
        if leaf.path[-1] == 'kernel' and '/'.join(leaf.path[1:-1]) in names:
            modules.setdefault(leaf.template.removesuffix('.weight'), []).append(leaf)
    return {module: sorted(sharing, key=lambda leaf: leaf.part) for module, sharing in modules.items()}


def _suffix(module):
    """What names a module in every layer alike: `self_attn.q_proj`."""
    return module.partition('{layer}.')[2]


def _at(adapter, leaf):
    for name in leaf.path[:-1]:
        adapter = adapter.get(name, {})
    return adapter


def _joined(parts, sharing, layer):
    """(A [R, in], B [out, R]) of one of their modules: the ranks of our parts one after another, B in blocks."""
    ranks = [part['A'].shape[-1] if part else 0 for part in parts]
    starts = np.cumsum([0, *ranks])
    blocks = []
    for part, leaf, rank, start in zip(parts, sharing, ranks, starts):
        block = np.zeros((starts[-1], leaf.shape[-1]), np.float32)
        if part:
            block[start : start + rank] = np.asarray(part['B'][layer])
        blocks.append(block)
    a = np.concatenate([np.asarray(part['A'][layer], np.float32).T for part in parts if part])
    return np.ascontiguousarray(a), np.ascontiguousarray(join_parts(blocks, sharing[0].heads).T)


def _pop_layer(folder, tensors, module, sharing, raw, lora):
    """(A [in, r], [B [r, out] of each part]) of one layer, PEFT's scaling against ours in B; None where it has none."""
    names = [f'{_PREFIX}{module}.lora_{side}.weight' for side in ('A', 'B')]
    if not any(name in tensors for name in names):
        return None
    for name in names:
        if name not in tensors:
            raise InputError(f'{folder}/{ADAPTER}: no tensor {name}, though its other half is there')
    if not is_targeted(raw, module):
        raise InputError(f'{folder}/{ADAPTER}: holds {names[0]}, which {CONFIG} does not name as a target')
    a, b = (tensors.pop(name).astype(np.float32).T for name in names)
    rank, alpha = of_module(raw, module)
    wanted = (sharing[0].shape[-2], rank), (rank, sum(sharing[0].sizes))
    if (a.shape, b.shape) != wanted:
        shown = f'A {a.shape[::-1]} and B {b.shape[::-1]}', f'{wanted[0][::-1]} and {wanted[1][::-1]}'
        raise InputError(f'{folder}/{ADAPTER}: {module} has {shown[0]} where model and {CONFIG} need {shown[1]}')
    scaling = alpha / (rank**0.5 if lora.rslora else rank)
    # A scaling of its own goes into B: there is one scaling for the whole adapter here.
    b = b * np.float32(scaling / lora.scaling)
    return a, split_parts(b, sharing[0].sizes, sharing[0].heads)
