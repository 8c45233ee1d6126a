"""Mutated run folders: each is resumed, started anew, or refused in one line; nothing outside it is touched.

A run folder is spoilt in up to three places and opened as a script does (flags, lock, summary, newest checkpoint,
metrics), or as readers do (samples, a model to start from).
"""

import atexit
import functools
import random
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np

from rlax_ft.errors import InputError
from rlax_ft.harness.command_line import storage_failure
from rlax_ft.harness.run import open_metrics, open_run
from rlax_ft.harness.settings import Settings
from rlax_ft.harness.starting_model import checkpoint_params, model_folder
from rlax_ft.models.config import embedded_config
from rlax_ft.training.metrics import read_records

CONFIG = embedded_config('tiny', vocab_size=16, max_length=16)
_TEXTS = [
    b'',
    b'{}',
    b'[]',
    b'null',
    b'1',
    b'\xff\xfe',
    b'{"a": ',
    b'[' * 50_000,
    b'\x00' * 64,
    b'--x\n',
    b'"text"',
    b'NaN',
]


def mutation(rng: random.Random, workdir: Path) -> str:
    """One mutated run folder: `fine`, or `one line` where it is refused.

    Args:
      rng: decides what is spoilt.
      workdir: a folder for the run; nothing beside it may change.

    Raises:
      Exception: a fault, which is any error but an InputError or the file system's.
    """
    folder = Path(workdir) / 'run'
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pattern(), folder)
    if rng.random() < 0.5:
        (folder / 'summary.json').unlink()
    for _ in range(rng.randint(1, 3)):
        spoil(rng, folder)
    try:
        use(folder, rng)
    except Exception as error:
        if not isinstance(error, InputError) and storage_failure(error) is None:
            raise
        assert ' '.join(str(error).split()), 'an error without a word'
        return 'one line'
    return 'fine'


@functools.cache
def pattern() -> Path:
    """The run that is spoilt, made once in this process."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_run(folder / 'run')
    return folder / 'run'


def settings_for(folder: Path) -> Settings:
    """Those that the pattern was made with."""
    return Settings(out=str(folder), max_steps=4, save_every=2, report_to='')


def make_run(folder: Path) -> None:
    """A run of four steps with two checkpoints, as a script leaves it."""
    settings = settings_for(folder)
    run = open_run(settings, 'x')
    with open_metrics(settings, run, CONFIG, 0, title='x', show=()) as writer:
        for step in range(1, 5):
            writer.write(step, {'loss': 1.0 / step, 'grad_norm': 1.0})
            run.save_if_due(settings, step, 4, writer, lambda: state_after(step))  # noqa: B023
    (folder / 'samples.jsonl').write_text('{"step": 4, "prompt": "a", "completion": "b"}\n')
    (folder / 'model').mkdir()
    (folder / 'model/config.json').write_text('{}')
    run.finish({'steps': 4, 'loss': 0.25})


def state_after(step: int) -> dict:
    """A small state that tells its step."""
    return {'params': {'w': np.full((4, 3), float(step), np.float32)}, 'key': jax.random.key(step)}


def use(folder: Path, rng: random.Random) -> None:
    """Opens the folder as a script does, and takes two more steps; or reads it as another script does."""
    if rng.random() < 0.2:
        read_records(folder / 'samples.jsonl')
        read_records(folder / 'metrics.jsonl')
        model_folder(str(folder))
        checkpoint_params(str(folder / 'checkpoints' / str(rng.choice([2, 4, 9]))))
        return
    settings = settings_for(folder)
    run = open_run(settings, 'x')
    if run.summary:
        return
    state, start = run.checkpoints.newest(state_after(0))
    run.check_length(settings, start)
    assert start in (0, 2, 4), f'resumed at step {start}'
    assert float(np.asarray(state['params']['w'])[0, 0]) in (0.0, 2.0, 4.0)
    with open_metrics(settings, run, CONFIG, start, title='x', show=()) as writer:
        for step in range(start + 1, 5):
            writer.write(step, {'loss': 1.0})
            run.save_if_due(settings, step, 4, writer, lambda: state_after(step))  # noqa: B023
    run.finish({'steps': 4})
    assert run.checkpoints.latest_step() == 4, 'the last step was not saved'
    steps = [record['step'] for record in read_records(folder / 'metrics.jsonl')]
    assert steps == sorted(steps), steps


def spoil(rng: random.Random, folder: Path) -> None:
    """Changes one file or folder within: cut, other content, flipped bytes, gone, renamed, a folder, a link."""
    paths = sorted(path for path in folder.rglob('*') if path.name != '.lock')
    if not paths:
        return
    top = [path for path in paths if path.parent == folder]
    path = rng.choice(top if rng.random() < 0.4 else paths)
    how = rng.choice(['cut', 'text', 'flip', 'gone', 'renamed', 'folder', 'link', 'repeat'])
    if how == 'renamed':
        path.rename(path.with_name(rng.choice(['7', '0', '4.orbax-checkpoint-tmp-1', 'x', f'{path.name}.tmp'])))
    elif how in ('gone', 'folder', 'link') or path.is_dir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if how == 'folder':
            path.mkdir()
        elif how == 'link':
            path.symlink_to(rng.choice([folder / 'nowhere', folder]))
    elif path.is_symlink():
        path.unlink()
    else:
        content = path.read_bytes()
        place = rng.randrange(len(content) + 1)
        path.write_bytes(
            {
                'cut': content[:place],
                'text': rng.choice(_TEXTS),
                'flip': content[:place] + rng.randbytes(4) + content[place + 4 :],
                'repeat': content + content,
            }[how]
        )
