"""Every family through the sampler, whole and with an adapter: what it drew is what the trainer scores."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoConfig

from rlax_ft.hf.families import FAMILIES, to_config
from rlax_ft.models.config import LoRAConfig
from rlax_ft.models.lora import Adapter, adapted, attach, init_adapter
from rlax_ft.models.scoring import rollout_batch, token_logps
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.sampling import layout
from rlax_ft.sampling.text import make_sampler, rollout_logps

SHAPE = dict(
    vocab_size=23,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=32,
)
MORE = {
    'gpt2': dict(n_embd=16, n_layer=1, n_head=2, n_positions=32),
    'qwen3_moe': dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8),
    'mixtral': dict(num_local_experts=4, num_experts_per_tok=2),
}
CODEC = SimpleNamespace(max_new_tokens=3, eos_ids=(2,), pad_id=0)
PROMPTS = jnp.asarray([[0, 1, 5], [7, 8, 9]]), jnp.asarray([[0, 1, 1], [1, 1, 1]], bool)


@pytest.mark.parametrize('family', FAMILIES)
def test_every_family_is_sampled_whole_and_with_an_adapter(family):
    config = config_of(family)
    lora = LoRAConfig(2)
    given = dataclasses.replace(config, lora=lora)
    # The numbers of what is joined, and of experts; of the others, that they go through.
    check = agree if family in ('mixtral', 'gpt_neox') else goes_through
    params = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    if check is agree:
        params = jax.tree.map(lambda x: 3 * x, init_params(config, jax.random.key(0)))
    check(Transformer(config).apply, params)
    adapter = init_adapter(params, lora, jax.random.key(1))
    adapter = jax.tree.map(lambda x: x + 0.1, adapter)
    check(adapted(Transformer(given).apply), attach(Adapter(adapter), params))


@pytest.mark.parametrize('family', FAMILIES)
def test_every_family_scores_what_it_drew_alike(family):
    config = config_of(family)
    agree(Transformer(config).apply, jax.tree.map(lambda x: 3 * x, init_params(config, jax.random.key(0))))


def config_of(family):
    shape = {'vocab_size': 23} if family == 'gpt2' else SHAPE
    raw = AutoConfig.for_model(family, **shape | MORE.get(family, {}), pad_token_id=0, eos_token_id=2, bos_token_id=1)
    return to_config(family, raw.to_dict())


def goes_through(apply, params):
    for most in (layout.SHALLOW_ON_CPU, 0):  # Layers apart, and scanned.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layout, 'SHALLOW_ON_CPU', most)
            sampled = jax.eval_shape(make_sampler(apply, CODEC), params, *PROMPTS, jax.random.key(0))
        assert sampled.tokens.shape == (2, 3)


def agree(apply, params):
    rollout = make_sampler(apply, CODEC)(params, *PROMPTS, jax.random.key(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, 'SHALLOW_ON_CPU', 0)
        scanned = make_sampler(apply, CODEC)(params, *PROMPTS, jax.random.key(0))
    np.testing.assert_array_equal(scanned.tokens, rollout.tokens)
    np.testing.assert_allclose(scanned.logps, rollout.logps, atol=1e-4)
    scored = jax.jit(lambda params, rows: token_logps(apply, {'params': params}, rows))(params, rollout_batch(rollout))
    np.testing.assert_allclose(rollout_logps(rollout), scored, atol=1e-4)
    assert np.abs(scored).max() > 0.1
