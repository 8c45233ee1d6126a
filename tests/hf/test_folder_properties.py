"""Any folder that transformers writes and opens: its logits within 1e-4, or one line."""

import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from rlax_ft.errors import InputError
from rlax_ft.hf.folder import load_pretrained
from rlax_ft.models.transformer import Transformer

torch = pytest.importorskip('torch', reason='torch is not installed: pip install -e .[parity]')
transformers = pytest.importorskip('transformers')

TOKENS = np.random.default_rng(0).integers(3, 48, size=(1, 8))
either = st.booleans()
ENTRIES = {
    'rope_parameters': st.sampled_from(
        [
            {'rope_type': 'default', 'rope_theta': 500.0},
            {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 1e4},
            {'rope_type': 'dynamic', 'factor': 2.0, 'rope_theta': 1e4},
            {'rope_type': 'yarn', 'factor': 2.0, 'rope_theta': 1e4, 'original_max_position_embeddings': 8},
        ]
    ),
    'tie_word_embeddings': either,
    'attention_bias': either,
    'mlp_bias': either,
    'num_key_value_heads': st.sampled_from([1, 2, 4]),
    'head_dim': st.sampled_from([8, 16]),
    'hidden_act': st.sampled_from(['silu', 'gelu', 'relu', 'quick_gelu']),
    'sliding_window': st.sampled_from([None, 3]),
    'rms_norm_eps': st.sampled_from([1e-6, 1e-2]),
    'num_hidden_layers': st.sampled_from([1, 2]),
}
FAMILIES = st.sampled_from(['llama', 'mistral', 'qwen2', 'qwen3', 'olmo2', 'mixtral'])


@settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@example('llama', {'sliding_window': 3, 'hidden_activation': 'gelu', 'rms_norm_eps': 1e-2}, 'float32', False)
@given(FAMILIES, st.fixed_dictionaries({}, optional=ENTRIES), st.sampled_from(['float32', 'bfloat16']), either)
def test_any_folder_gives_its_logits_or_one_line(family, entries, dtype, sharded):
    shape = dict(vocab_size=48, hidden_size=32, intermediate_size=24, num_attention_heads=4, max_position_embeddings=32)
    shape = dict(num_hidden_layers=1, num_key_value_heads=2) | shape | entries | dict(pad_token_id=0)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **shape)
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    folder = Path(tempfile.mkdtemp())
    try:
        model.save_pretrained(folder, max_shard_size='20KB' if sharded else '1GB')
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        try:
            ours, params, _ = load_pretrained(folder)
        except InputError as error:
            assert '\n' not in str(error) and str(folder) in str(error)
            return
        apply = Transformer(ours).apply
        hidden = jax.jit(apply)({'params': params}, TOKENS)[0]
        with torch.no_grad():
            right = theirs(torch.tensor(TOKENS)).logits.numpy()
        np.testing.assert_allclose(apply({'params': params}, hidden, method='unembed'), right, atol=1e-4)
    finally:
        shutil.rmtree(folder)
