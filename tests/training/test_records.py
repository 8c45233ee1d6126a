"""What a run writes: checkpoints that resume to the bit and refuse another model, metrics that survive a cut."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_ft.errors import InputError
from rlax_ft.training.checkpoint import Checkpoints
from rlax_ft.training.metrics import MetricsWriter, read_records
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
