"""Every family against transformers' own torch model: logits and scores, padding and packing, in and out."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.hf.families import FAMILIES
from rlax_ft.hf.folder import load_pretrained, save_pretrained
from rlax_ft.models.heads import ScalarModel
from rlax_ft.models.transformer import Transformer
from rlax_ft.sampling.sampler import generate

torch = pytest.importorskip('torch', reason='torch is not installed: pip install -e .[parity]')
transformers = pytest.importorskip('transformers')

SHAPE = dict(
    vocab_size=48,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
LLAMA3 = dict(rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
# Case -> (model type, what differs from SHAPE).
CASES = {
    'llama': ('llama', dict(head_dim=12, tie_word_embeddings=True)),
    'llama with biases': ('llama', dict(attention_bias=True, mlp_bias=True)),
    'llama3 rope': ('llama', dict(rope_parameters=LLAMA3 | dict(rope_theta=1e4, original_max_position_embeddings=16))),
    'linear rope': ('llama', dict(rope_parameters=dict(rope_type='linear', factor=4.0, rope_theta=1e4))),
    'yarn rope': (
        'qwen3',
        dict(
            head_dim=8,
            rope_parameters=dict(
                rope_type='yarn', factor=4.0, rope_theta=1e4, original_max_position_embeddings=16, beta_fast=4.0
            ),
        ),
    ),
    'mistral': ('mistral', dict(sliding_window=4)),
    'qwen2': ('qwen2', dict(tie_word_embeddings=True)),
    'qwen2 with windows': ('qwen2', dict(use_sliding_window=True, sliding_window=3, max_window_layers=1)),
    'qwen3': ('qwen3', dict(head_dim=16)),
    'gemma2': (
        'gemma2',
        dict(
            head_dim=8,
            sliding_window=4,
            num_hidden_layers=3,
            query_pre_attn_scalar=16,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=1.5,
        ),
    ),
    'gemma3_text': (
        'gemma3_text',
        dict(
            head_dim=8,
            sliding_window=4,
            num_hidden_layers=3,
            query_pre_attn_scalar=16,
            layer_types=['sliding_attention', 'full_attention', 'sliding_attention'],
            rope_parameters=dict(
                full_attention=dict(rope_type='linear', factor=4.0, rope_theta=1e6),
                sliding_attention=dict(rope_type='default', rope_theta=100.0),
            ),
        ),
    ),
    'phi3': ('phi3', dict(sliding_window=None)),
    'phi3 with partial rotary': ('phi3', dict(partial_rotary_factor=0.5)),
    'smollm3': ('smollm3', dict(no_rope_layer_interval=2, num_hidden_layers=3)),
    'stablelm': ('stablelm', dict(use_qkv_bias=True)),
    'olmo2': ('olmo2', {}),
    'gpt2': ('gpt2', dict(n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    'gpt_neox': ('gpt_neox', {}),
    'gpt_neox in turn': ('gpt_neox', dict(use_parallel_residual=False, rope_parameters=dict(rope_type='default'))),
    'qwen3_moe': (
        'qwen3_moe',
        dict(head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=False),
    ),
    'mixtral': ('mixtral', dict(num_local_experts=4, num_experts_per_tok=2)),
}

STORIES = Path(__file__).parents[2].parent / 'shared/weights/stories260K'
LENGTH = 14
PAD = 0
rng = np.random.default_rng(0)
WORDS = rng.integers(3, SHAPE['vocab_size'], size=(4, LENGTH))
# One row each: whole, padded on the right, padded on the left, two texts packed with padding after them.
SEGMENTS = np.asarray(
    [[1] * LENGTH, [1] * 9 + [0] * 5, [0] * 4 + [1] * 10, [1] * 6 + [2] * 7 + [0]],
)
TOKENS = np.where(SEGMENTS > 0, WORDS, PAD)
POSITIONS = np.asarray(
    [range(LENGTH), [*range(9), *[0] * 5], [0] * 4 + [*range(10)], [*range(6), *range(7), 0]],
)
TEXTS = [(row, segment) for row in range(4) for segment in (1, 2) if (SEGMENTS[row] == segment).any()]


def test_every_family_has_a_case():
    assert {model_type for model_type, _ in CASES.values()} == set(FAMILIES)


def torch_config(case, **more):
    model_type, entries = CASES[case]
    shape = SHAPE if model_type != 'gpt2' else {'vocab_size': SHAPE['vocab_size']}
    ids = dict(bos_token_id=1, eos_token_id=2, pad_token_id=PAD)
    return transformers.AutoConfig.for_model(model_type, **(shape | ids | entries | more))


def randomized(model):
    """Weights that give activations and logits of order 1, and norms and biases that are not 1 and 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.2 * noise)
    return model.eval()


