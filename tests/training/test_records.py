"""What a run writes: checkpoints that resume to the bit and refuse another model, metrics that survive a cut."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_ft.errors import InputError
from rlax_ft.training.checkpoint import Checkpoints
from rlax_ft.training.metrics import MetricsWriter, read_records, skipped_steps
from rlax_ft.training.step import init_state, make_train_step

OPTIMIZER = optax.adam(0.1)


def fresh(width=3):
    return init_state({'w': jnp.arange(float(width))}, OPTIMIZER, jax.random.key(0))


def step(state):
    noisy = make_train_step(lambda p, b, k: (jnp.sum(jnp.square(p['w']) * jax.random.normal(k)), {}), OPTIMIZER)
    return noisy(state, None)[0]


def test_a_resumed_run_is_the_run(tmp_path):
    state = step(step(fresh()))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, state, {'note': 1})
    checkpoints.close()
    restored, record = Checkpoints(tmp_path).restore(fresh())
    assert record == {'note': 1}
    straight, resumed = step(state), step(restored)
    jax.tree.map(np.testing.assert_array_equal, straight.params, resumed.params)
    assert jax.random.key_data(straight.key).tolist() == jax.random.key_data(resumed.key).tolist()


def test_another_model_is_refused_by_name(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, fresh())
    checkpoints.close()
    with pytest.raises(InputError, match=r'a checkpoint of another model: opt_state/0/mu/w is \(3,\) there and \(4,\)'):
        Checkpoints(tmp_path).restore(fresh(4))
    with pytest.raises(InputError, match=r'no checkpoint here'):
        Checkpoints(tmp_path / 'empty').restore(fresh())
    with pytest.raises(InputError, match=r'no checkpoint of that step; there are: 1'):
        Checkpoints(tmp_path).read(7)
    np.testing.assert_array_equal(Checkpoints(tmp_path).read(1)['params']['w'], np.arange(3.0))


def broken(folder, step, how):
    """Spoils the arrays of a checkpoint."""
    files = [path for path in (folder / str(step)).rglob('*') if path.is_file()]
    for path in files if how == 'cut' else [path for path in files if 'state' in path.parts]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if how == 'cut' else b'{}')


@pytest.mark.parametrize('how', ['cut', 'other'])
def test_a_checkpoint_that_cannot_be_read_is_set_aside_for_the_one_before(tmp_path, caplog, how):
    states = [fresh()]
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        states.append(step(states[-1]))
        checkpoints.save(number, states[-1])
    checkpoints.close()
    broken(tmp_path, 2, how)
    checkpoints = Checkpoints(tmp_path)
    state, newest = checkpoints.newest(fresh())
    assert newest == 1
    np.testing.assert_array_equal(state.params['w'], states[1].params['w'])
    assert 'checkpoints' not in caplog.text and 'cannot be read' in caplog.text and 'step 1' in caplog.text
    assert (tmp_path / 'broken-2-0').is_dir()
    checkpoints.save(2, states[2])  # as the run that resumes does
    checkpoints.close()
    state, newest = Checkpoints(tmp_path).newest(fresh())
    assert newest == 2
    np.testing.assert_array_equal(state.params['w'], states[2].params['w'])
    for number in (1, 2):
        broken(tmp_path, number, how)
    with pytest.raises(InputError, match=r'/2: cannot be read \(.*\), nor can an earlier one; mend it'):
        Checkpoints(tmp_path).newest(fresh())
    assert (tmp_path / '1').is_dir() and (tmp_path / '2').is_dir()
    assert Checkpoints(tmp_path / 'empty').newest('as given') == ('as given', 0)


def test_what_a_killed_process_left_is_removed_when_the_run_ends(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=5)
    for number in (1, 2, 3):
        checkpoints.save(number, fresh())
    checkpoints.close()
    Checkpoints(tmp_path, keep=2).close()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ['2', '3']


def test_a_folder_removed_under_a_run_ends_it_in_one_line(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    with (
        pytest.raises(InputError, match=r'run: the run folder was removed while the run went on'),
        MetricsWriter(folder, start=0, total=9, title='t', report_to='') as writer,
    ):
        writer.write(1, {'loss': jnp.ones(())})
        shutil.rmtree(folder)
        writer.write(2, {'loss': jnp.ones(())})


def test_lines_that_are_no_records_are_told_and_left_out(tmp_path, caplog):
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(
        b'{"step": 1}\n[1]\n\xff\xfe\n' + b'[' * 99_999 + b'\n{"note": 1}\n{"step": "x"}\n{"step": 2}\n{"st'
    )
    assert read_records(path) == [{'step': 1}, {'note': 1}, {'step': 'x'}, {'step': 2}]
    assert caplog.text.count('a line that holds no record is left out') == 3
    with MetricsWriter(tmp_path, start=1, total=2, title='t', report_to='') as writer:
        writer.write(2, {'loss': jnp.asarray(9.0)})
    assert read_records(path) == [{'step': 1}, {'step': 2, 'loss': 9.0}]


def test_metrics_are_written_once_per_step_one_step_late(tmp_path):
    with MetricsWriter(tmp_path, start=0, total=3, title='t') as writer:
        writer.write(1, {'loss': jnp.asarray(1.0)})
        assert read_records(tmp_path / 'metrics.jsonl') == []
        writer.write(2, {'loss': jnp.asarray(2.0), 'perf/mfu': jnp.asarray(jnp.nan)})
        assert read_records(tmp_path / 'metrics.jsonl') == [{'step': 1, 'loss': 1.0}]
    assert read_records(tmp_path / 'metrics.jsonl')[1] == {'step': 2, 'loss': 2.0, 'perf/mfu': 'n/a'}
    assert list((tmp_path / 'tensorboard').iterdir())


@pytest.mark.parametrize('name', ['loss', 'grad_norm'])
def test_a_number_that_is_not_finite_stops_the_run_with_its_step(tmp_path, name):
    with (
        pytest.raises(InputError, match=rf'step 2: {name} is nan; the run has stopped'),
        MetricsWriter(tmp_path, start=0, total=3, title='t') as writer,
    ):
        writer.write(1, {'loss': jnp.asarray(1.0)})
        writer.write(2, {name: jnp.asarray(jnp.nan)})
        writer.flush()
    assert read_records(tmp_path / 'metrics.jsonl')[1] == {'step': 2, name: 'nan'}


def test_steps_are_skipped_and_counted_until_there_are_too_many(tmp_path, caplog):
    bad, good = {'loss': jnp.nan, 'skipped': jnp.ones(())}, {'loss': jnp.ones(()), 'skipped': jnp.zeros(())}
    with MetricsWriter(tmp_path, start=0, total=9, title='t', may_skip=2) as writer:
        for step, metrics in enumerate((good, bad, good), 1):
            writer.write(step, metrics)
    assert 'step 2: loss is nan; skipped, 1 of --skip_bad_steps=2' in caplog.text
    # A run that resumes counts on, from the steps that it keeps.
    with (
        pytest.raises(
            InputError, match=r'step 6: loss is nan \(skipped, as 3 with --skip_bad_steps=2\); the run has stopped'
        ),
        MetricsWriter(tmp_path, start=3, total=9, title='t', may_skip=2) as writer,
    ):
        for step, metrics in enumerate((bad, good, bad, good), 4):
            writer.write(step, metrics)
    assert skipped_steps(read_records(tmp_path / 'metrics.jsonl')) == 3
    with MetricsWriter(tmp_path, start=5, total=9, title='t', may_skip=3) as writer:
        for step, metrics in enumerate((bad, good), 6):
            writer.write(step, metrics)


def test_a_run_that_was_cut_off_repeats_no_step(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text(''.join(json.dumps({'step': s, 'loss': 0.0}) + '\n' for s in (1, 2, 3)) + '{"step": 4, "lo')
    with MetricsWriter(tmp_path, start=2, total=3, title='t') as writer:
        writer.write(3, {'loss': jnp.asarray(9.0)})
    assert read_records(path) == [{'step': 1, 'loss': 0.0}, {'step': 2, 'loss': 0.0}, {'step': 3, 'loss': 9.0}]


def test_steps_without_a_gradient_are_told_once_and_stop_nothing(tmp_path, caplog):
    with MetricsWriter(tmp_path, start=0, total=9, title='t') as writer:
        for step in range(1, 7):
            writer.write(step, {'loss': jnp.asarray(1.0), 'grad_norm': jnp.asarray(0.0)})
    assert caplog.text.count('the first 3 steps had no gradient') == 1
    caplog.clear()
    (tmp_path / 'm').mkdir()
    with MetricsWriter(tmp_path / 'm', start=0, total=9, title='t') as writer:
        for step, norm in enumerate((0.0, 1.0, 0.0, 0.0, 0.0), 1):
            writer.write(step, {'loss': jnp.asarray(1.0), 'grad_norm': jnp.asarray(norm)})
    assert 'no gradient' not in caplog.text
