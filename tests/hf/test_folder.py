"""Hugging Face folders: round trips, shards, placing on a mesh, and broken folders; test_parity.py has the numbers."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.hf.folder import load_pretrained, save_config, save_pretrained
from rlax_ft.hf.weights import write_params
from rlax_ft.models.config import embedded_config
from rlax_ft.models.heads import ScalarModel, reward_params
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.parallel.mesh import make_mesh, tree_shardings
from rlax_ft.sampling.sampler import generate

STORIES = Path(__file__).parents[2].parent / 'shared/weights/stories260K'
CONFIG = embedded_config('tiny', vocab_size=8, max_length=16)


@pytest.fixture
def folder(tmp_path):
    save_pretrained(tmp_path, CONFIG, init_params(CONFIG, jax.random.key(0)), word_tokenizer('abcde'))
    return tmp_path


def test_round_trip(folder):
    config, params, tokenizer = load_pretrained(folder)
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, params, init_params(CONFIG, jax.random.key(0)))
    assert tokenizer('a b').input_ids == word_tokenizer('abcde')('a b').input_ids == [1, 3, 4]


def test_reward_model_round_trip(tmp_path):
    params = reward_params(init_params(CONFIG, jax.random.key(0)), jax.random.key(1))
    save_pretrained(tmp_path, CONFIG, params)
    config, loaded, tokenizer = load_pretrained(tmp_path)
    assert tokenizer is None
    tokens = jnp.asarray([[1, 3, 4, 2]])
    np.testing.assert_array_equal(
        ScalarModel(config).apply({'params': loaded}, tokens), ScalarModel(CONFIG).apply({'params': params}, tokens)
    )


def test_transformers_gives_the_same_logits(folder):
    torch = pytest.importorskip('torch', reason='torch is not installed: it is for parity checks only')
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder)
    tokens = np.asarray([[1, 3, 4, 5, 6, 2]])
    config, params, _ = load_pretrained(folder)
    model = Transformer(config)
    ours = model.apply({'params': params}, model.apply({'params': params}, tokens)[0], method='unembed')
    with torch.no_grad():
        np.testing.assert_allclose(ours, theirs(torch.tensor(tokens)).logits.numpy(), atol=1e-5)


def test_real_weights_tell_their_story():
    if not STORIES.exists():
        pytest.skip('the shared pretrained model is not here')
    config, params, tokenizer = load_pretrained(STORIES)
    prompt = jnp.asarray([tokenizer('Once upon a time').input_ids])
    rollout = generate(
        Transformer(config).apply,
        {'params': params},
        prompt,
        jnp.ones_like(prompt, bool),
        jax.random.key(0),
        max_new_tokens=50,
        temperature=0.0,
    )
    story = (
        ', there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball.'
    )
    assert tokenizer.decode(rollout.tokens[0]).startswith(story)


def edit(folder, **entries):
    path = folder / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_mistakes_name_file_and_tensor(folder, tmp_path):
    with pytest.raises(InputError, match=r'config.json: no such file'):
        load_pretrained(tmp_path.parent)
    with pytest.raises(InputError, match=r'not a hub id'):
        load_pretrained('./nowhere')
    edit(folder, model_type='mamba')
    with pytest.raises(InputError, match=r"model_type 'mamba'; known are llama, mistral, .*, mixtral$"):
        load_pretrained(folder)
    edit(folder, model_type='llama', hidden_size=64)
    with pytest.raises(InputError, match=r'model.embed_tokens.weight is \(8, 32\) where config.json says \(8, 64\)'):
        load_pretrained(folder)
    edit(folder, hidden_size=32, num_hidden_layers=3)
    with pytest.raises(InputError, match=r'no tensor model.layers.2.self_attn.k_proj.weight'):
        load_pretrained(folder)
    edit(folder, num_hidden_layers=2, rope_parameters={'rope_type': 'dynamic', 'factor': 2.0})
    with pytest.raises(InputError, match=r"config.json: rope_type 'dynamic' is not supported"):
        load_pretrained(folder)
    edit(folder, rope_parameters=None, num_attention_heads='four')
    with pytest.raises(InputError, match=r'config.json: not a llama configuration \(.*num_attention_heads'):
        load_pretrained(folder)


@pytest.mark.parametrize(
    'length, found', [(-100, r'it ends at byte .*, within model.norm.weight'), (5, 'ends within its header')]
)
def test_a_cut_off_file_names_the_tensor_that_it_breaks_off_in(folder, length, found):
    weights = folder / 'model.safetensors'
    with safe_open(weights, framework='numpy') as file:
        assert 'model.norm.weight' in file.keys()  # noqa: SIM118
    weights.write_bytes(weights.read_bytes()[:length])
    with pytest.raises(InputError, match=rf'model.safetensors: a broken safetensors file \(.*{found}'):
        load_pretrained(folder)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_named(tmp_path, value):
    params = init_params(CONFIG, jax.random.key(0))
    params['layers']['mlp']['up']['kernel'] = params['layers']['mlp']['up']['kernel'].at[1, 3, 5].set(value)
    save_pretrained(tmp_path, CONFIG, params)
    with pytest.raises(
        InputError, match=r'model.safetensors: model.layers.1.mlp.up_proj.weight holds 1 numbers that are'
    ):
        load_pretrained(tmp_path)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    params = init_params(CONFIG, jax.random.key(0))
    save_pretrained(tmp_path, CONFIG, params, word_tokenizer('abcdefg'))
    with pytest.raises(InputError, match=r'10 tokens, more than the 8 rows of model.embed_tokens.weight; .* is .f.$'):
        load_pretrained(tmp_path)
    tokenizer = word_tokenizer('abcde')
    tokenizer.add_special_tokens({'additional_special_tokens': ['<image>']})
    save_pretrained(tmp_path, CONFIG, params, tokenizer)
    assert len(load_pretrained(tmp_path)[2]) == 9


def test_shards_and_a_missing_one(tmp_path):
    params = init_params(CONFIG, jax.random.key(0))
    save_config(tmp_path, CONFIG)
    write_params(tmp_path, CONFIG, params, shard_bytes=30_000)
    shards = sorted(tmp_path.glob('model-*-of-*.safetensors'))
    assert len(shards) > 2 and all(shard.stat().st_size < 31_000 for shard in shards)
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path)[1], params)
    shards[1].unlink()
    with pytest.raises(
        InputError, match=rf'{shards[1].name}: no such file, though .*index.json says that it holds model'
    ):
        load_pretrained(tmp_path)


@pytest.mark.parametrize('spec', ['fsdp=8', 'data=2,fsdp=2,tensor=2'])
def test_loading_places_every_shard(tmp_path, spec):
    config = dataclasses.replace(CONFIG, tied=False)
    params = init_params(config, jax.random.key(0))
    save_pretrained(tmp_path, config, params)
    mesh = make_mesh(spec)
    _, placed, _ = load_pretrained(tmp_path, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, placed, params)
    wanted = tree_shardings(params, mesh)
    assert jax.tree.all(jax.tree.map(lambda x, w: x.sharding.is_equivalent_to(w, x.ndim), placed, wanted))
    assert placed['layers']['mlp']['up']['kernel'].addressable_shards[0].data.size * 4 <= 2 * 32 * 96
    assert placed['head'].addressable_shards[0].data.size < 32 * 8


def test_dtype_on_load_and_on_saving(tmp_path):
    params = init_params(CONFIG, jax.random.key(0))
    save_pretrained(tmp_path, CONFIG, params)
    _, half, _ = load_pretrained(tmp_path, dtype='bfloat16')
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype('bfloat16')), half, params)
    save_pretrained(tmp_path / 'half', CONFIG, half)
    assert json.loads((tmp_path / 'half/config.json').read_text())['dtype'] == 'bfloat16'
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path / 'half', dtype='bfloat16')[1], half)


def test_what_a_folder_says_besides_is_written_back(folder, tmp_path):
    edit(folder, attention_dropout=0.125, eos_token_id=[2, 4])
    (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': [2, 4], 'top_p': 0.9}))
    config, params, tokenizer = load_pretrained(folder)
    save_pretrained(tmp_path / 'again', config, params, tokenizer)
    written = json.loads((tmp_path / 'again/config.json').read_text())
    assert written['attention_dropout'] == 0.125 and written['eos_token_id'] == [2, 4]
    generation = json.loads((tmp_path / 'again/generation_config.json').read_text())
    assert generation['eos_token_id'] == [2, 4] and generation['top_p'] == 0.9 and generation['pad_token_id'] == 0


def test_what_a_family_cannot_say_is_refused(tmp_path):
    config = dataclasses.replace(CONFIG, attention_soft_cap=50.0)
    with pytest.raises(InputError, match=r'config.json: a llama model has no way to say attention_soft_cap=50.0'):
        save_pretrained(tmp_path, config, init_params(config, jax.random.key(0)))
    config = dataclasses.replace(CONFIG, qk_norm='head', family='gpt2')
    with pytest.raises(InputError):
        save_pretrained(tmp_path, config, init_params(config, jax.random.key(0)))


def test_untied_reward_models_carry_no_head_of_the_language_model(tmp_path):
    config = dataclasses.replace(CONFIG, tied=False)
    params = reward_params(init_params(config, jax.random.key(0)), jax.random.key(1))
    assert 'head' not in params['backbone']
    save_pretrained(tmp_path, config, params)
    again, loaded, _ = load_pretrained(tmp_path)
    tokens = jnp.asarray([[1, 3, 4, 2]])
    np.testing.assert_array_equal(
        ScalarModel(again).apply({'params': loaded}, tokens), ScalarModel(config).apply({'params': params}, tokens)
    )
