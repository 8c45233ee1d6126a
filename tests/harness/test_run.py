"""The run folder: resumed, refused, ended by signals and by full or broken disks, always in one line."""

import errno
import json
import os
import shutil
import signal

import numpy as np
import pytest

from rlax_ft.errors import InputError
from rlax_ft.harness import stopping
from rlax_ft.harness.command_line import storage_failure
from rlax_ft.harness.env_setup import EnvSettings
from rlax_ft.harness.run import open_metrics, open_run
from rlax_ft.harness.settings import Settings
from rlax_ft.harness.step import compile_training, with_steps
from rlax_ft.models.config import embedded_config
from rlax_ft.training.metrics import MetricsWriter

CONFIG = embedded_config('tiny', vocab_size=16, max_length=16)


def settings(folder, **given):
    return Settings(out=str(folder), **{'max_steps': 6, 'report_to': '', **given})


def steps(folder, last, given=None, on_step=lambda step: None):
    """A run whose state is the number of its steps; returns the steps taken now."""
    chosen = given or settings(folder, max_steps=last, save_every=2)
    run = open_run(chosen, 'x')
    state, start = run.checkpoints.newest({'w': np.zeros(())})
    run.check_length(chosen, start)
    with open_metrics(chosen, run, CONFIG, start, title='x', show=()) as writer:
        for step in range(start + 1, last + 1):
            state = {'w': state['w'] + 1}
            on_step(step)
            writer.write(step, {'loss': 0.0})
            run.save_if_due(chosen, step, last, writer, lambda: state)  # noqa: B023
    assert float(state['w']) == last
    run.finish({'steps': last})
    return last - start


def test_a_run_is_not_begun_within_what_another_has_written(tmp_path):
    (tmp_path / 'a/model').mkdir(parents=True)
    (tmp_path / 'a/flags.txt').write_text('--seed=0\n')
    for name in ('a/model', 'a/checkpoints/new'):
        with pytest.raises(InputError, match=f'--out=.*{name}: is within what the run in .*a has written'):
            open_run(settings(tmp_path / name), 'x')
    assert not list((tmp_path / 'a/model').iterdir()) and not (tmp_path / 'a/checkpoints').exists()
    open_run(settings(tmp_path / 'a/stage'), 'x')  # As rlhf.py keeps its stages.


def test_fewer_steps_than_were_taken_are_refused_and_the_folder_stays(tmp_path):
    assert steps(tmp_path, 6) == 6
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for given in ({'max_steps': 3}, {'max_steps': 0}):
        with pytest.raises(
            InputError, match=rf'--max_steps={given["max_steps"]} .*: ends at step .* is at step 6 already'
        ):
            open_run(settings(tmp_path, **given), 'x')
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    # --epochs says it once the records are counted.
    short = with_steps(settings(tmp_path, max_steps=-1, epochs=1.0), 32 * 4)
    with pytest.raises(InputError, match=r'ends at step 4'):
        open_run(settings(tmp_path), 'x').check_length(short, 6)
    assert open_run(settings(tmp_path), 'x').summary == {'steps': 6}
    with pytest.raises(InputError, match=r'--total_steps=512: ends at step 1, .* at step 2 already'):
        open_run(settings(tmp_path), 'x').check_length(EnvSettings(total_steps=512), 2)


def test_more_steps_say_that_the_learning_rate_jumps(tmp_path, caplog):
    steps(tmp_path, 2)
    open_run(settings(tmp_path, max_steps=8), 'x')
    assert '--max_steps=2' in caplog.text and 'the learning rate jumps at step 2' in caplog.text
    caplog.clear()
    steps(tmp_path / 'constant', 2, settings(tmp_path / 'constant', max_steps=2, schedule='constant'))
    open_run(settings(tmp_path / 'constant', max_steps=8, schedule='constant'), 'x')
    steps(tmp_path / 'planned', 2, settings(tmp_path / 'planned', max_steps=2, schedule_steps=8))
    open_run(settings(tmp_path / 'planned', max_steps=8, schedule_steps=8), 'x')
    assert caplog.text == ''


