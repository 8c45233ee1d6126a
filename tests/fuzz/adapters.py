"""Mutated adapter folders: an adapter of finite numbers, or one line."""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import folders as model_folders
import jax
import numpy as np
import values

from rlax_ft.hf.peft import load_adapter, save_adapter
from rlax_ft.models.config import LoRAConfig, embedded_config
from rlax_ft.models.lora import init_adapter
from rlax_ft.models.transformer import init_params

NAMES = ('rank_pattern', 'alpha_pattern', 'use_dora', 'modules_to_save', 'layers_to_transform', 'init_lora_weights')
CONFIG = embedded_config('tiny', vocab_size=23, max_length=16)
FOLDERS: list[Path] = []


def folder_of_ours():
    """One adapter, written once."""
    if not FOLDERS:
        root = Path(tempfile.mkdtemp(prefix='fuzz-adapters-'))
        lora = LoRAConfig(2)
        adapter = init_adapter(init_params(CONFIG, jax.random.key(0)), lora, jax.random.key(1))
        save_adapter(root, dataclasses.replace(CONFIG, lora=lora), adapter)
        FOLDERS.append(root)
    return FOLDERS[0]


def mutation(rng, workdir):
    """Mutates one file and loads the adapter."""
    folder = workdir / 'adapter'
    shutil.copytree(folder_of_ours(), folder)
    path = rng.choice(sorted(folder.iterdir()))
    if path.suffix == '.json' and rng.random() < 0.7:
        path.write_text(json.dumps(values.mutated(rng, json.loads(path.read_text()), NAMES)))
    elif path.suffix == '.safetensors' and rng.random() < 0.6:
        model_folders.mutate_header(rng, path)
    else:
        values.write_mutated(rng, path)
    config, adapter = load_adapter(folder, CONFIG)
    finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(adapter)) and np.isfinite(config.lora.scaling)
    return None if finite else 'wrong: numbers that are not finite'
