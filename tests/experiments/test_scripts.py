"""Each script end to end on a tiny setting, in the order of the pipeline; what they leave, and that they resume."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from rlax_ft.data.records import read_rankings, write_records
from rlax_ft.errors import InputError
from rlax_ft.harness.loading import load_script
from rlax_ft.hf.folder import load_pretrained
from rlax_ft.training.metrics import MetricsWriter, read_records

SCRIPTS = Path(__file__).parents[2] / 'experiments'
pytestmark = pytest.mark.usefixtures('few_prompts')
collect = load_script(SCRIPTS / 'collect.py')
dpo = load_script(SCRIPTS / 'dpo.py')
ppo = load_script(SCRIPTS / 'ppo.py')
reward_model = load_script(SCRIPTS / 'reward_model.py')
sft = load_script(SCRIPTS / 'sft.py')

TINY = {'max_steps': 3, 'save_every': 2, 'batch_size': 16, 'learning_rate': 1e-3}


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """A folder with a tiny SFT model, judgements of its samples, and a reward model."""
    folder = tmp_path_factory.mktemp('runs')
    sft.train(
        sft.SFTSettings(
            out=f'{folder}/sft', model='tiny', demonstrations=200, **{**TINY, 'max_steps': 60, 'learning_rate': 3e-3}
        )
    )
    common = {**TINY, 'init_from': f'{folder}/sft'}
    asked = {'init_from': f'{folder}/sft', 'comparisons': 40}
    collect.collect(collect.CollectSettings(out=f'{folder}/feedback', **asked))
    reward_model.train(reward_model.RewardModelSettings(out=f'{folder}/rm', **common, **judged(folder)))
    return folder


def judged(folder):
    return {'task': 'reviews', 'data': f'{folder}/feedback/judgements.jsonl'}


def dpo_settings(base, out, **given):
    settings = {**TINY, 'out': str(out), 'init_from': f'{base}/sft', **judged(base), **given}
    return dpo.DPOSettings(**settings)


def ppo_settings(base, out, **given):
    settings = {
        **TINY,
        'out': str(out),
        'init_from': f'{base}/sft',
        'prompts': 64,
        'minibatches': 2,
        'update_epochs': 2,
    }
    return ppo.PPOSettings(**{**settings, **given})


def check_run_folder(folder, steps=3):
    folder = Path(folder)
    flags = (folder / 'flags.txt').read_text().splitlines()
    assert f'--max_steps={steps}' in flags and all(line.startswith('--') for line in flags)
    assert [r['step'] for r in read_records(folder / 'metrics.jsonl')] == list(range(1, steps + 1))
    assert {'loss', 'grad_norm', 'lr'} <= read_records(folder / 'metrics.jsonl')[0].keys()
    assert list((folder / 'tensorboard').iterdir())
    assert (folder / 'checkpoints' / str(steps)).is_dir()
    summary = json.loads((folder / 'summary.json').read_text())
    assert all(isinstance(value, int | float) for value in summary.values())
    load_pretrained(folder / 'model')
    return summary


def test_sft(base):
    summary = check_run_folder(base / 'sft', 60)
    assert summary['eval_perplexity'] < 36  # better than chance over the task's words
    samples = read_records(base / 'sft/samples.jsonl')
    assert len(samples) == 64 and {'step', 'prompt', 'completion', 'gold', 'length'} <= samples[0].keys()


def test_feedback(base):
    records = read_rankings(base / 'feedback/judgements.jsonl')
    assert len(records) == 40 and all(len(r['completions']) == 4 for r in records)
    assert json.loads((base / 'feedback/judgements.jsonl').read_text().splitlines()[0])['annotator'] == 'simulated'


def test_reward_model(base):
    summary = check_run_folder(base / 'rm')
    assert summary['eval_accuracy_low'] <= summary['eval_accuracy'] <= summary['eval_accuracy_high']
    assert 0 <= summary['length_baseline_accuracy'] <= 1


def test_reward_model_on_rankings(base, tmp_path):
    settings = {**TINY, 'out': str(tmp_path / 'rm'), 'init_from': f'{base}/sft', **judged(base)}
    reward_model.train(reward_model.RewardModelSettings(loss='plackett_luce', scale_rewards=True, **settings))
    assert check_run_folder(tmp_path / 'rm')['reward_scale'] != 1.0


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'loss': 'plackett_luce'},
        {'labels': 'preference_model', 'reward': 'rm'},
        {'labels': 'gold', 'loss': 'ipo', 'loss_args': 'per_token=false'},
        {'backend': 'pmap', 'micro_batches': 2},
        {'loss': 'simpo', 'loss_args': 'gamma=0.3'},
        {'loss': 'aot', 'backend': 'pmap'},
    ],
    ids=str,
)
def test_dpo(base, tmp_path, options):
    if 'reward' in options:
        options = {**options, 'reward': str(base / 'rm')}
    dpo.train(dpo_settings(base, tmp_path / 'dpo', eval_every=2, **options))
    summary = check_run_folder(tmp_path / 'dpo')
    assert {'gold', 'kl', 'length', 'ungrammatical', 'eval_accuracy'} <= summary.keys()
    records = read_records(tmp_path / 'dpo/metrics.jsonl')
    assert {'rewards/chosen', 'rewards/rejected', 'rewards/margins', 'rewards/accuracies'} <= records[0].keys()
    assert 'eval/gold' in records[1]


def test_dpo_collects_its_own_comparisons(base, tmp_path):
    settings = dpo_settings(base, tmp_path / 'dpo', data='', task='', comparisons=20)
    dpo.train(settings)
    assert len(read_rankings(tmp_path / 'dpo/judgements.jsonl')) == 20


@pytest.mark.parametrize('options', [{}, {'reward': 'rm', 'target_kl': 0.5}, {'backend': 'pmap'}], ids=str)
def test_ppo(base, tmp_path, options):
    if 'reward' in options:
        options = {**options, 'reward': str(base / 'rm')}
    ppo.train(ppo_settings(base, tmp_path / 'ppo', **options))
    summary = check_run_folder(tmp_path / 'ppo')
    assert (summary['kl_coef'] != pytest.approx(0.05, abs=1e-9)) == ('target_kl' in options)
    names = {
        'objective/kl',
        'objective/entropy',
        'objective/non_score_reward',
        'objective/rlhf_reward',
        'objective/scores',
        'policy/approxkl_avg',
        'policy/clipfrac_avg',
        'policy/entropy_avg',
        'loss/policy_avg',
        'loss/value_avg',
        'val/clipfrac_avg',
        'val/ratio',
        'val/ratio_var',
        'val/num_eos_tokens',
        'val/explained_variance',
        'completions/mean_length',
    }
    assert names <= read_records(tmp_path / 'ppo/metrics.jsonl')[0].keys()


def test_losses_of_ones_own(base, tmp_path, monkeypatch):
    (tmp_path / 'my_module.py').write_text(
        'import jax\n'
        'def my_loss(pair, *, beta):\n'
        '    margin = (pair.chosen - pair.ref_chosen) - (pair.rejected - pair.ref_rejected)\n'
        '    return jax.nn.softplus(-beta * margin)\n'
    )
    monkeypatch.chdir(tmp_path)
    mine = dpo.train(dpo_settings(base, tmp_path / 'mine', loss='my_module:my_loss'))
    theirs = dpo.train(dpo_settings(base, tmp_path / 'theirs', loss='dpo'))
    assert mine['gold'] == theirs['gold'] and mine['kl'] == pytest.approx(theirs['kl'], abs=1e-4)


def test_the_examples_of_losses(base, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / 'docs/losses.md').read_text()
    examples = [block.split('```')[0] for block in page.split('```python\n')[1:]]
    assert len(examples) == 2 and all(len(example.splitlines()) < 15 for example in examples)
    rule = 'def charm(prompt, completion):\n    return completion.count("charming")\n'
    (tmp_path / 'my_losses.py').write_text('\n\n'.join([*examples, rule]))
    monkeypatch.chdir(tmp_path)
    dpo.train(dpo_settings(base, tmp_path / 'dpo', loss='my_losses:margin_loss'))
    check_run_folder(tmp_path / 'dpo')
    own = {'loss': 'my_losses:trust_loss', 'reward': 'my_losses:charm'}
    ppo.train(ppo_settings(base, tmp_path / 'ppo', **own))
    check_run_folder(tmp_path / 'ppo')


def numbers(folder):
    """A run's metrics but its speed, which is never the same twice."""
    records = read_records(folder / 'metrics.jsonl')
    return [{name: x for name, x in record.items() if not name.startswith('perf/')} for record in records]