def test_schedule_steps_is_the_schedule_of_the_longer_run(tmp_path):
    def rates(*, updates, **given):
        optimizer, _ = compile_training(
            settings(tmp_path, learning_rate=1.0, **given), lambda *_: (0.0, {}), max_updates=updates
        )
        state, seen = optimizer.init(np.ones(2, np.float32)), []
        for _ in range(4):
            _, state = optimizer.update(np.ones(2, np.float32), state, np.ones(2, np.float32))
            seen.append(float(state[1].hyperparams['learning_rate']))
        return seen

    assert rates(max_steps=2, schedule_steps=4, updates=4) == rates(max_steps=4, updates=8)
    np.testing.assert_allclose(rates(max_steps=2, schedule_steps=4, updates=4), [1, 7 / 8, 6 / 8, 5 / 8])
    with pytest.raises(InputError, match=r'--schedule_steps=3: fewer than the 4 steps'):
        compile_training(settings(tmp_path, max_steps=4, schedule_steps=3), lambda *_: (0.0, {}))
    with pytest.raises(InputError, match=r'--schedule_steps=3: has no effect with --schedule=constant'):
        settings(tmp_path, schedule='constant', schedule_steps=3)


@pytest.fixture
def listening():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stopping.listen()
    yield
    stopping._asked.update(looping=False, signal=0)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('at', [1, 3, 4])
def test_a_signal_at_any_step_ends_the_run_after_it_saved(tmp_path, listening, number, at):
    kill = lambda step: os.kill(os.getpid(), number) if step == at else None  # noqa: E731
    with pytest.raises(stopping.Stopped, match=rf'stopped after step {at}, which is saved') as caught:
        steps(tmp_path, 4, on_step=kill)
    assert caught.value.signal == number
    assert steps(tmp_path, 4) == 4 - at  # also after the last step
    assert json.loads((tmp_path / 'summary.json').read_text()) == {'steps': 4}


def test_a_signal_after_the_last_look_interrupts_when_the_loop_has_ended(tmp_path, listening):
    with (
        pytest.raises(KeyboardInterrupt) as caught,
        MetricsWriter(tmp_path, start=0, total=1, title='t', report_to='', on_loop=stopping.looping),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.args == (signal.SIGTERM,)
    with pytest.raises(KeyboardInterrupt):  # and outside a loop at once
        os.kill(os.getpid(), signal.SIGINT)


def test_skipped_steps_stand_in_the_summary(tmp_path):
    run = open_run(settings(tmp_path), 'x')
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "skipped": 1.0}\n{"step": 2, "skipped": 3.0}\n')
    assert run.finish({'steps': 2}) == {'steps': 2, 'skipped_steps': 4}


def test_a_folder_that_goes_before_the_first_step_is_one_line(tmp_path):
    chosen = Settings(out=str(tmp_path / 'run'), max_steps=2, report_to='')
    run = open_run(chosen, 'x')
    shutil.rmtree(tmp_path / 'run')
    with pytest.raises(InputError, match='the run folder was removed while the run went on'):
        open_metrics(chosen, run, CONFIG, 0, title='x', show=())


@pytest.mark.parametrize('text', [b'', b'[1]', b'\xff', b'{"steps": ', b'[' * 99_999])
def test_a_summary_that_cannot_be_read_is_made_anew(tmp_path, caplog, text):
    steps(tmp_path, 2)
    (tmp_path / 'summary.json').write_bytes(text)
    assert open_run(settings(tmp_path, max_steps=2), 'x').summary is None
    assert 'summary.json: holds no summary; it is made anew' in caplog.text


def test_a_run_folder_of_odd_files_is_one_line(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/flags.txt').write_bytes(b'\xff\xfe')
    with pytest.raises(InputError, match=r'flags.txt: cannot be read'):
        open_run(settings(tmp_path / 'a'), 'x')
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b/flags.txt').write_text('--beta\nx\n--=\n')
    open_run(settings(tmp_path / 'b'), 'x')
    (tmp_path / 'c').mkdir()
    (tmp_path / 'c/checkpoints').write_text('')
    with pytest.raises(InputError, match=r'c/checkpoints: .* and it is a file'):
        open_run(settings(tmp_path / 'c'), 'x')


def test_a_full_or_read_only_disk_is_told_in_one_line_whatever_raised_it():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/data/run/metrics.jsonl')
    assert storage_failure(full) == '/data/run/metrics.jsonl: No space left on device'
    try:
        try:
            raise full
        except OSError as error:
            raise ValueError('a save failed') from error
    except ValueError as error:
        assert storage_failure(error) == '/data/run/metrics.jsonl: No space left on device'
    text = RuntimeError('INTERNAL: Error writing "/data/run/5/x": File too large [source locations]')
    assert storage_failure(text) == '/data/run/5/x: File too large'
    assert storage_failure(ValueError('shapes differ')) is None
