"""What ends a text stands in the folders that we write, and in those that we read; PAD never ends one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlax_ft.data.codec import Codec
from rlax_ft.data.rows import token_rows
from rlax_ft.data.templates import set_chat_template, turn_ends
from rlax_ft.data.tokenizers import train_tokenizer, word_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.harness.rewards import check_vocabulary
from rlax_ft.hf.folder import load_pretrained, read_tokenizer, save_pretrained
from rlax_ft.models.config import embedded_config
from rlax_ft.models.heads import reward_params
from rlax_ft.models.transformer import init_params
from rlax_ft.rewards.learned import RewardModel, load_reward_model, save_reward_model
from rlax_ft.types import Rollout


def model_of(tokenizer, **more):
    config = dataclasses.replace(embedded_config('tiny', vocab_size=len(tokenizer), max_length=32), **more)
    return config, init_params(config, jax.random.key(0))


def test_what_our_sampler_stops_at_is_exported_and_read_again(tmp_path):
    tokenizer = train_tokenizer('bytes', ['a'], ('<|im_start|>', '<|im_end|>'))
    set_chat_template(tokenizer, 'chatml')
    im_end = tokenizer.convert_tokens_to_ids('<|im_end|>')
    save_pretrained(tmp_path, *model_of(tokenizer), tokenizer)
    said = json.loads((tmp_path / 'generation_config.json').read_text())
    assert said['eos_token_id'] == [tokenizer.eos_token_id, im_end] == list(Codec(tokenizer, 8, 8).eos_ids)
    again = load_pretrained(tmp_path)[2]
    assert Codec(again, 8, 8).eos_ids == Codec(tokenizer, 8, 8).eos_ids
    # Without a template of turns there is one end, as an id.
    plain = word_tokenizer('abc')
    save_pretrained(tmp_path / 'plain', *model_of(plain), plain)
    assert json.loads((tmp_path / 'plain/generation_config.json').read_text())['eos_token_id'] == 2


def test_the_ids_that_a_folder_lists_stop_our_sampler(tmp_path):
    tokenizer = word_tokenizer('abcde')
    save_pretrained(tmp_path, *model_of(tokenizer), tokenizer)
    path = tmp_path / 'generation_config.json'
    path.write_text(json.dumps({'eos_token_id': [2, 5], 'top_p': 0.9}))
    config, params, read = load_pretrained(tmp_path)
    codec = Codec(read, 4, 4)
    assert codec.eos_ids == (2, 5) == Codec(read_tokenizer(tmp_path), 4, 4).eos_ids
    assert turn_ends(read) == (2,), 'training ends a row as before'
    # The text stops before it, special token or not.
    tokens = np.asarray([[3, 4, 5, 0], [3, 4, 4, 4]])
    rollout = Rollout(None, None, tokens, np.asarray([[1, 1, 1, 0], [1, 1, 1, 1]], bool), None)
    assert codec.decode(rollout) == (['a b', 'a b b b'], [True, False])
    save_pretrained(tmp_path / 'again', config, params, read)
    said = json.loads((tmp_path / 'again/generation_config.json').read_text())
    assert said['eos_token_id'] == [2, 5] and said['top_p'] == 0.9
    path.unlink()
    edit(tmp_path / 'config.json', eos_token_id=[2, 6])
    assert Codec(read_tokenizer(tmp_path), 4, 4).eos_ids == (2, 6)
    for given in ('x', [2, 2**40]):
        edit(path.with_name('config.json'), eos_token_id=2)
        path.write_text(json.dumps({'eos_token_id': given}))
        with pytest.raises(InputError, match=r'generation_config.json: eos_token_id is .*; an id or a list of ids'):
            load_pretrained(tmp_path)


def edit(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def reward_of(tokenizer, **more):
    config, params = model_of(tokenizer, **more)
    return RewardModel(config, reward_params(params, jax.random.key(1)), 0.5)


def bare_tokenizer():
    """Words, EOS and no PAD."""
    words = Tokenizer(models.WordLevel({'<eos>': 0, 'a': 1, 'b': 2, 'c': 3}, unk_token='a'))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token='<eos>')


@pytest.mark.parametrize('case', ['eos', 'end of turn', 'beyond the embedding', 'none'])
def test_a_reward_model_s_pad_ends_no_row(tmp_path, case):
    tokenizer = train_tokenizer('bytes', ['a'], ('<|im_start|>', '<|im_end|>'))
    if case == 'none':
        tokenizer = bare_tokenizer()
    model = reward_of(tokenizer)
    if case == 'end of turn':
        set_chat_template(tokenizer, 'chatml')
        tokenizer.pad_token = '<|im_end|>'
    elif case == 'beyond the embedding':
        tokenizer.add_special_tokens({'pad_token': '[PAD]'})
    else:
        tokenizer.pad_token = tokenizer.eos_token
    before = tokenizer.get_vocab()
    save_reward_model(tmp_path, model, tokenizer)
    said = json.loads((tmp_path / 'config.json').read_text())
    loaded, again = load_reward_model(tmp_path)
    assert said['pad_token_id'] == again.pad_token_id not in Codec(again, 8, 8).eos_ids
    assert again.pad_token_id < said['vocab_size'] == loaded.config.vocab_size
    assert (said['vocab_size'] > model.config.vocab_size) is (case == 'none')
    assert tokenizer.get_vocab() == before, 'the run goes on with its own tokenizer'
    check_vocabulary('--reward', again, Codec(tokenizer, 8, 8))
    rows = token_rows(Codec(tokenizer, 8, 8, vocab_size=model.config.vocab_size), ['a', 'a b c'], ['b', 'b c a'])
    np.testing.assert_allclose(loaded(rows), model(rows), atol=1e-6)


def test_another_vocabulary_is_still_refused():
    ours, theirs = Codec(word_tokenizer('abc'), 4, 4), word_tokenizer('abd')
    with pytest.raises(InputError, match='another vocabulary'):
        check_vocabulary('--reward=x', theirs, ours)


@pytest.mark.parametrize('pad', ['eos', 'own'])
def test_transformers_gives_our_score_batched_and_not(tmp_path, pad):
    torch = pytest.importorskip('torch', reason='torch is not installed: it is for parity checks only')
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = train_tokenizer('bytes', ['a'])
    tokenizer.pad_token = tokenizer.eos_token if pad == 'eos' else tokenizer.pad_token
    model = reward_of(tokenizer).replace(mean=0.0)
    # Larger weights, so that the last token matters.
    model = model.replace(params=jax.tree.map(lambda x: 3 * x, model.params))
    save_reward_model(tmp_path, model, tokenizer)
    texts = [('a', ' good'), ('a longer one', ' b'), ('x', '')]
    rows = token_rows(Codec(tokenizer, 32, 32), *map(list, zip(*texts)))
    ours = np.asarray(model(rows))
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    reader = AutoTokenizer.from_pretrained(tmp_path)
    whole = [reader.bos_token + prompt + response + reader.eos_token for prompt, response in texts]
    for side in ('right', 'left'):
        reader.padding_side = side
        batch = reader(whole, padding=True, add_special_tokens=False, return_tensors='pt')
        positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            scores = theirs(batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions).logits[:, 0]
        np.testing.assert_allclose(scores.numpy(), ours, atol=1e-4)
    for text, score in zip(whole, ours):
        with torch.no_grad():
            alone = theirs(**reader(text, add_special_tokens=False, return_tensors='pt')).logits[0, 0]
        np.testing.assert_allclose(float(alone), score, atol=1e-4)
    assert np.ptp(ours) > 0.1


def test_without_a_tokenizer_no_pad_is_said_that_is_eos(tmp_path):
    tokenizer = word_tokenizer('abc')
    model = reward_of(tokenizer)
    notes = json.dumps({'config': {'pad_token_id': 2, 'eos_token_id': [2, 3]}, 'generation_config': {}})
    config = dataclasses.replace(model.config, notes=notes)
    save_pretrained(tmp_path, config, model.params)
    assert json.loads((tmp_path / 'config.json').read_text())['pad_token_id'] is None


def test_an_adapter_in_a_bfloat16_base_keeps_its_effect(tmp_path):
    """Merged in bfloat16, 0.31 of a small update was kept."""
    from rlax_ft.models.config import LoRAConfig
    from rlax_ft.models.lora import init_adapter, merge

    tokenizer, lora = word_tokenizer('abc'), LoRAConfig(2)
    config, params = model_of(tokenizer)
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    adapter = jax.tree.map(lambda x: x + 3e-5, init_adapter(params, lora, jax.random.key(1)))
    merged = merge(base, adapter, lora)
    save_pretrained(tmp_path, config, merged, tokenizer)
    assert json.loads((tmp_path / 'config.json').read_text())['dtype'] == 'float32'
    read = load_pretrained(tmp_path)[1]
    for name in ('query', 'out'):
        kernel, a, b = (x['layers']['attention'][name] for x in (base, adapter, adapter))
        change = np.asarray(read['layers']['attention'][name]['kernel'] - kernel['kernel'].astype(jnp.float32))
        wanted = lora.scaling * np.einsum('lir,lro->lio', a['A'], b['B'])
        np.testing.assert_allclose((change * wanted).sum() / (wanted**2).sum(), 1.0, atol=1e-3)
