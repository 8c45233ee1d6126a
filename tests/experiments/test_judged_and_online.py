"""kto.py, online_dpo.py and the further kinds of reward_model.py end to end on tiny settings, and that they resume."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from rlax_ft.data.records import write_records
from rlax_ft.errors import InputError
from rlax_ft.harness.loading import load_script
from rlax_ft.hf.folder import load_pretrained
from rlax_ft.training.metrics import MetricsWriter, read_records

SCRIPTS = Path(__file__).parents[2] / 'experiments'
kto = load_script(SCRIPTS / 'kto.py')
online_dpo = load_script(SCRIPTS / 'online_dpo.py')
reward_model = load_script(SCRIPTS / 'reward_model.py')

TINY = {'model': 'tiny', 'max_steps': 3, 'save_every': 2, 'batch_size': 8, 'tokenizer': 'bytes', 'learning_rate': 1e-3}
LENGTHS = {'max_prompt_tokens': 16, 'max_new_tokens': 16}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with data of each kind, and an ensemble that was trained on its pairs."""
    folder = tmp_path_factory.mktemp('runs')
    rng = np.random.default_rng(0)
    pairs = [{'prompt': f'Is {i}?', 'chosen': f' It is {i}.', 'rejected': ' No.' * (1 + i % 3)} for i in range(40)]
    judged = [{'prompt': p['prompt'], 'completion': p[side], 'label': side == 'chosen'}
              for p in pairs for side in ('chosen', 'rejected')]  # fmt: skip
    steps = [{'prompt': f'{i}', 'steps': ['yes', 'so'], 'labels': [True, bool(rng.integers(2))]} for i in range(40)]
    rated = [{'prompt': f'Is {i}?', 'completion': ' ya' * (1 + i % 4), 'score': 2 + i % 4} for i in range(40)]
    for name, records in (('pairs', pairs), ('judged', judged), ('steps', steps), ('rated', rated)):
        write_records(folder / f'{name}.jsonl', records)
    given = common(folder, folder / 'rm', 'pairs', ensemble=3, bootstrap=True)
    reward_model.train(reward_model.RewardModelSettings(**given))
    return folder


def common(folder, out, name, **given):
    return {**TINY, **LENGTHS, 'data': str(folder / f'{name}.jsonl'), 'out': str(out), **given}


def cut_off(monkeypatch, train, settings, tmp_path):
    """Runs whole, and again with a cut after three steps; both must end alike to the bit."""
    whole = train(settings(tmp_path / 'whole'))
    write = MetricsWriter.write

    def cut(self, step, metrics, batch=None):
        if step == 4:
            raise KeyboardInterrupt
        write(self, step, metrics, batch)

    monkeypatch.setattr(MetricsWriter, 'write', cut)
    with pytest.raises(KeyboardInterrupt):
        train(settings(tmp_path / 'cut'))
    monkeypatch.setattr(MetricsWriter, 'write', write)
    assert train(settings(tmp_path / 'cut')) == whole
    params = [load_pretrained(tmp_path / name / 'model')[1] for name in ('whole', 'cut')]
    jax.tree.map(np.testing.assert_array_equal, *params)
    return whole, read_records(tmp_path / 'cut/metrics.jsonl')


@pytest.mark.slow
def test_kto_resumes_exactly(folder, tmp_path, monkeypatch):
    make = lambda out: kto.KTOSettings(**common(folder, out, 'judged', max_steps=5, micro_batches=2))  # noqa: E731
    summary, metrics = cut_off(monkeypatch, kto.train, make, tmp_path)
    assert summary['eval_answers'] == 8 and 0 <= summary['eval_accuracy'] <= 1 and summary['good_share'] == 0.5
    assert 0 <= summary['length_baseline_accuracy'] <= 1
    assert metrics[0]['kl'] == 0 and metrics[0]['loss'] == pytest.approx(0.5, abs=1e-6) and metrics[-1]['kl'] >= 0


@pytest.mark.slow
def test_bco_on_comparisons(folder, tmp_path):
    summary = kto.train(kto.KTOSettings(**common(folder, tmp_path / 'bco', 'pairs', loss='bco')))
    metrics = read_records(tmp_path / 'bco/metrics.jsonl')
    assert summary['train_answers'] == 72 and summary['eval_pairs'] == 4
    # The shift of a step is the moving mean of those before it.
    means = [0.0, 0.0]
    for record in metrics:
        assert record['shift'] == pytest.approx(sum(means) / 2, abs=1e-6)
        means = [0.9 * m + 0.1 * record[f'rewards/{side}'] for m, side in zip(means, ('chosen', 'rejected'))]


