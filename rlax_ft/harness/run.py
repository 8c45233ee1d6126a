"""The run folder: opened, resumed, saved to, and finished.

Leaves out what is trained, and the metrics within (training/metrics.py).
"""

import dataclasses
import fcntl
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax

from rlax_ft.errors import InputError
from rlax_ft.harness import stopping
from rlax_ft.harness.settings import RunSettings, Settings, differing, flag_lines
from rlax_ft.parallel.hosts import barrier, everywhere, from_first, is_first, on_first
from rlax_ft.training.checkpoint import Checkpoints
from rlax_ft.training.metrics import MetricsWriter, read_records, skipped_steps
from rlax_ft.training.performance import Performance


@dataclasses.dataclass
class Run:
    """An open run folder.

    Attributes:
      folder: of the run.
      checkpoints: under it.
      summary: what the run ended with, or None where it has not ended.
    """

    folder: Path
    checkpoints: Checkpoints
    summary: dict | None
    _saved_at: float = dataclasses.field(default_factory=time.monotonic)

    def save_if_due(self, settings, step: int, last: int, writer: MetricsWriter, state: Callable, record=None) -> None:
        """Saves a checkpoint after `step` where one is due, and ends the run where a signal has asked for that.

        Due are every --save_every steps, the last, --save_minutes after the one before, and a signal's. The metrics of
        the step are looked at first, so that nothing is saved after a step whose loss was not finite.

        Args:
          settings: with --save_every and --save_minutes.
          step: that has been taken.
          last: of the run.
          writer: that was given this step's metrics.
          state: `() -> pytree` to save.
          record: a small dict beside it.

        Raises:
          Stopped: after saving, where SIGINT or SIGTERM came.
        """
        minutes = (time.monotonic() - self._saved_at) / 60
        # On several hosts all must save at the same step: clocks do not say so, steps do.
        late = settings.save_minutes and minutes >= settings.save_minutes and jax.process_count() == 1
        stop = stopping.asked()
        if not (step % settings.save_every == 0 or step == last or late or stop):
            return
        writer.flush()
        self.checkpoints.save(step, state(), record)
        self._saved_at = time.monotonic()
        if stop:
            self.checkpoints.close()
            stopping.stop(f'{self.folder}: stopped after step {step}, which is saved; the same command resumes')

    def check_length(self, settings, taken: int) -> None:
        """Refuses a run that shall end before the step that it has taken already.

        Args:
          settings: which say the last step, as --max_steps or otherwise.
          taken: step of the checkpoint that the run would resume from.

        Raises:
          InputError: the run is longer already.
        """
        if settings.last_step is not None and taken > settings.last_step:
            flags = ' '.join(f'--{name}={getattr(settings, name)}' for name in settings.length)
            raise InputError(
                f'{flags}: ends at step {settings.last_step}, and the run in {self.folder} is at step {taken} already; '
                'make it as long, give another --out, or --resume=false to start anew'
            )

    def finish(self, summary: dict) -> dict:
        """Writes summary.json, the last thing that a run does, and prints its numbers; counts skipped steps."""
        self.checkpoints.close()
        records = read_records(self.folder / 'metrics.jsonl')
        if any('skipped' in record for record in records):
            summary = {**summary, 'skipped_steps': skipped_steps(records)}
        write_json(self.folder / 'summary.json', summary)
        barrier('summary')
        numbers = ', '.join(f'{k} {_readable(v)}' for k, v in summary.items() if _is_number(v))
        if numbers:
            print(f'{self.folder}: {numbers}')
        return summary


def open_run(settings: RunSettings, name: str) -> Run:
    """Opens the run folder, new or to be resumed, and writes its flags.txt.

    Raises:
      InputError: the folder holds a run of other settings, is in use by another process, or is no folder.
    """
    folder = Path(settings.out or from_first(lambda: str(_default_folder(settings, name))))
    if folder.exists() and not folder.is_dir():
        raise InputError(f'--out={folder}: is a file; give a folder')
    _check_place(folder)
    if not settings.resume:
        on_first(lambda: _put_away(folder), 'old run')
    saved = _saved_flags(folder)
    changed = differing(settings, saved)
    if changed and not _has_begun(folder):
        # It stopped before its first step, perhaps over a flag: what it had prepared goes.
        for name in ('judgements.jsonl', 'to_judge.jsonl'):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / 'tokenizer', ignore_errors=True)
    elif changed:
        flag, now, before = changed
        raise InputError(
            f'--{flag}={now}: the run in {folder} was begun with --{flag}={before}; '
            'give that, another --out, or --resume=false to start anew'
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _lock(folder)
        barrier('flags')  # All have read what the run was begun with.
        run = Run(folder, Checkpoints(folder / 'checkpoints', tidy=True), None)
        taken = run.checkpoints.latest_step() or 0
        run.check_length(settings, taken)
        write_text(folder / 'flags.txt', '\n'.join(flag_lines(settings)) + '\n')
    except OSError as error:
        raise InputError(f'--out={folder}: cannot be written ({error.strerror}); give another folder') from error
    _check_shared(folder)
    if {f'--{name}={getattr(settings, name)}' for name in settings.length} <= set(saved):
        run.summary = _read_summary(folder / 'summary.json')
    elif taken:
        _warn_of_another_length(settings, saved, taken)
    return run


def open_metrics(settings: Settings, run: Run, config, start: int, *, title: str, show: tuple, passes: float = 3.0):
    """The run's MetricsWriter from step `start` on; `passes` is what a step costs in forward passes over its batch."""
    first, _, last = settings.profile_steps.partition(':')
    if settings.profile_steps and not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise InputError(f'--profile_steps={settings.profile_steps}: give FIRST:LAST, such as 11:15')
    if not (run.folder / 'flags.txt').exists():
        raise InputError(f'{run.folder}: the run folder was removed while the run went on; it has stopped')
    return MetricsWriter(
        run.folder,
        start=start,
        total=settings.max_steps,
        title=title,
        show=show,
        performance=Performance(config, passes=passes),
        profile=(int(first), int(last)) if first else None,
        report_to=settings.report_to,
        on_loop=stopping.looping,
        may_skip=settings.skip_bad_steps,
    )


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all; in a run of several processes the first one does."""
    if not is_first():
        return
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, value) -> None:
    """Writes a JSON file whole or not at all; a number that is not finite, which JSON cannot say, is null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + '\n')


