"""What a run has made to start from, and was killed in making, is made anew."""

import shutil
from types import SimpleNamespace

import jax
import pytest

from rlax_ft.harness.settings import Settings
from rlax_ft.harness.starting_model import make_codec, starting_model

TEXTS = ['the cat sat on the mat', 'the dog sat on the log'] * 9


def spoil(folder, how):
    if how == 'half a file':
        path = folder / 'tokenizer.json'
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == 'one of two files':
        (folder / 'tokenizer_config.json').unlink()
        (folder / 'tokenizer.json').unlink()
    elif how == 'an empty folder':
        shutil.rmtree(folder)
        folder.mkdir()
    elif how == 'a folder beside it':
        folder.rename(folder.with_name('tokenizer.tmp'))
    else:
        (folder / 'tokenizer.json').write_bytes(b'')


@pytest.mark.parametrize(
    'how', ['half a file', 'one of two files', 'an empty folder', 'a folder beside it', 'an empty file']
)
def test_a_tokenizer_that_was_not_written_whole_is_made_anew(tmp_path, how):
    settings = Settings(out=str(tmp_path), data='x.jsonl', model='tiny', tokenizer='bpe:300')
    run = SimpleNamespace(folder=tmp_path)
    first = make_codec(settings, run, lambda: TEXTS).tokenizer
    spoil(tmp_path / 'tokenizer', how)
    again = make_codec(settings, run, lambda: TEXTS).tokenizer
    assert again.get_vocab() == first.get_vocab() and again('the mat').input_ids == first('the mat').input_ids
    # It is there now, and is read: there are no texts to train on.
    read = make_codec(settings, run, lambda: pytest.fail('trained once more')).tokenizer
    assert read.get_vocab() == first.get_vocab() and not (tmp_path / 'tokenizer.tmp').exists()


@pytest.mark.parametrize(
    ('flags', 'dtype'),
    [({}, 'float32'), ({'param_dtype': 'bfloat16'}, 'bfloat16'), ({'lora_rank': 2, 'dtype': 'bfloat16'}, 'bfloat16')],
    ids=str,
)
def test_a_model_starts_in_the_dtype_that_it_is_kept_in(flags, dtype):
    settings = Settings(task='reviews', model='tiny', **flags)
    _, params = starting_model(settings, make_codec(settings, None, list))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
