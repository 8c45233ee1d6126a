"""The language scripts on message lists: packing, streams that resume exactly, templates that travel with the model."""

import gzip
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from rlax_ft.data.records import read_demonstrations, read_pairs, write_records
from rlax_ft.data.templates import TEMPLATES
from rlax_ft.errors import InputError
from rlax_ft.harness.loading import load_script
from rlax_ft.hf.folder import load_pretrained
from rlax_ft.training.metrics import MetricsWriter, read_records

SCRIPTS = Path(__file__).parents[2] / 'experiments'
dpo = load_script(SCRIPTS / 'dpo.py')
ppo = load_script(SCRIPTS / 'ppo.py')
reward_model = load_script(SCRIPTS / 'reward_model.py')
sft = load_script(SCRIPTS / 'sft.py')

SHARED = Path(__file__).parents[2].parent / 'shared'
TINY = {'model': 'tiny', 'max_steps': 3, 'save_every': 2, 'batch_size': 8, 'tokenizer': 'bytes', 'learning_rate': 1e-3}
LENGTHS = {'max_prompt_tokens': 64, 'max_new_tokens': 64}


def talk(i, answer):
    return [{'role': 'user', 'content': f'What is {i}?'}, {'role': 'assistant', 'content': answer}]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder with pairs of conversations, demonstrations, and a model that was tuned on the latter."""
    folder = tmp_path_factory.mktemp('data')
    pairs = [{'chosen': talk(i, f'It is {i}.'), 'rejected': talk(i, 'No idea.')} for i in range(60)]
    write_records(folder / 'pairs.jsonl', pairs)
    write_records(folder / 'talks.jsonl', [{'messages': talk(i, 'so ' * (i % 15) + 'much')} for i in range(60)])
    write_records(folder / 'prompts.jsonl', [{'messages': talk(i, '')[:1]} for i in range(20)])
    start = {**TINY, **LENGTHS, 'data': f'{folder}/talks.jsonl', 'out': f'{folder}/sft', 'chat_template': 'chatml'}
    sft.train(sft.SFTSettings(**start))
    return folder


def common(data, out, name='pairs.jsonl', **given):
    settings = {**TINY, **LENGTHS, 'data': str(data / name), 'out': str(out), 'init_from': str(data / 'sft'), **given}
    return {key: value for key, value in settings.items() if key not in ('tokenizer', 'model')}


def test_the_template_travels_with_the_model(data):
    _, _, tokenizer = load_pretrained(data / 'sft/model')
    assert tokenizer.chat_template == TEMPLATES['chatml']
    assert tokenizer.convert_tokens_to_ids('<|im_end|>') in tokenizer.added_tokens_decoder
    sample = json.loads((data / 'sft/samples.jsonl').read_text().splitlines()[0])
    assert sample['prompt'][0]['role'] == 'user'


@pytest.mark.parametrize('backend', ['jit', 'pmap'])
def test_packed_pairs(data, tmp_path, backend):
    tune = {'packing': True, 'batch_size': 16, 'backend': backend}
    dpo.train(dpo.DPOSettings(**common(data, tmp_path / 'dpo', **tune)))
    reward_model.train(reward_model.RewardModelSettings(**common(data, tmp_path / 'rm', **tune)))
    for name in ('dpo', 'rm'):
        first = read_records(tmp_path / name / 'metrics.jsonl')[0]
        assert 0 < first['padding_share'] < 1 and np.isfinite(first['loss'])
    # Before the first step policy and reference are one, whatever is packed with what.
    assert read_records(tmp_path / 'dpo/metrics.jsonl')[0]['loss'] == pytest.approx(np.log(2), abs=1e-5)


def test_packed_demonstrations_pad_less(data, tmp_path):
    shares = {}
    for packing in (False, True):
        out = tmp_path / str(packing)
        sft.train(sft.SFTSettings(packing=packing, **common(data, out, 'talks.jsonl')))
        records = read_records(out / 'metrics.jsonl')
        shares[packing] = records[0]['padding_share']
        assert all(record['num_tokens'] > 0 for record in records)
    assert shares[True] < shares[False]


def test_packing_is_refused_where_a_loss_looks_at_the_whole_batch(data, tmp_path):
    with pytest.raises(InputError, match=r'--packing: --loss=aot does not look at each pair alone'):
        dpo.train(dpo.DPOSettings(**common(data, tmp_path / 'x', packing=True, loss='aot')))


def test_prompts_of_messages(data, tmp_path, monkeypatch):
    (tmp_path / 'rules.py').write_text('def short(prompt, completion):\n    return -len(completion) / 10\n')
    monkeypatch.chdir(tmp_path)
    summary = ppo.train(
        ppo.PPOSettings(
            **common(data, tmp_path / 'ppo', 'prompts.jsonl', reward='rules:short', minibatches=1, update_epochs=1)
        )
    )
    assert summary['steps'] == 3


@pytest.mark.slow
@pytest.mark.parametrize('packing', [False, True])
def test_a_stream_that_was_cut_off_goes_on_exactly(data, tmp_path, monkeypatch, packing):
    given = {'streaming': True, 'packing': packing, 'max_steps': 6, 'eval_data': str(data / 'talks.jsonl')}
    make = lambda out: sft.SFTSettings(**common(data, tmp_path / out, 'talks.jsonl', **given))  # noqa: E731
    monkeypatch.setattr(sft, 'stream_batches', lambda *args, **kw: STREAM(*args, window=13, **kw))
    whole = sft.train(make('whole'))
    write = MetricsWriter.write

    def cut(self, step, metrics, batch=None):
        if step == 5:
            raise KeyboardInterrupt
        write(self, step, metrics, batch)

    monkeypatch.setattr(MetricsWriter, 'write', cut)
    with pytest.raises(KeyboardInterrupt):
        sft.train(make('cut'))
    monkeypatch.setattr(MetricsWriter, 'write', write)
    assert sft.train(make('cut')) == whole
    params = [load_pretrained(tmp_path / name / 'model')[1] for name in ('whole', 'cut')]
    jax.tree.map(np.testing.assert_array_equal, *params)


STREAM = sft.stream_batches


def test_a_stream_needs_something_to_measure_on(data, tmp_path):
    with pytest.raises(InputError, match=r'--streaming: a stream holds nothing out; give .* --eval_data'):
        sft.train(sft.SFTSettings(**common(data, tmp_path / 'x', 'talks.jsonl', streaming=True)))


def beginning(path, folder, count=24):
    """A file of the same name and form with the first records."""
    start = folder / path.name
    if path.suffix == '.json':
        start.write_text(json.dumps(json.loads(path.read_text())[:count]))
    else:
        opened = gzip.open if path.suffix == '.gz' else open
        with opened(path, 'rt') as whole, opened(start, 'wt') as part:
            part.writelines(itertools.islice(whole, count))
    return start


@pytest.mark.slow
@pytest.mark.parametrize(
    ('script', 'name'),
    [
        ('sft', 'gsm8k/test.jsonl'),
        ('sft', 'llama-factory-demos/alpaca_en_demo.json'),
        ('sft', 'llama-factory-demos/kto_en_demo.json'),
        ('dpo', 'llama-factory-demos/dpo_en_demo.json'),
        ('dpo', 'hh-rlhf/harmless-base-test.jsonl.gz'),
    ],
)
def test_real_data_by_the_data_flag_alone(tmp_path, script, name):
    if not SHARED.exists():
        pytest.skip('the shared data sets are not here')
    # The whole file is read; all but what makes it quick is as the flags have it.
    path, read = SHARED / 'data' / name, read_pairs if script == 'dpo' else read_demonstrations
    assert len(list(read(path))) > 100
    quick = {'model': 'tiny', 'max_steps': 1, 'batch_size': 8, 'out': str(tmp_path / 'run'), 'eval_prompts': 8}
    train, settings = {'sft': (sft.train, sft.SFTSettings), 'dpo': (dpo.train, dpo.DPOSettings)}[script]
    if name.startswith('hh'):
        quick |= {'max_prompt_tokens': 128, 'max_new_tokens': 64}
    assert train(settings(data=str(beginning(path, tmp_path)), **quick))['steps'] == 1