@pytest.mark.slow
def test_a_reference_that_moves(base, tmp_path):
    for name, every in (('still', 0), ('late', 99), ('always', 1)):
        dpo.train(dpo_settings(base, tmp_path / name, sync_reference=every, max_steps=3))
    still, late, always = (numbers(tmp_path / name) for name in ('still', 'late', 'always'))
    for a, b in zip(still, late):  # before it moves it is the first one, scored in the step
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    assert abs(still[-1]['rewards/margins']) > 1e-5
    # A reference that is the policy itself leaves no margin.
    assert [r['rewards/margins'] for r in always] == pytest.approx([0.0] * 3, abs=1e-6)


@pytest.mark.parametrize(('script', 'options'), [('dpo', {}), ('dpo', {'sync_reference': 2}), ('ppo', {})], ids=str)
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(base, tmp_path, monkeypatch, script, options):
    train, settings = {'dpo': (dpo.train, dpo_settings), 'ppo': (ppo.train, ppo_settings)}[script]
    make = partial(settings, **options)
    whole = train(make(base, tmp_path / 'whole', max_steps=5))
    write = MetricsWriter.write

    def cut(self, step, metrics, batch=None):
        if step == 4:
            raise KeyboardInterrupt
        write(self, step, metrics, batch)

    monkeypatch.setattr(MetricsWriter, 'write', cut)
    with pytest.raises(KeyboardInterrupt):
        train(make(base, tmp_path / 'cut', max_steps=5))
    monkeypatch.setattr(MetricsWriter, 'write', write)
    assert not (tmp_path / 'cut/summary.json').exists()
    assert train(make(base, tmp_path / 'cut', max_steps=5)) == whole
    params = [load_pretrained(tmp_path / name / 'model')[1] for name in ('whole', 'cut')]
    jax.tree.map(np.testing.assert_array_equal, *params)
    assert numbers(tmp_path / 'cut') == numbers(tmp_path / 'whole')


