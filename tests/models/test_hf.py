"""Hugging Face folders: a round trip, transformers' own torch model where torch is installed, and broken folders."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.models.config import embedded_config
from rlax_ft.models.heads import ScalarModel, reward_params
from rlax_ft.models.hf import load_pretrained, save_pretrained
from rlax_ft.models.transformer import Transformer, init_params
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
    assert tokenizer('a b').input_ids == word_tokenizer('abcde')('a b').input_ids == [3, 4]


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
    with pytest.raises(InputError, match=r"model_type 'mamba'; known are llama"):
        load_pretrained(folder)
    edit(folder, model_type='llama', hidden_size=64)
    with pytest.raises(InputError, match=r'where config.json says'):
        load_pretrained(folder)
    edit(folder, hidden_size=32, num_hidden_layers=3)
    with pytest.raises(InputError, match=r'no tensor model.layers.2.self_attn.k_proj.weight'):
        load_pretrained(folder)
    weights = folder / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(InputError, match=r'model.safetensors: a broken safetensors file'):
        load_pretrained(folder)