def torch_logits(model):
    """Logits of each text by itself, without padding: what every layout must give."""
    with torch.no_grad():
        return [model(torch.tensor(WORDS[r][SEGMENTS[r] == s][None])).logits[0].numpy() for r, s in TEXTS]


def our_logits(config, params):
    model = Transformer(config)

    @jax.jit
    def forward(params):
        hidden, _ = model.apply({'params': params}, jnp.asarray(TOKENS), jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS))
        return model.apply({'params': params}, hidden, method='unembed')

    logits = np.asarray(forward(params))
    return [logits[r][SEGMENTS[r] == s] for r, s in TEXTS]


def assert_close(ours, theirs):
    spread = np.std(np.concatenate(theirs))
    assert 0.3 < spread < 4.0, f'logits of order 1 were meant, not {spread}'
    for mine, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, right, atol=1e-4, rtol=0)


@pytest.mark.parametrize('case', CASES)
def test_logits_in_and_out(case, tmp_path):
    theirs = randomized(transformers.AutoModelForCausalLM.from_config(torch_config(case)))
    theirs.save_pretrained(tmp_path / 'theirs')
    right = torch_logits(theirs)
    config, params, _ = load_pretrained(tmp_path / 'theirs')
    assert_close(our_logits(config, params), right)
    save_pretrained(tmp_path / 'ours', config, params)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours')
    assert type(again) is type(theirs)
    for mine, theirs_ in zip(torch_logits(again), right):
        np.testing.assert_array_equal(mine, theirs_)


@pytest.mark.parametrize('case', ['llama', 'qwen3', 'gemma3_text', 'gpt2', 'gpt_neox', 'mixtral'])
def test_scores_in_and_out(case, tmp_path):
    labels = dict(num_labels=1, id2label={0: 'score'}, label2id={'score': 0})
    theirs = randomized(transformers.AutoModelForSequenceClassification.from_config(torch_config(case, **labels)))
    theirs.save_pretrained(tmp_path / 'theirs')
    config, params, _ = load_pretrained(tmp_path / 'theirs')
    arrays = (jnp.asarray(x[:2]) for x in (TOKENS, POSITIONS, SEGMENTS))
    values = jax.jit(ScalarModel(config).apply)({'params': params}, *arrays)
    ours = [float(values[0, -1]), float(values[1, 8])]

    def score(model):
        with torch.no_grad():
            mask = torch.tensor(SEGMENTS[:2] > 0).long()
            return model(torch.tensor(TOKENS[:2]), attention_mask=mask).logits[:, 0].numpy()

    np.testing.assert_allclose(ours, score(theirs), atol=1e-4, rtol=0)
    save_pretrained(tmp_path / 'ours', config, params)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / 'ours')
    np.testing.assert_array_equal(score(again), score(theirs))


@pytest.mark.skipif(not STORIES.exists(), reason='the shared pretrained model is not here')
def test_real_weights_give_the_same_logits_and_greedy_tokens(tmp_path):
    config, params, tokenizer = load_pretrained(STORIES)
    save_pretrained(tmp_path, config, params, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tokenizer('Once upon a time').input_ids
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)('Once upon a time').input_ids == ids
    prompt = np.asarray([ids])
    right = theirs.generate(torch.tensor(prompt), max_new_tokens=40, do_sample=False, pad_token_id=0)[:, len(ids) :]
    ours = generate(
        Transformer(config).apply,
        {'params': params},
        jnp.asarray(prompt),
        jnp.ones(prompt.shape, bool),
        jax.random.key(0),
        max_new_tokens=40,
        temperature=0.0,
    )
    np.testing.assert_array_equal(ours.tokens, right.numpy())
    model = Transformer(config)
    text = np.concatenate([prompt, right.numpy()], axis=1)
    logits = model.apply({'params': params}, model.apply({'params': params}, text)[0], method='unembed')
    with torch.no_grad():
        np.testing.assert_allclose(logits, theirs(torch.tensor(text)).logits.numpy(), atol=1e-4, rtol=0)
