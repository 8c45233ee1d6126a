"""grpo.py end to end on a tiny model: what it leaves, that it resumes bit for bit, and flags that do not fit."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from rlax_ft.errors import InputError
from rlax_ft.evaluate.samples import read_samples
from rlax_ft.harness.loading import load_script
from rlax_ft.harness.rollout_devices import training_devices
from rlax_ft.hf.folder import load_pretrained
from rlax_ft.parallel.mesh import make_mesh
from rlax_ft.training.metrics import MetricsWriter, read_records

grpo = load_script(Path(__file__).parents[2] / 'experiments/grpo.py')
RULES = """
def starts_with_a(prompt, completion):
    return float(completion.startswith(('a', '1', '2')))

def letters_of_b(records, completions):
    return [completion.count('b') + completion.count('3') for completion in completions]

def words_of_steps(records, completions):
    return [[step.count('a') for step in completion.split(' ') if step.strip()] for completion in completions]
"""


def settings(folder, name, **given):
    (folder / 'rules.py').write_text(RULES)
    rules = folder / 'rules.py'
    usual = dict(
        out=str(folder / name),
        task='exact',
        model='tiny',
        reward=f'{rules}:starts_with_a,{rules}:letters_of_b*0.01',
        prompts=64,
        batch_size=32,
        group_size=2,
        max_steps=4,
        save_every=2,
        learning_rate=1e-3,
        update_epochs=2,
        minibatches=2,
        sample_every=2,
        report_to='',
    )
    given |= {'process_reward': given.get('process_reward', '').format(rules=rules)}
    return grpo.GRPOSettings(**{**usual, **given})


# Everything that a run keeps from one step to the next.
STEPS = dict(process_reward='{rules}:words_of_steps', process_steps=' ', process_weight=0.1)
MUCH = dict(
    **STEPS, dynamic_sampling=True, max_refills=2, curriculum=True, ahead=1, correction='token', beta=0.1, save_every=1
)


def numbers(folder):
    """A run's metrics but its speed, which is never the same twice."""
    records = read_records(folder / 'metrics.jsonl')
    return [{k: v for k, v in record.items() if not k.startswith(('perf/', 'time/'))} for record in records]


@pytest.mark.slow
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    whole = grpo.train(settings(tmp_path, 'whole', **MUCH))
    write = MetricsWriter.write

    def cut(self, step, metrics, batch=None):
        if step == 3:
            raise KeyboardInterrupt
        write(self, step, metrics, batch)

    monkeypatch.setattr(MetricsWriter, 'write', cut)
    with pytest.raises(KeyboardInterrupt):
        grpo.train(settings(tmp_path, 'cut', **MUCH))
    monkeypatch.setattr(MetricsWriter, 'write', write)
    assert grpo.train(settings(tmp_path, 'cut', **MUCH)) == whole
    params = [load_pretrained(tmp_path / name / 'model')[1] for name in ('whole', 'cut')]
    jax.tree.map(np.testing.assert_array_equal, *params)
    assert numbers(tmp_path / 'cut') == numbers(tmp_path / 'whole')
    assert read_samples(tmp_path / 'cut') == read_samples(tmp_path / 'whole')
    check_what_it_tells(tmp_path / 'whole')


@pytest.mark.slow
def test_devices_of_their_own_sample_what_all_devices_would(tmp_path):
    """Six devices train and two sample: the same prompts, rewards and, to rounding, parameters."""
    how = dict(batch_size=48, minibatches=1, update_epochs=1, max_steps=3, dynamic_sampling=True, ahead=1)
    for name, devices in (('all', 0), ('apart', 2)):
        given = settings(tmp_path, name, **how, rollout_devices=devices)
        with training_devices(given), jax.set_mesh(make_mesh(given.mesh)):
            assert make_mesh().size == 8 - devices
            grpo.train(given)
    every, apart = (read_records(tmp_path / name / 'metrics.jsonl') for name in ('all', 'apart'))
    for name in ('reward', 'groups/refills', 'sampling/staleness/max'):
        assert [r[name] for r in apart] == pytest.approx([r[name] for r in every], abs=1e-5)
    # A batch is sampled before one update; groups that a refill brought too many wait for one more.
    assert all(1 <= r['sampling/staleness/max'] <= 2 for r in apart[1:])
    ours, theirs = (load_pretrained(tmp_path / name / 'model')[1] for name in ('all', 'apart'))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), ours, theirs)


