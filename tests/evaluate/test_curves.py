"""Learning curves: which runs are one curve, what it says, and that nothing is left out without a word."""

import json

import numpy as np
import pytest

from rlax_ft.errors import InputError
from rlax_ft.evaluate import plots
from rlax_ft.evaluate.curves import (
    RunRecords,
    check_metric,
    curve_table,
    group_runs,
    make_curve,
    mixed_flags,
    read_run,
    smoothed,
)
from rlax_ft.evaluate.plots import plot_curves


def run(name, values, every=1, **flags):
    records = [{'step': (i + 1) * every, 'loss': value} for i, value in enumerate(values)]
    return RunRecords(name, {key: str(value) for key, value in flags.items()}, records)


def test_runs_that_differ_in_their_seed_are_one_curve():
    runs = [run(f'{b}{s}', [1.0], seed=s, out=f'{b}{s}', beta=b, loss='dpo') for b in (0.1, 0.4) for s in (0, 1)]
    groups = group_runs(runs)
    assert {label: len(members) for label, members in groups.items()} == {'beta=0.1': 2, 'beta=0.4': 2}
    assert not any(mixed_flags(members) for members in groups.values())
    together = group_runs(runs, ['loss'])
    assert list(together) == ['loss=dpo'] and mixed_flags(together['loss=dpo']) == ['beta']
    # What differs in nothing, or has no flags, is called by its folder.
    assert list(group_runs(runs[:2])) == ['0.10'] and list(group_runs([run('a', [1]), run('b', [1])])) == ['a', 'b']
    with pytest.raises(InputError, match='--group_by=bet: no run has that flag; there are beta'):
        group_runs(runs, ['bet'])


def test_a_curve_is_the_mean_of_its_seeds_at_all_their_steps():
    curve = make_curve('x', [run('a', [0.0, 2.0, 4.0], every=2), run('b', [4.0, 4.0], every=3)], 'loss')
    assert curve.steps.tolist() == [2, 3, 4, 6]
    np.testing.assert_allclose(curve.values[0], [0, 1, 2, 4])  # Between its steps a seed is interpolated.
    np.testing.assert_allclose(curve.values[1], [np.nan, 4, 4, 4])  # Before its first it has no value.
    mean, low, high = curve.centre()
    np.testing.assert_allclose(mean[1:], [2.5, 3, 4]), np.testing.assert_allclose(low[1:], [1, 2, 4])
    assert np.isnan(mean[0]) and high[1:].tolist() == [4, 4, 4] and curve.last.tolist() == [4.0, 4.0]


def test_seeds_of_one_program_are_seeds_of_the_curve():
    records = [{'step': 1, 'loss': 2.0, 'loss/0': 1.0, 'loss/1': 3.0}]
    assert make_curve('x', [RunRecords('a', {}, records)], 'loss').values.tolist() == [[1.0], [3.0]]


def test_what_is_no_finite_number_is_counted():
    curve = make_curve('x', [run('a', [1.0, 'nan', 'n/a', float('inf'), 3.0])], 'loss')
    assert curve.dropped == 3 and curve.values.tolist() == [[1.0, 3.0]]
    assert make_curve('x', [run('a', [1.0])], 'gold') is None
    with pytest.raises(InputError, match='--metrics=los: no run has a number of that name; there are loss'):
        check_metric('los', [run('a', [1.0])])


def test_smoothing_by_hand():
    np.testing.assert_allclose(smoothed(np.asarray([1.0, 3.0]), 0.5), [1.0, (0.5 * 1 + 3) / 1.5])
    np.testing.assert_allclose(smoothed(np.full(9, 2.0), 0.9), 2.0)
    np.testing.assert_array_equal(smoothed(np.asarray([1.0, 5.0, 2.0]), 0.0), [1, 5, 2])


def test_folders_are_read(tmp_path):
    (tmp_path / 'flags.txt').write_text('--beta=0.1\n--loss_args=a=1,b=2\n')
    file = tmp_path / 'metrics.jsonl'
    file.write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    found = read_run(tmp_path)
    assert found.flags == {'beta': '0.1', 'loss_args': 'a=1,b=2'} and found.records == [{'step': 1, 'loss': 2}]
    for text, match in (
        ('', 'holds no record yet'),
        ('x\n', ':1: not JSON'),
        ('1' * 5000 + '\n0\n', ':1: not JSON'),
        ('{"loss": 2}\n', ':1: a record is'),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=match):
            read_run(tmp_path)
    with pytest.raises(InputError, match='give the folder of a run'):
        read_run(tmp_path / 'nowhere')


def test_table_and_figure(tmp_path):
    one = make_curve('beta=0.1', [run('a', [1.0]), run('b', [2.0])], 'loss')
    two = make_curve('beta=0.4', [run('c', [5.0])], 'loss')
    curves = {'loss': [one, two], 'gold': [one]}
    assert curve_table(curves).splitlines()[2:] == [
        '| beta=0.1 | 2 | 1.5 (1 to 2) | 1.5 (1 to 2) |',
        '| beta=0.4 | 1 | 5 |  |',
    ]
    plot_curves(tmp_path / 'c.png', curves, smooth=0.5)
    assert (tmp_path / 'c.png').read_bytes()[:4] == b'\x89PNG' and len(list(tmp_path.iterdir())) == 1


def test_a_long_label_stays_within_the_figure(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, '_save', lambda figure, path: drawn.append(figure))
    label = ', '.join(f'flag_number_{i}=runs/of_some_length_{i}' for i in range(8))
    plot_curves(tmp_path / 'c.png', {'loss': [make_curve(label, [run('a', [1.0])], 'loss')]})
    drawn[0].draw_without_rendering()
    box, page = drawn[0].legends[0].get_window_extent(), drawn[0].bbox
    assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0


def test_a_folder_written_by_a_run_has_what_is_read(tmp_path):
    from rlax_ft.training.metrics import MetricsWriter

    with MetricsWriter(tmp_path, start=0, total=2, title='x') as writer:
        for step in (1, 2):
            writer.write(step, {'loss': np.float32(step), 'grad_norm': np.float32(1.0)})
    assert [json.loads(json.dumps(r['loss'])) for r in read_run(tmp_path).records] == [1.0, 2.0]