def _default_folder(settings, name):
    """runs/NAME, or the first of runs/NAME.2, .3, ... that is new or was begun with these very flags."""
    for number in range(1, 10_000):
        folder = Path(f'runs/{name}' if number == 1 else f'runs/{name}.{number}')
        if not folder.exists() or ((folder / 'flags.txt').exists() and not differing(settings, _saved_flags(folder))):
            return folder
    raise InputError(f'runs/{name}: ten thousand runs are there; give --out')


def _check_place(folder):
    """Refuses a folder in which another run keeps what is its own, such as its checkpoints."""
    inner = folder.resolve()
    for outer in inner.parents:
        own = inner.relative_to(outer).parts[0] in ('checkpoints', 'model', 'tokenizer', 'profile')
        if own and (outer / 'flags.txt').exists():
            raise InputError(f'--out={folder}: is within what the run in {outer} has written; give another folder')


def _put_away(folder):
    """Renames a folder that holds a run: the new one starts anew."""
    if (folder / 'flags.txt').exists():
        number = next(n for n in range(1, 10_000) if not folder.with_name(f'{folder.name}.{n}').exists())
        try:
            folder.rename(folder.with_name(f'{folder.name}.{number}'))
        except OSError as error:
            raise InputError(f'--out={folder}: cannot be renamed ({error.strerror}); give another folder') from error


def _saved_flags(folder):
    """The lines of the folder's flags.txt; none where there is none."""
    path = folder / 'flags.txt'
    try:
        return path.read_text().splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f'{path}: cannot be read ({error}); it says what the run was begun with: mend it, or --resume=false'
        ) from error


def _read_summary(path):
    """What the run ended with; None where it has not, or where that cannot be read and is made anew."""
    if not path.exists():
        return None
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        summary = None
    if not isinstance(summary, dict):
        logging.warning('%s: holds no summary; it is made anew', path)
        return None
    print(f'{path.parent}: this run has ended; nothing to do (summary.json). --resume=false runs it again')
    return summary


def _warn_of_another_length(settings, saved, taken):
    """Says that the schedule of a run which goes on longer is another one, so that its learning rate jumps."""
    before = [line for line in saved if line[2:].split('=')[0] in settings.length]
    if getattr(settings, 'schedule', 'constant') == 'constant':
        return
    steps = getattr(settings, 'schedule_steps', 0)
    if not steps or f'--schedule_steps={steps}' not in saved:
        hint = '' if steps or not hasattr(settings, 'schedule_steps') else '; --schedule_steps sets it apart from these'
        logging.warning(
            'the run in %s was begun with %s: --schedule=%s now runs over another length, and the learning rate jumps '
            'at step %d%s',
            *(settings.out or 'its folder', ' '.join(before), settings.schedule, taken, hint),
        )


def _check_shared(folder):
    """Refuses a folder that not all processes see.

    Raises:
      InputError: on every process.
    """
    barrier('run folder')
    began = time.monotonic()
    # A network file system may show a new file a little later.
    while not (folder / 'flags.txt').exists() and time.monotonic() - began < 5:
        time.sleep(0.1)
    seen = everywhere((folder / 'flags.txt').exists())
    if not all(seen):
        raise InputError(
            f'--out={folder}: process {seen.index(False)} does not see what process 0 has written there; give a folder '
            'that all hosts share'
        )


def _has_begun(folder):
    """Whether a run has taken a step: it has metrics, a checkpoint or a summary."""
    checkpoints = folder / 'checkpoints'
    steps = checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir())
    return steps or (folder / 'summary.json').exists() or bool(read_records(folder / 'metrics.jsonl'))


_locks: dict[Path, object] = {}  # Of this process, which may open a folder again.


def _lock(folder):
    """Keeps other processes out of the folder until this one ends.

    Raises:
      InputError: another process has it.
    """
    path = folder.resolve() / '.lock'
    if (path in _locks and path.exists()) or jax.process_count() > 1:
        return  # The processes of one run share its folder.
    file = open(path, 'w')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f'--out={folder}: another process is writing there; wait for it, or give another folder'
        ) from error
    except OSError:
        return  # A file system without locks.
    _locks[path] = file


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _readable(value):
    return f'{value:,}' if isinstance(value, int) else f'{value:.4g}'