def check_what_it_tells(folder):
    records = read_records(folder / 'metrics.jsonl')
    names = {
        'reward',
        'reward_std',
        'frac_reward_zero_std',
        'kl',
        'entropy',
        'completions/mean_length',
        'pass@1',
        'pass@2',
    }
    names |= {'time/sampling', 'time/scoring', 'time/update', 'groups/refills', 'groups/dropped', 'groups/waiting'}
    names |= {
        'sampling/sampling_logp_difference/mean',
        'sampling/sampling_logp_difference/max',
        'sampling/staleness/mean',
    }
    assert all(names <= record.keys() for record in records)
    assert sum(record['groups/refills'] for record in records) > 0
    assert [record['sampling/staleness/max'] >= 1 for record in records] == [False, True, True, True]
    # The first batch is of the policy as it is: the sampler's numbers are the trainer's.
    assert (
        records[0]['sampling/sampling_logp_difference/max'] < 1e-4 < records[1]['sampling/sampling_logp_difference/max']
    )
    assert all(record['pass@1'] <= record['pass@2'] for record in records)
    assert all(record['process/steps'] >= 1 and 0 <= record['process/reward'] <= 1 for record in records)
    samples, _ = read_samples(folder)
    rollouts = [sample for sample in samples if 'advantages' in sample]
    assert {sample['step'] for sample in rollouts} == {2, 4}
    first = rollouts[0]
    assert len(first['tokens']) == len(first['logps']) == len(first['ref_logps']) == len(first['advantages'])
    assert len(first['rewards']) == 2 and 'step' in samples[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    'how',
    [
        {'loss': 'gspo', 'aggregate': 'constant', 'reward_normalization': 'normalize_then_sum', 'lora_rank': 2}
        | {'overlong_tokens': 2, 'missing_eos_penalty': 0.1},
        {'baseline': 'greedy', 'scale': 'none', 'credit': 'token', 'beta': 0.1, 'kl_in': 'reward', 'backend': 'pmap'}
        | {'minibatches': 1, 'mask_truncated': True},
    ],
    ids=['gdpo', 'remax'],
)
def test_algorithms_run(tmp_path, how):
    grpo.train(settings(tmp_path, 'run', **{'max_steps': 2, 'update_epochs': 1, 'task': 'sort', **how}))
    records = read_records(tmp_path / 'run/metrics.jsonl')
    assert [record['step'] for record in records] == [1, 2]
    assert any(record['grad_norm'] > 0 for record in records)
    summary = json.loads((tmp_path / 'run/summary.json').read_text())
    assert {'steps', 'kl', 'gold', 'length'} <= summary.keys()
    load_pretrained(tmp_path / 'run/model')


@pytest.mark.parametrize(
    ('how', 'message'),
    [
        ({'group_size': 1}, r'--group_size=1: --baseline=mean needs others to compare with'),
        ({'baseline': 'none'}, r'--scale=group: with --baseline=none a group of equal rewards'),
        ({'beta': 0.1, 'kl_in': 'none'}, r'--beta=0.1: has no effect with --kl_in=none'),
        ({'kl_in': 'reward'}, r'--kl_in=reward: has no effect without --beta'),
        ({'gamma': 0.9}, r'--gamma=0.9: has no effect without --credit=token'),
        ({'max_refills': 3}, r'--max_refills=3: has no effect without --dynamic_sampling'),
        ({'ahead': 1, 'baseline': 'greedy', 'scale': 'none'}, r'--ahead=1: the likeliest completion'),
        ({'group_size': 3}, r'--group_size=3: does not divide --batch_size=32'),
        ({'loss': 'nope'}, r'--loss=nope: no such loss; use MODULE:FUNCTION or one of cispo'),
        ({'process_weight': 0.5}, r'--process_weight=0.5: has no effect without --process_reward'),
        ({'rollout_devices': 8}, r'--rollout_devices=8: there are 8 devices, and one at least has to train'),
        ({'scale': 'mean', 'baseline': 'leave_one_out'}, r'--scale=mean: is for --baseline=mean'),
    ],
)
def test_flags_that_do_not_fit_are_one_line(tmp_path, how, message):
    with pytest.raises(InputError, match=message) as caught:
        grpo.train(settings(tmp_path, 'run', **how))
    assert '\n' not in str(caught.value) and not (tmp_path / 'run').exists()