@pytest.mark.slow
def test_online_dpo_resumes_exactly(folder, tmp_path, monkeypatch):
    given = dict(max_steps=5, reward=f'{folder}/rm:lcb', group_size=4, pairs='all', sync_reference=2, sync_share=0.5)
    given |= dict(minibatches=2, batch_size=64)
    make = lambda out: online_dpo.OnlineDPOSettings(**common(folder, out, 'judged', **given))  # noqa: E731
    summary, metrics = cut_off(monkeypatch, online_dpo.train, make, tmp_path)
    assert {'kl', 'reward', 'length'} <= summary.keys()
    spread = [record[f'rewards/{folder}/rm/disagreement/mean'] for record in metrics]
    assert min(spread) > 0 and 0 <= metrics[0]['judged/share'] <= 1


@pytest.mark.slow
def test_an_opponent(folder, tmp_path):
    (tmp_path / 'short.py').write_text('def short(prompt, completion):\n    return -len(completion)\n')
    given = dict(reward=f'{tmp_path}/short.py:short', method='nash_md', max_steps=2, batch_size=16)
    online_dpo.train(online_dpo.OnlineDPOSettings(**common(folder, tmp_path / 'run', 'judged', **given)))
    records = read_records(tmp_path / 'run/metrics.jsonl')
    assert all(np.isfinite(r['loss']) and r['objective/opponent_scores'] < 0 for r in records)


def test_an_ensemble_says_what_it_knows(folder):
    summary = json.loads((folder / 'rm/summary.json').read_text())
    assert summary['members'] == 3 and summary['disagreement'] > 0 and summary['temperature'] > 0
    assert {'calibration_error', 'calibration_error_after', 'eval_accuracy_low'} <= summary.keys()
    assert (folder / 'rm/reliability.png').stat().st_size > 5000


@pytest.mark.parametrize(('loss', 'data', 'measured'), [('step', 'steps', 'majority_accuracy'),
                                                        ('regression', 'rated', 'eval_correlation')])  # fmt: skip
def test_reward_models_of_other_judgements(folder, tmp_path, loss, data, measured):
    summary = reward_model.train(
        reward_model.RewardModelSettings(**common(folder, tmp_path / 'rm', data, loss=loss, max_steps=2))
    )
    assert np.isfinite(summary[measured])


@pytest.mark.parametrize(
    ('script', 'flags', 'message'),
    [
        ('kto', dict(batch_size=1), r'--batch_size=1: the baseline of --loss=kto pairs'),
        ('kto', dict(desirable_weight=0, undesirable_weight=0), r'nothing is learned'),
        ('kto', dict(loss='hinge'), r'--loss=hinge: no such loss; .*apo_zero_unpaired, bco, kto, nca_unpaired'),
        ('online', dict(method='nash_md', minibatches=2), r'--method=nash_md: its gradient is right at the policy'),
        ('online', dict(xpo_alpha=0.1), r'--xpo_alpha=0.1: is read by --method=xpo only'),
        ('online', dict(method='xpo', group_size=4, pairs='all'), r'--pairs=all: --method=xpo compares'),
        ('online', dict(loss='plackett_luce', judgement='soft'), r'--judgement=soft: compares two answers'),
        ('online', dict(sync_reference=1, sync_share=0.1, lora_rank=2), r'--sync_share=0.1: a share of an adapter'),
        ('rm', dict(loss='step', ensemble=2), r'--ensemble: --loss=step has no use for it'),
        ('rm', dict(ensemble=2, packing=True), r'--packing: members of an --ensemble weigh'),
        ('rm', dict(loss='regression', data=''), r'--loss=regression: an embedded task has no such records'),
    ],
)
def test_mistakes(folder, tmp_path, script, flags, message):
    train, settings = {
        'kto': (kto.train, kto.KTOSettings),
        'online': (online_dpo.train, online_dpo.OnlineDPOSettings),
        'rm': (reward_model.train, reward_model.RewardModelSettings),
    }[script]
    with pytest.raises(InputError, match=message):
        train(settings(**{**common(folder, tmp_path / 'x', 'judged'), **flags, 'tokenizer': 'bpe:2048'}))
