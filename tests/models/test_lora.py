"""LoRA: identity at the start, only the adapter learns, merging, and PEFT's own reading of what we write."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_ft.errors import InputError
from rlax_ft.hf.folder import load_pretrained, save_pretrained
from rlax_ft.hf.peft import load_adapter, save_adapter
from rlax_ft.models.config import LoRAConfig, embedded_config
from rlax_ft.models.heads import ScalarModel
from rlax_ft.models.lora import Adapted, Adapter, adapted, adapter_objective, attach, init_adapter, merge
from rlax_ft.models.transformer import Transformer, init_params, layers_apart
from rlax_ft.parallel.compile import compile_step
from rlax_ft.training.step import init_state, make_train_step

LORA = LoRAConfig(rank=3, alpha=6.0)
CONFIG = dataclasses.replace(embedded_config('tiny', vocab_size=23, max_length=32), lora=LORA)
TOKENS = jax.random.randint(jax.random.key(1), (8, 7), 0, 23)


@pytest.fixture(scope='module')
def base():
    return init_params(CONFIG, jax.random.key(1))


def noisy(adapter, scale=0.3):
    """An adapter that does something: B is not 0."""
    leaves, structure = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    return jax.tree.unflatten(structure, [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])


def hidden_of(params, config=CONFIG, **kwargs):
    return adapted(Transformer(config).apply)({'params': params}, TOKENS, **kwargs)[0]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_fresh_adapter_is_the_identity_to_the_bit(base, dtype):
    config = dataclasses.replace(CONFIG, dtype=dtype)
    base = jax.tree.map(lambda x: x.astype(dtype), base)
    plain = Transformer(config).apply({'params': base}, TOKENS)[0]
    adapter = init_adapter(base, LORA, jax.random.key(2))
    np.testing.assert_array_equal(hidden_of(Adapted(base, adapter), config), plain)
    np.testing.assert_array_equal(hidden_of(Adapted(base), config), plain)
    assert np.abs(hidden_of(Adapted(base, noisy(adapter)), config) - plain).max() > 0.1


def test_layers_apart_are_the_same_policy(base):
    whole = Adapted(base, noisy(init_adapter(base, LORA, jax.random.key(2))))
    apart = Adapted(layers_apart(whole.base), layers_apart(whole.lora))
    np.testing.assert_allclose(hidden_of(apart), hidden_of(whole), rtol=1e-4, atol=1e-5)
    assert np.abs(hidden_of(whole) - hidden_of(Adapted(base))).max() > 0.1


@pytest.mark.parametrize('rslora', [False, True])
def test_merged_parameters_give_what_base_and_adapter_give(base, rslora):
    lora = dataclasses.replace(LORA, rslora=rslora)
    config = dataclasses.replace(CONFIG, lora=lora)
    adapter = noisy(init_adapter(base, lora, jax.random.key(2)))
    merged = merge(base, adapter, lora)
    plain = Transformer(config).apply({'params': merged}, TOKENS)[0]
    np.testing.assert_allclose(hidden_of(Adapted(base, adapter), config), plain, atol=2e-5)
    kernel, a, b = (x['layers']['attention']['query'] for x in (base, adapter, adapter))
    wanted = kernel['kernel'][1] + (6.0 / 3**0.5 if rslora else 2.0) * a['A'][1] @ b['B'][1]
    np.testing.assert_allclose(merged['layers']['attention']['query']['kernel'][1], wanted, atol=1e-6)
    assert merged['embed']['embedding'] is base['embed']['embedding']


def test_targets_choose_what_is_adapted(base):
    adapter = init_adapter(base, dataclasses.replace(LORA, targets='query|down'), jax.random.key(0))
    assert set(adapter['layers']) == {'attention', 'mlp'}
    assert set(adapter['layers']['attention']) == {'query'} and set(adapter['layers']['mlp']) == {'down'}
    with pytest.raises(InputError, match=r'--lora_targets=q_proj: matches none of attention/key, attention/out'):
        init_adapter(base, dataclasses.replace(LORA, targets='q_proj'), jax.random.key(0))


def test_dropout_is_on_only_where_a_key_is_given(base):
    lora = dataclasses.replace(LORA, dropout=0.5)
    config = dataclasses.replace(CONFIG, lora=lora)
    adapter = noisy(init_adapter(base, lora, jax.random.key(2)))
    plain = hidden_of(Adapted(base, adapter), config)
    np.testing.assert_array_equal(plain, hidden_of(Adapted(base, adapter)))
    draws = [hidden_of(Adapted(base, adapter, key=jax.random.key(k)), config) for k in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 0.01 and np.abs(draws[0] - plain).max() > 0.01


@pytest.mark.parametrize('backend', ['jit', 'pmap'])
def test_only_the_adapter_learns_and_the_base_is_neither_donated_nor_changed(base, backend):
    before = jax.tree.map(np.asarray, base)
    apply = adapted(Transformer(CONFIG).apply)

    def objective(params, batch, key):
        tokens, total = batch
        return jnp.sum(jnp.square(apply({'params': params}, tokens)[0])) / total, {}

    optimizer = optax.adam(1e-2)
    axis_name = 'data' if backend == 'pmap' else None
    step = make_train_step(adapter_objective(objective), optimizer, micro_batches=1, axis_name=axis_name)
    compiled = compile_step(step, backend=backend)
    state = init_state(Adapter(init_adapter(base, LORA, jax.random.key(2))), optimizer, jax.random.key(0))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert moments == 2 * sum(leaf.size for leaf in jax.tree.leaves(state.params)) + 1
    losses = []
    for _ in range(4):
        state, metrics = compiled(state, (TOKENS, np.float32(len(TOKENS))), base)
        losses.append(float(metrics['loss']))
    assert losses[-1] < losses[0]
    assert np.abs(state.params.lora['layers']['attention']['query']['B']).max() > 0
    jax.tree.map(np.testing.assert_array_equal, base, before)


def test_micro_batches_and_scalar_heads_learn_beside_a_shared_base(base):
    apply = adapted(ScalarModel(CONFIG).apply)

    def objective(params, batch, key):
        tokens, total = batch
        return jnp.sum(jnp.square(apply({'params': params['value']}, tokens) - 1.0)) / total, {}

    optimizer = optax.sgd(1e-2)
    params = {'value': Adapter(init_adapter(base, LORA, jax.random.key(2)), {'kernel': jnp.ones((32, 1))})}
    results = []
    for parts in (1, 4):
        step = jax.jit(make_train_step(adapter_objective(objective), optimizer, micro_batches=parts))
        state, _ = step(init_state(params, optimizer, jax.random.key(0)), (TOKENS, np.float32(8.0)), base)
        results.append(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results)
    assert np.abs(results[0]['value'].head['kernel'] - 1).max() > 0


def test_attach_shares_the_base(base):
    both = attach({'policy': Adapter(1), 'value': Adapter(2, 3)}, base)
    assert both['policy'].base is both['value'].base is base
    assert attach({'any': 'parameters'}, None) == {'any': 'parameters'}


def torch_model(case, folder):
    torch = pytest.importorskip('torch', reason='torch is not installed: pip install -e .[parity]')
    transformers = pytest.importorskip('transformers')
    pytest.importorskip('peft', reason='peft is not installed: pip install -e .[parity]')
    torch.manual_seed(0)
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    if case == 'gpt2':
        shape = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ids = dict(vocab_size=23, bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.2)
    config = transformers.AutoConfig.for_model(case, **shape, **ids)
    transformers.AutoModelForCausalLM.from_config(config).eval().save_pretrained(folder)
    return torch, transformers.AutoModelForCausalLM.from_pretrained(folder)


def our_logits(config, params):
    apply = adapted(Transformer(config).apply)
    hidden, _ = apply({'params': params}, TOKENS)
    return np.asarray(apply({'params': params}, hidden, method='unembed'))


def their_logits(torch, model):
    with torch.no_grad():
        return model(torch.tensor(np.asarray(TOKENS))).logits.numpy()


@pytest.mark.parametrize('case', ['llama', 'phi3', 'gpt2', 'gpt_neox'])
def test_peft_opens_our_adapter_and_we_open_peft_s(case, tmp_path):
    torch, theirs = torch_model(case, tmp_path / 'base')
    import peft

    config, base, _ = load_pretrained(tmp_path / 'base')
    config = dataclasses.replace(
        config, lora=dataclasses.replace(LORA, rslora=case == 'llama', targets='query|value|up')
    )
    adapter = noisy(init_adapter(base, config.lora, jax.random.key(2)))
    ours = our_logits(config, Adapted(base, adapter))
    assert np.abs(ours - our_logits(config, Adapted(base))).max() > 0.1
    save_adapter(tmp_path / 'ours', config, adapter, base=str(tmp_path / 'base'))
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path / 'ours').eval()
    np.testing.assert_allclose(their_logits(torch, opened), ours, atol=1e-4)
    # And back, from the folder that peft writes.
    opened.save_pretrained(tmp_path / 'theirs')
    again, read = load_adapter(tmp_path / 'theirs', dataclasses.replace(config, lora=None))
    np.testing.assert_allclose(our_logits(again, Adapted(base, read)), ours, atol=1e-4)
    assert again.lora.rank == 3 and again.lora.rslora == (case == 'llama')


def test_broken_adapters_are_named(base, tmp_path):
    save_pretrained(tmp_path / 'base', CONFIG, base)
    save_adapter(tmp_path, CONFIG, init_adapter(base, LORA, jax.random.key(0)))
    with pytest.raises(InputError, match=r'adapter_config.json: no such file'):
        load_adapter(tmp_path / 'base', CONFIG)
    with pytest.raises(
        InputError,
        match=r'self_attn.k_proj has A \(3, 32\) and B \(16, 3\) where .* \(8, 3\)',
    ):
        load_adapter(tmp_path, dataclasses.replace(CONFIG, heads=2, kv_heads=1))
    (tmp_path / 'adapter_model.safetensors').write_bytes(b'nothing')
    with pytest.raises(InputError, match=r'adapter_model.safetensors: not to be read'):
        load_adapter(tmp_path, CONFIG)
