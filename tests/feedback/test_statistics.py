"""Agreement, Bradley-Terry and Dawid-Skene against numbers of others, hand-made tables and planted truths."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlax_ft.errors import InputError
from rlax_ft.feedback.agreement import (
    cohen_kappa,
    counts_of,
    fleiss_kappa,
    interval,
    krippendorff_alpha,
    raw_agreement,
)
from rlax_ft.feedback.bradley_terry import fit_strengths
from rlax_ft.feedback.dawid_skene import annotator_weights, dawid_skene
from rlax_ft.feedback.judgements import judgement
from rlax_ft.feedback.statistics import flat_summary, read_judgements, summary
from rlax_ft.harness.loading import load_script

ROOT = Path(__file__).parents[2]
PANDALM = ROOT.parent / 'shared/data/pandalm/testset-v1.json'
N = float('nan')
# fmt: off
RATED = np.asarray([
    [3, 3, 3, 3], [0, 2, 0, N], [0, 2, 1, 0], [0, 0, 0, N], [0, 0, 0, N], [N, 3, 0, 1], [2, 0, N, 0], [2, 2, N, 2],
    [0, 3, 0, 0], [1, 0, 0, N], [1, 1, 1, N], [1, 2, 1, 1], [1, 1, 3, 2], [1, 2, 1, 0], [0, 1, 0, 1], [0, N, N, N],
    [2, 2, 0, 2], [N, 2, 0, 2], [2, 0, 3, 0], [0, 0, 3, 2], [1, N, 1, 1], [1, N, 1, 1], [N, N, 3, 3], [2, 2, 2, 2],
    [1, N, 1, 3], [1, 3, 1, 1], [2, 2, 2, N], [2, N, 2, 2], [3, N, 0, 0], [2, 2, 2, N]], float)
WHOLE = np.asarray([
    [2, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 2, 0], [2, 2, 2], [0, 0, 1], [1, 1, 0],
    [1, 1, 1], [1, 1, 1], [2, 2, 1], [1, 0, 1], [2, 1, 1], [0, 2, 0], [2, 1, 0], [2, 2, 2], [0, 0, 0],
    [0, 0, 0]], float)
# fmt: on


@pytest.mark.parametrize(
    ('level', 'theirs'),  # krippendorff 0.9.0, alpha(RATED.T, level_of_measurement=level)
    [('nominal', 0.4175413711583923), ('ordinal', 0.2533055788827857), ('interval', 0.2498716467719163)],
)
def test_alpha_is_that_of_krippendorff(level, theirs):
    assert krippendorff_alpha(RATED, level) == pytest.approx(theirs, abs=1e-12)


def test_kappas_are_those_of_statsmodels():
    # statsmodels 0.15.0: fleiss_kappa(aggregate_raters(WHOLE)[0]), cohens_kappa of the first two columns.
    assert fleiss_kappa(counts_of(WHOLE)) == pytest.approx(0.33804060017652243, abs=1e-12)
    assert cohen_kappa(WHOLE[:, 0], WHOLE[:, 1]) == pytest.approx(0.3822393822393822, abs=1e-12)


def test_kappas_by_hand():
    # 2 x 2: both yes 20, a yes b no 5, a no b yes 10, both no 15: P = 0.7, P_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    a = np.repeat([1, 1, 0, 0], [20, 5, 10, 15])
    b = np.repeat([1, 0, 1, 0], [20, 5, 10, 15])
    assert cohen_kappa(a, b) == pytest.approx(0.4)
    assert raw_agreement([[2, 1], [3, 0]]) == pytest.approx((1 / 3 + 1) / 2)
    # p = 5/6, 1/6: P_e = 26/36; (2/3 - 26/36) / (10/36) = -0.2.
    assert fleiss_kappa([[2, 1], [3, 0]]) == pytest.approx(-0.2)
    assert krippendorff_alpha(np.asarray([[1, 1], [2, 2]])) == 1.0
    assert np.isnan(krippendorff_alpha(np.asarray([[1.0, N], [N, 2.0]])))
    assert np.isnan(fleiss_kappa(np.zeros((0, 2)))) and np.isnan(cohen_kappa([N], [1.0]))


def test_a_bootstrap_interval_covers_and_keeps_groups_together():
    rng = np.random.default_rng(0)
    inside = 0
    for i in range(100):
        low, high = interval(lambda x: float(x.mean()), rng.normal(size=(60, 1)), seed=i, resamples=200)
        inside += low <= 0 <= high
    assert 88 <= inside <= 99
    values, groups = np.repeat(rng.normal(size=30), 20)[:, None], np.repeat(np.arange(30), 20)
    alone = np.subtract(*interval(lambda x: float(x.mean()), values))
    together = np.subtract(*interval(lambda x: float(x.mean()), values, groups=groups))
    assert together / alone == pytest.approx(np.sqrt(20), rel=0.15)


@pytest.mark.skipif(not PANDALM.exists(), reason='the PandaLM test set is not on this machine')
def test_pandalm(tmp_path):
    report = load_script(ROOT / 'experiments/feedback_report.py')
    numbers = report.report(report.ReportSettings(data=str(PANDALM), out=str(tmp_path / 'out'), resamples=50))
    assert numbers['fleiss_kappa'] == pytest.approx(0.864, abs=5e-4)
    assert numbers['raw_agreement'] == pytest.approx(0.920, abs=5e-4)
    assert numbers['fleiss_kappa_low'] < 0.864 < numbers['fleiss_kappa_high']
    assert numbers['items'] == 999 and numbers['judgements'] == 2997 and 'strength/llama-7b' in numbers
    files = {path.name for path in (tmp_path / 'out').iterdir()}
    assert files == {'report.md', 'report.html', 'summary.json', 'agreement.png', 'policies.png'}
    assert '| llama-7b |' in (tmp_path / 'out/report.md').read_text()


def test_bradley_terry_recovers_strengths_within_its_interval_95_times_in_100():
    truth = np.asarray([0.8, 0.3, -0.2, -0.9])
    names = ['a', 'b', 'c', 'd']
    rng = np.random.default_rng(1)
    inside = np.zeros(4)
    for _ in range(100):
        i = rng.integers(4, size=400)
        j = (i + rng.integers(1, 4, size=400)) % 4
        weights = np.stack([np.exp(truth[i]), np.exp(truth[j]), 0.6 * np.exp((truth[i] + truth[j]) / 2)], axis=1)
        drawn = (rng.random(400)[:, None] > np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)).sum(axis=1)
        outcome = np.asarray([1.0, 0.0, 0.5])[drawn]
        fitted = fit_strengths([names[k] for k in i], [names[k] for k in j], outcome)
        where = [fitted.names.index(name) for name in names]
        inside += (fitted.low[where] <= truth) & (truth <= fitted.high[where])
    # 400 intervals: 0.95 within two standard errors.
    assert 0.925 <= inside.mean() / 100 <= 0.975 and inside.min() >= 88


def test_bradley_terry_of_two_by_hand_and_with_clusters():
    outcome = np.repeat([1.0, 0.0], [30, 10])
    alone = fit_strengths(['x'] * 40, ['y'] * 40, outcome)
    gap, error = alone.difference(0, 1)
    assert alone.names == ('x', 'y') and gap == pytest.approx(np.log(3), abs=1e-3)
    assert error == pytest.approx(np.sqrt(1 / 30 + 1 / 10), rel=1e-3)
    assert alone.more_needed() == 0  # 1.0986 / 0.365 > 1.96
    few = fit_strengths(['x'] * 8, ['y'] * 8, np.repeat([1.0, 0.0], [5, 3]))
    gap, error = few.difference(0, 1)
    assert few.more_needed() == int(np.ceil(8 * ((1.959964 * error / gap) ** 2 - 1)))
    assert fit_strengths(['x', 'x'], ['y', 'y'], [1.0, 0.0]).more_needed() is None
    # Each comparison four times over is no more than once: the robust error is about that of the 10 items.
    repeated = fit_strengths(['x'] * 160, ['y'] * 160, np.repeat(outcome, 4), np.repeat(np.arange(40), 4))
    assert repeated.difference(0, 1)[1] == pytest.approx(alone.difference(0, 1)[1], rel=0.03)


def test_dawid_skene_finds_planted_error_rates():
    rng = np.random.default_rng(0)
    truth = rng.choice(3, size=4000, p=[0.45, 0.2, 0.35])
    right = [0.95, 0.85, 0.75, 0.6, 0.9]
    labels = np.stack(
        [np.where(rng.random(4000) < p, truth, (truth + rng.integers(1, 3, 4000)) % 3) for p in right], axis=1
    )
    labels[rng.random(labels.shape) < 0.2] = -1
    fitted = dawid_skene(labels, 3)
    for a, p in enumerate(right):
        expected = np.full((3, 3), (1 - p) / 2) + np.eye(3) * (p - (1 - p) / 2)
        assert np.abs(fitted.confusion[a] - expected).max() < 0.03
    assert fitted.accuracy() == pytest.approx(right, abs=0.02)
    assert (fitted.posterior.argmax(axis=1) == truth).mean() > 0.93


def test_weights_of_annotators():
    rng = np.random.default_rng(0)
    rows = []
    for i in range(300):
        better = int(rng.random() < 0.5)
        for name, p in (('sure', 1.0), ('good', 0.85), ('guess', 0.5)):
            first = better if rng.random() < p else 1 - better
            rows.append(judgement(f'p{i}', ['x', 'y'], [first, 1 - first], name))
    weights = annotator_weights(rows)
    assert weights['sure'] > 0.85 and weights['good'] == pytest.approx(0.7, abs=0.1) and weights['guess'] < 0.15


def planted(tmp_path):
    """Judgements with known faults: a side-lover who is too fast, and one who contradicts himself."""
    rows, rng = [], np.random.default_rng(0)
    for i in range(60):
        for name in ('fair', 'left', 'fickle'):
            shown = [0, 1] if rng.random() < 0.5 else [1, 0]
            first = shown[0] if name == 'left' else 0 if rng.random() < 0.8 else 1
            ranks = [int(first != 0), int(first != 1)]
            row = judgement(f'prompt {i} ' + 'x' * 300, ['yes', 'no'], ranks, name, policies=['one', 'two'])
            seconds = 0.4 if name == 'left' else 20
            row |= {'shown': shown, 'active_ms': int(1000 * seconds), 'ratings': [{'true': 5 - first}, {'true': 2}]}
            rows.append(row)
            if name == 'fickle' and i < 10:
                rows.append({**row, 'id': f'again{i}', 'purpose': 'duplicate', 'ranks': row['ranks'][::-1]})
    path = tmp_path / 'judgements.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)))
    return path


def test_a_summary_shows_planted_faults(tmp_path):
    rows, fault = read_judgements(planted(tmp_path))
    numbers = summary(rows, resamples=20)
    assert not fault and numbers['judgements'] == 180 and numbers['items'] == 60 and numbers['annotators'] == 3
    found = {record['name']: record for record in numbers['by_annotator']}
    assert found['left']['flags'] == ['100% too fast', 'prefers one side'] and found['left']['first_side'] == 1.0
    assert found['fickle']['flags'] == ['not consistent'] and found['fickle']['consistency'] == 0.0
    assert found['fair']['flags'] == [] and found['fair']['median_seconds'] == 20
    assert numbers['position'][0] > 0.55 and numbers['position'][3] == 180
    assert numbers['criteria']['true'][3] == 120
    assert numbers['strengths'].names[0] == 'one' and flat_summary(numbers)['strength/one'] > 0


def test_a_report_of_the_planted_faults(tmp_path):
    report = load_script(ROOT / 'experiments/feedback_report.py')
    out = tmp_path / 'report'
    report.report(report.ReportSettings(data=str(planted(tmp_path)), out=str(out), resamples=20))
    text, page = (out / 'report.md').read_text(), (out / 'report.html').read_text()
    assert 'prefers one side' in text and '| one |' in text and '<td>one</td>' in page and '<script' not in page
    for name in ('agreement.png', 'policies.png', 'times.png'):
        assert (out / name).read_bytes()[:4] == b'\x89PNG' and name in text and name in page
    json.loads((out / 'summary.json').read_text())
    (tmp_path / 'empty.jsonl').write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(InputError, match=r'empty.jsonl, line 1: no judgement'):
        report.report(report.ReportSettings(data=str(tmp_path / 'empty.jsonl'), out=str(out)))
