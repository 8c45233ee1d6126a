"""A user's mistakes: one clear line, exit code 2, nothing lost."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from rlax_ft.errors import InputError
from rlax_ft.harness.loading import load_script
from rlax_ft.hf.folder import load_pretrained, save_pretrained
from rlax_ft.models.config import embedded_config
from rlax_ft.models.transformer import init_params

SCRIPTS = Path(__file__).parents[2] / 'experiments'
dpo = load_script(SCRIPTS / 'dpo.py')
ppo = load_script(SCRIPTS / 'ppo.py')
reward_model = load_script(SCRIPTS / 'reward_model.py')
sft = load_script(SCRIPTS / 'sft.py')

ROOT = Path(__file__).parents[2]
TINY = {'max_steps': 2, 'batch_size': 8}


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    sft.train(sft.SFTSettings(out=f'{folder}/sft', model='tiny', demonstrations=50, **TINY))
    return folder


def run(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


@pytest.mark.parametrize(
    ('script', 'arguments', 'message'),
    [
        ('sft', ['--lerning_rate=1'], "error: Unknown command line flag 'lerning_rate'. Did you mean: learning_rate ?"),
        (
            'dpo',
            ['--labels=mine'],
            'error: flag --labels=mine: value should be one of <human|agreement|preference_model|gold>',
        ),
        ('ppo', ['--batch_size=many'], 'error: flag --batch_size=many: invalid literal for int()'),
        ('rlhf', ['extra'], "error: found 'extra', which is no flag"),
        ('reward_model', ['--data=nowhere.jsonl'], 'error: --data=nowhere.jsonl: no such file'),
    ],
)
def test_one_line_and_exit_code_2(script, arguments, message, tmp_path):
    result = run(f'experiments/{script}.py', f'--out={tmp_path}/run', *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(message), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_help_is_for_strangers():
    result = run('experiments/ppo.py', '--help')
    assert 'PPO on language' in result.stdout and '--kl_horizon=10000.0' in result.stdout
    assert 'python experiments/ppo.py --data=prompts.jsonl' in result.stdout
    for group in ('algorithm', 'data', 'model', 'adapter', 'optimiser', 'evaluation', 'run', 'devices'):
        assert f'\n{group}:\n' in result.stdout


def refused(train, settings_class, message, **settings):
    with pytest.raises(InputError, match=message):
        train(settings_class(**{**TINY, **settings}))


def data(tmp_path, *records):
    path = tmp_path / 'data.jsonl'
    path.write_text(''.join((r if isinstance(r, str) else json.dumps(r)) + '\n' for r in records))
    return str(path)


def test_data(base, tmp_path):
    pair = {'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}
    out = str(tmp_path / 'x')
    on = lambda message, *records: refused(  # noqa: E731
        dpo.train,
        dpo.DPOSettings,
        message,
        out=out,
        data=data(tmp_path, *records),
        truncate=False,
        max_prompt_tokens=128,
    )
    on(r'data.jsonl, line 7: not JSON', *[pair] * 6, '{"prompt"')
    on(r'line 2: no field "rejected"', pair, {'prompt': 'a', 'chosen': 'b'})
    on(r'line 1: "chosen" equals "rejected"', {**pair, 'chosen': 'c'})
    on(r'the file holds no record')
    on(
        r"the prompt 'a a a.* has \d+ tokens and the context has room for 128; raise --max_prompt_tokens",
        pair,
        pair,
        {**pair, 'prompt': 'a ' * 900},
    )
    refused(
        sft.train,
        sft.SFTSettings,
        r'--tokenizer=words: use bytes, or bpe:SIZE',
        out=out,
        data=data(tmp_path, pair),
        tokenizer='words',
    )


def test_flags(base, tmp_path):
    out, start = str(tmp_path / 'x'), f'{base}/sft'
    refused(sft.train, sft.SFTSettings, r'--task=poems: no such task', out=out, task='poems')
    refused(sft.train, sft.SFTSettings, r'--model=huge: no such folder, size .* or hub id', out=out, model='huge')
    refused(dpo.train, dpo.DPOSettings, r'--init_from=.*nowhere: holds no model', out=out, init_from='nowhere')
    small = {'out': out, 'init_from': start, 'comparisons': 8}
    whole = {**small, 'loss': 'aot', 'micro_batches': 2}
    refused(dpo.train, dpo.DPOSettings, r'--micro_batches=2: --loss=aot reads the whole batch', **whole)
    refused(
        dpo.train,
        dpo.DPOSettings,
        r'--loss=dop: no such loss; .* one of .*dpo',
        **small,
        loss='dop',
    )
    refused(
        dpo.train,
        dpo.DPOSettings,
        r"--loss_args=gama=1: 'gama=1' is no KEY=VALUE of simpo; its hyperparameters: beta, gamma",
        **small,
        loss='simpo',
        loss_args='gama=1',
    )
    refused(
        dpo.train,
        dpo.DPOSettings,
        r'--labels=preference_model: give the run folder',
        **small,
        labels='preference_model',
    )
    refused(
        dpo.train,
        dpo.DPOSettings,
        r'a batch of 6 rows does not divide over 8 devices',
        **small,
        batch_size=6,
    )
    refused(
        ppo.train,
        ppo.PPOSettings,
        r'--minibatches=3: does not divide --batch_size=8',
        out=f'{out}2',
        init_from=start,
        minibatches=3,
    )
    refused(
        ppo.train,
        ppo.PPOSettings,
        r'a language model, not a reward model',
        out=f'{out}3',
        init_from=start,
        reward=start,
    )
    refused(
        ppo.train,
        ppo.PPOSettings,
        r"--reward=rewards:mine: ModuleNotFoundError: No module named 'rewards'",
        out=f'{out}4',
        init_from=start,
        reward='rewards:mine',
    )


@pytest.mark.slow
def test_models_that_do_not_fit(base, tmp_path):
    out = str(tmp_path / 'x')
    start = f'{base}/sft'
    refused(
        sft.train,
        sft.SFTSettings,
        r'--task=sort: the model in .* was made for another vocabulary',
        out=out,
        task='sort',
        init_from=start,
    )
    refused(
        sft.train,
        sft.SFTSettings,
        r'--max_prompt_tokens=4 --max_new_tokens=99: together more than the 28',
        out=f'{out}2',
        init_from=start,
        max_new_tokens=99,
    )
    # A checkpoint of another model under the same flags: the folder of the start has changed since.
    reward_model.train(reward_model.RewardModelSettings(out=f'{out}3', init_from=start, comparisons=8, **TINY))
    (tmp_path / 'x3/summary.json').unlink()
    other, (config, _, tokenizer) = tmp_path / 'other', load_pretrained(f'{start}/model')
    wider = embedded_config('small', vocab_size=config.vocab_size, max_length=config.max_length)
    save_pretrained(other, wider, init_params(wider, jax.random.key(0)), tokenizer)
    flags = (tmp_path / 'x3/flags.txt').read_text()
    (tmp_path / 'x3/flags.txt').write_text(flags.replace(start, str(other)))
    before = sorted(p.name for p in (tmp_path / 'x3').rglob('*'))
    refused(
        reward_model.train,
        reward_model.RewardModelSettings,
        r'checkpoints/2: a checkpoint of another model: .* is .* there and .* here',
        out=f'{out}3',
        init_from=str(other),
        comparisons=8,
    )
    assert before == sorted(p.name for p in (tmp_path / 'x3').rglob('*'))
