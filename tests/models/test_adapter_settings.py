"""Adapters with settings by layer: PEFT's numbers exactly, or a refusal; broken ones in one line."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlax_ft.errors import InputError
from rlax_ft.hf.peft import load_adapter, save_adapter
from rlax_ft.models.config import LoRAConfig, embedded_config
from rlax_ft.models.lora import init_adapter
from rlax_ft.models.transformer import Transformer, init_params

CONFIG = embedded_config('tiny', vocab_size=23, max_length=16)
PARAMS = init_params(CONFIG, jax.random.key(0))
TOKENS = jax.random.randint(jax.random.key(1), (2, 5), 0, 23)
NAME = 'base_model.model.model.layers.{}.self_attn.{}.lora_{}.weight'


@pytest.fixture
def folder(tmp_path):
    lora = LoRAConfig(4, targets='query|value')
    adapter = jax.tree.map(lambda x: x + 0.1, init_adapter(PARAMS, lora, jax.random.key(2)))
    save_adapter(tmp_path, dataclasses.replace(CONFIG, lora=lora), adapter)
    return tmp_path


def edit(folder, **entries):
    path = folder / 'adapter_config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def change(folder, function):
    path = folder / 'adapter_model.safetensors'
    tensors = load_file(path)
    function(tensors)
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)


def hand_computed(tensors, scalings):
    """The base with W + scaling B A of every adapted map, from PEFT's own tensors."""
    params = jax.tree.map(jnp.copy, PARAMS)
    for ours, theirs in (('query', 'q_proj'), ('value', 'v_proj')):
        for layer in range(2):
            names = [NAME.format(layer, theirs, side) for side in 'AB']
            if names[0] in tensors:
                a, b = (tensors[name] for name in names)
                kernel = params['layers']['attention'][ours]['kernel']
                update = scalings(layer, theirs) * (b @ a).T
                params['layers']['attention'][ours]['kernel'] = kernel.at[layer].add(update)
    return Transformer(CONFIG).apply({'params': params}, TOKENS)[0]


def ours(folder):
    config, adapter = load_adapter(folder, CONFIG)
    return Transformer(config).apply({'params': PARAMS, 'lora': adapter}, TOKENS)[0]


@pytest.mark.parametrize('rslora', [False, True])
def test_ranks_and_alphas_by_layer_are_exact(folder, rslora):
    def smaller(tensors):
        for name, cut in ((NAME.format(0, 'q_proj', 'A'), np.s_[:2]), (NAME.format(0, 'q_proj', 'B'), np.s_[:, :2])):
            tensors[name] = tensors[name][cut]

    change(folder, smaller)
    edit(folder, rank_pattern={'layers.0.self_attn.q_proj': 2}, use_rslora=rslora)
    edit(folder, alpha_pattern={'layers.1.self_attn.q_proj': 3, 'q_proj': 5, 'v_proj': 7})
    alphas = {(0, 'q_proj'): 5, (1, 'q_proj'): 3, (0, 'v_proj'): 7, (1, 'v_proj'): 7}
    ranks = {(0, 'q_proj'): 2}

    def scaling(*module):
        rank = ranks.get(module, 4)
        return alphas[module] / (rank**0.5 if rslora else rank)

    wanted = hand_computed(load_file(folder / 'adapter_model.safetensors'), scaling)
    np.testing.assert_allclose(ours(folder), wanted, atol=2e-5)


def test_layers_without_an_adapter_have_none(folder):
    change(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if '.layers.0.' in name])
    edit(folder, layers_to_transform=[1])
    wanted = hand_computed(load_file(folder / 'adapter_model.safetensors'), lambda *_: 4.0)
    np.testing.assert_allclose(ours(folder), wanted, atol=2e-5)
    assert np.abs(wanted - Transformer(CONFIG).apply({'params': PARAMS}, TOKENS)[0]).max() > 0.1


@pytest.mark.parametrize(
    'entries, match',
    [
        ({'use_dora': True}, 'only plain LoRA'),
        ({'bias': 'all'}, 'only plain LoRA'),
        ({'modules_to_save': ['lm_head']}, 'modules_to_save is set'),
        ({'lora_bias': True}, 'lora_bias is set'),
        ({'layer_replication': [[0, 2]]}, 'layer_replication is set'),
        ({'alora_invocation_tokens': [1]}, 'alora_invocation_tokens is set'),
        ({'init_lora_weights': 'pissa'}, "init_lora_weights is 'pissa', which changes the base model"),
        ({'r': 8}, r'has A \(4, 32\) and B \(32, 4\) where model and adapter_config.json need \(8, 32\)'),
        ({'rank_pattern': {'q_proj': 2}}, r'where model and adapter_config.json need \(2, 32\)'),
        (
            {'layers_to_transform': [1]},
            r'holds .*layers.0.self_attn.q_proj.lora_A.weight, which adapter_config.json does',
        ),
        ({'target_modules': ['v_proj']}, r'holds .*q_proj.lora_A.weight, which adapter_config.json does not name'),
        ({'r': '4'}, "r is '4'; a whole number"),
        ({'r': 0}, "r is '0'; a whole number"),
        ({'lora_alpha': None}, "lora_alpha is 'None'; a finite number"),
        ({'lora_alpha': float('nan')}, "lora_alpha is 'nan'; a finite number"),
        ({'rank_pattern': [1]}, 'rank_pattern is a list'),
        ({'alpha_pattern': {'(': 1}}, r"alpha_pattern: '\(' is no regular expression"),
        ({'target_modules': 5}, 'target_modules is a number'),
        ({'lora_dropout': 'x'}, "lora_dropout is 'x'"),
    ],
    ids=str,
)
def test_what_is_not_plain_lora_is_refused(folder, entries, match):
    edit(folder, **entries)
    with pytest.raises(InputError, match=match) as caught:
        load_adapter(folder, CONFIG)
    assert '\n' not in str(caught.value)


def test_broken_adapter_files_are_one_line(folder):
    def nan(tensors):
        tensors[NAME.format(0, 'q_proj', 'A')][0, 0] = np.nan

    change(folder, nan)
    with pytest.raises(InputError, match=r'q_proj.lora_A.weight is no matrix of finite numbers'):
        load_adapter(folder, CONFIG)
    for text in ('[]', 'null', '{'):
        (folder / 'adapter_config.json').write_text(text)
        with pytest.raises(InputError, match=r'adapter_config.json: (holds|not JSON)'):
            load_adapter(folder, CONFIG)
