"""Folders of others: broken files of every kind are one line, nothing outside is read, contradictions are refused."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.hf.folder import load_pretrained, read_tokenizer, save_config, save_pretrained
from rlax_ft.hf.weights import write_params
from rlax_ft.models.config import embedded_config
from rlax_ft.models.transformer import init_params

CONFIG = embedded_config('tiny', vocab_size=8, max_length=16)
PARAMS = init_params(CONFIG, jax.random.key(0))


@pytest.fixture
def folder(tmp_path):
    save_pretrained(tmp_path / 'model', CONFIG, PARAMS, word_tokenizer('abcde'))
    return tmp_path / 'model'


@pytest.fixture
def shards(tmp_path):
    save_config(tmp_path / 'model', CONFIG)
    write_params(tmp_path / 'model', CONFIG, PARAMS, shard_bytes=30_000)
    return tmp_path / 'model'


def one_line(folder, match):
    with pytest.raises(InputError, match=match) as caught:
        load_pretrained(folder)
    assert '\n' not in str(caught.value)


DEEP = '[' * 20_000 + ']' * 20_000


@pytest.mark.parametrize(
    'text, match',
    [
        ('[]', 'holds a list where an object was expected'),
        ('null', 'holds null where an object was expected'),
        ('5', 'holds a number'),
        ('{"weight_map": null}', '"weight_map" is null'),
        ('{"weight_map": []}', '"weight_map" is a list'),
        ('{"weight_map": {}}', '"weight_map" is an object'),
        ('{"weight_map": {"a": 5}}', '"weight_map" is an object'),
        ('{}', '"weight_map" is null'),
        ('{"weight_map": {"a": ""}}', 'is not in .*, though'),
        (b'\xff\xfe', 'not JSON'),
        (DEEP, 'not JSON'),
        ('{"a": ' + '9' * 5000 + '}', 'not JSON'),
    ],
)
def test_an_index_that_is_none(shards, text, match):
    path = shards / 'model.safetensors.index.json'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    one_line(shards, match)


@pytest.mark.parametrize(
    'header', ['[]', 'null', 'NaN', '"x"', '{"a": 5}', '{"a": {"data_offsets": 1}}', '{"a": ' * 10_000]
)
def test_a_header_that_is_none(folder, header):
    content = header.encode()
    (folder / 'model.safetensors').write_bytes(len(content).to_bytes(8, 'little') + content + bytes(100))
    one_line(folder, r'model.safetensors: a broken safetensors file \(.+\)$')
    (folder / 'model.safetensors').write_bytes((2**60).to_bytes(8, 'little') + content)
    one_line(folder, r'model.safetensors: a broken safetensors file \(it ends within its header\)$')


def edit(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize('text', ['[]', 'null', b'\xff', DEEP, '{"model_type": []}', '{"model_type": {}}'])
def test_a_configuration_that_is_none(folder, text):
    (folder / 'config.json').write_bytes(text if isinstance(text, bytes) else text.encode())
    one_line(folder, 'config.json')
    (folder / 'config.json').unlink()
    (folder / 'config.json').mkdir()
    one_line(folder, 'config.json: is no file')


@pytest.mark.parametrize(
    'entries',
    [
        {'num_hidden_layers': 10**12},
        {'num_hidden_layers': 0},
        {'num_attention_heads': -4},
        {'num_attention_heads': 3, 'head_dim': 8},
        {'num_key_value_heads': 3},
        {'head_dim': 10**9},
        {'vocab_size': 10**12},
        {'hidden_size': 10**7},
        {'rms_norm_eps': float('nan')},
        {'rms_norm_eps': 'small'},
        {'rope_parameters': {'rope_type': 'linear', 'factor': 'x', 'rope_theta': 1e4}},
        {'rope_parameters': {'rope_type': 'default', 'rope_theta': float('inf')}},
        {'rope_parameters': []},
        {'hidden_act': ['silu']},
        {'quantization_config': {'quant_method': 'fp8'}},
    ],
    ids=str,
)
def test_sizes_and_numbers_that_no_model_has(folder, entries):
    edit(folder / 'config.json', **entries)
    one_line(folder, 'config.json|is .* where config.json says')


# Nothing outside.


@pytest.mark.parametrize(
    'name', ['../outside.safetensors', '{parent}/outside.safetensors', 'a/../../outside.safetensors']
)
def test_a_shard_that_is_named_outside_is_not_read(shards, name):
    index = shards / 'model.safetensors.index.json'
    said = json.loads(index.read_text())
    tensor, file = next(iter(said['weight_map'].items()))
    shutil.copy(shards / file, shards.parent / 'outside.safetensors')
    (shards / 'a').mkdir()
    said['weight_map'][tensor] = name.format(parent=shards.parent)
    index.write_text(json.dumps(said))
    one_line(shards, r'outside.safetensors: is not in .*, though .*index.json says that it holds ')


@pytest.mark.parametrize('name', ['model.safetensors', 'config.json', 'tokenizer.json', 'generation_config.json'])
@pytest.mark.parametrize('absolute', [True, False])
def test_a_link_that_leads_outside_is_not_read(folder, name, absolute):
    outside = folder.parent / name
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside if absolute else os.path.join('..', name))
    one_line(folder, rf'{name}: leads out of the folder, to .*{name}; only files inside are read')
    if name == 'tokenizer.json':
        with pytest.raises(InputError, match='leads out of the folder'):
            read_tokenizer(folder)
    # Within the folder a link is a file like any other.
    (folder / name).unlink()
    (folder / 'kept').mkdir()
    outside.rename(folder / 'kept' / name)
    (folder / name).symlink_to(os.path.join('kept', name))
    load_pretrained(folder)


def test_the_hub_s_cache_of_links_to_blobs_is_read(folder, tmp_path):
    root = tmp_path / 'models--owner--name'
    snapshot, blobs = root / 'snapshots/abc', root / 'blobs'
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(i))
        (snapshot / path.name).symlink_to(f'../../blobs/{i}')
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(snapshot)[1], PARAMS)
    (tmp_path / 'link').symlink_to(snapshot)
    load_pretrained(tmp_path / 'link')


def test_a_link_to_itself_is_one_line(folder):
    (folder / 'generation_config.json').unlink()
    (folder / 'generation_config.json').symlink_to('generation_config.json')
    one_line(folder, 'generation_config.json: ')


# Configuration against weights.


def change(folder, *gone, **tensors):
    path = folder / 'model.safetensors'
    held = {name: tensor for name, tensor in load_file(path).items() if name not in gone}
    save_file(held | tensors, path)


def test_what_config_json_denies_is_refused(folder, caplog):
    bias = {'model.layers.1.self_attn.q_proj.bias': np.ones(32, np.float32)}
    change(folder, **bias)
    one_line(folder, r'holds model.layers.1.self_attn.q_proj.bias, which a model as config.json describes it does not')
    change(folder, *bias)
    edit(folder / 'config.json', num_hidden_layers=1)
    one_line(folder, r'holds model.layers.1.input_layernorm.weight, which a model as config.json describes')
    edit(folder / 'config.json', num_hidden_layers=2)
    change(folder, **{'vision.x': np.ones(3, np.float32), 'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(4)})
    load_pretrained(folder)
    assert '1 tensors that a llama model has no use for, such as vision.x' in caplog.text


def test_a_tied_head_of_its_own_is_refused(folder):
    embedding = load_file(folder / 'model.safetensors')['model.embed_tokens.weight']
    change(folder, **{'lm_head.weight': embedding})
    load_pretrained(folder)
    change(folder, **{'lm_head.weight': embedding + 1})
    one_line(folder, r'lm_head.weight is another matrix than model.embed_tokens.weight, though .*it should be false')


def test_numbers_that_are_no_floats_are_refused(folder):
    change(folder, **{'model.norm.weight': np.ones(32, np.int32)})
    one_line(folder, r'model.norm.weight holds I32; F32, BF16, F16, F64 are read')


def test_a_whole_file_stands_above_an_index_as_in_transformers(folder):
    index = {'weight_map': {'model.norm.weight': 'nowhere.safetensors'}}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(folder)[1], PARAMS)


# Tokenizers.


@pytest.mark.parametrize(
    'name, text',
    [
        ('tokenizer.json', '{}'),
        ('tokenizer.json', '[]'),
        ('tokenizer.json', DEEP),
        ('tokenizer.json', b'\xff'),
        ('tokenizer_config.json', '[]'),
        ('tokenizer_config.json', DEEP),
        ('tokenizer_config.json', '{"tokenizer_class": 5}'),
        ('tokenizer_config.json', '{"auto_map": {"AutoTokenizer": ["x.Y", null]}, "tokenizer_class": "Y"}'),
        ('tokenizer_config.json', '{"chat_template": [{"a": 1}]}'),
        ('tokenizer_config.json', '{"eos_token": ["a", "b"]}'),
    ],
)
def test_broken_tokenizers_are_one_line(folder, name, text):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match='no tokenizer that transformers can read') as caught:
        read_tokenizer(folder)
    assert '\n' not in str(caught.value)
