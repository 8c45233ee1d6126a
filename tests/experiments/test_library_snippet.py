"""From a model folder to log-probabilities, a DPO step and a sample: fewer than 12 lines and at most 4 imports."""

import jax
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.hf import load_pretrained, save_pretrained
from rlax_ft.models.config import embedded_config
from rlax_ft.models.transformer import init_params

SNIPPET = """
import jax
import optax
import rlax_ft as rl
from rlax_ft.losses.preference import dpo_loss

config, params, tokenizer = rl.load_pretrained(FOLDER)
codec, apply = rl.Codec(tokenizer, max_prompt=64, max_new_tokens=8), rl.Transformer(config).apply
pairs = rl.preference_rows(codec, [{'prompt': 'a b', 'chosen': ' c d', 'rejected': ' e'}])
pairs = pairs.replace(ref_logps=rl.candidate_logps(apply, {'params': params}, pairs.candidates))  # [pairs, 2]
optimizer = optax.adamw(1e-2)
step = jax.jit(rl.make_train_step(rl.preference_objective(apply, dpo_loss, beta=0.1), optimizer))
state, metrics = step(rl.init_state(params, optimizer, jax.random.key(0)), (pairs, 1))
sample = rl.make_sampler(apply, codec)
rollout = rl.sample_prompts(sample, state.params, codec, ['a b'], jax.random.key(1), batch_size=1)
print(metrics['loss'], codec.decode(rollout)[0])
"""


@pytest.fixture
def folder(tmp_path):
    config = embedded_config('tiny', vocab_size=8, max_length=80)
    # Most tokenizers of pretrained language models have no PAD.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer('abcde').backend_tokenizer, bos_token='<bos>', eos_token='<eos>'
    )
    assert tokenizer.pad_token_id is None
    save_pretrained(tmp_path, config, init_params(config, jax.random.key(0)), tokenizer)
    return tmp_path


def test_the_snippet_runs_as_it_stands(folder, capsys):
    lines = [line for line in SNIPPET.splitlines() if line]
    imports = [line for line in lines if line.startswith(('import', 'from'))]
    assert len(imports) <= 4 and len(lines) - len(imports) < 12
    names = {'FOLDER': folder}
    exec(compile(SNIPPET, 'snippet', 'exec'), names)
    np.testing.assert_allclose(names['metrics']['loss'], np.log(2), rtol=1e-5)  # Policy and reference are the same.
    # A step later the chosen answer has gained on the rejected one.
    moved = names['rl'].candidate_logps(names['apply'], {'params': names['state'].params}, names['pairs'].candidates)
    gained = moved - names['pairs'].ref_logps
    assert gained[0, 0] > gained[0, 1] and '0.693' in capsys.readouterr().out


def test_a_loaded_tokenizer_can_pad(folder):
    _, _, tokenizer = load_pretrained(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert tokenizer(['a', 'a b'], padding=True).input_ids == [[1, 3, 2], [1, 3, 4]]