def test_starting_again_keeps_the_old_run_and_ending_again_is_at_once(base, tmp_path):
    first = dpo.train(dpo_settings(base, tmp_path / 'dpo'))
    assert dpo.train(dpo_settings(base, tmp_path / 'dpo')) == first
    assert dpo.train(dpo_settings(base, tmp_path / 'dpo', resume=False, beta=0.7)) != first
    assert json.loads((tmp_path / 'dpo.1/summary.json').read_text()) == first
    with pytest.raises(InputError, match=r'--beta=0.2: the run in .* was begun with --beta=0.7'):
        dpo.train(dpo_settings(base, tmp_path / 'dpo', beta=0.2))


def test_starting_from_a_checkpoint_of_a_policy_and_of_ppo(base, tmp_path):
    ppo.train(ppo_settings(base, tmp_path / 'ppo'))
    for source in (base / 'sft/checkpoints/60', tmp_path / 'ppo/checkpoints/3'):
        out = tmp_path / source.parent.parent.name / 'again'
        dpo.train(dpo_settings(base, out, init_from=str(source), max_steps=0))
        ours, theirs = load_pretrained(out / 'model')[1], load_pretrained(source.parent.parent / 'model')[1]
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_text_from_a_file(tmp_path):
    pairs = [{'prompt': f'What is {i}?', 'chosen': f' It is {i}.', 'rejected': ' No idea at all.'} for i in range(30)]
    write_records(tmp_path / 'pairs.jsonl', pairs)
    common = {**TINY, 'data': str(tmp_path / 'pairs.jsonl'), 'max_prompt_tokens': 24, 'max_new_tokens': 24}
    summary = sft.train(sft.SFTSettings(out=f'{tmp_path}/sft', model='tiny', tokenizer='bytes', **common))
    assert summary['train_records'] == 27 and summary['eval_records'] == 3
    common['init_from'] = f'{tmp_path}/sft'
    reward_model.train(reward_model.RewardModelSettings(out=f'{tmp_path}/rm', **common))
    dpo.train(dpo.DPOSettings(out=f'{tmp_path}/dpo', labels='preference_model', reward=f'{tmp_path}/rm', **common))
    ppo.train(ppo.PPOSettings(out=f'{tmp_path}/ppo', reward=f'{tmp_path}/rm', minibatches=2, **common))
    for name in ('sft', 'rm', 'dpo', 'ppo'):
        check_run_folder(tmp_path / name)
