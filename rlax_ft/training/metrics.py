"""Where a run's numbers go: metrics.jsonl, a progress bar, and the services of reporters.py, one step late.

A metric is written when the next one arrives, so that the host never waits for the step that it has just sent off. A
loss or gradient that is not finite stops the run. Leaves out what the numbers mean: names are TRL's.
"""

import json
import logging
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from tqdm import tqdm

from rlax_ft.errors import InputError
from rlax_ft.parallel.hosts import is_first
from rlax_ft.parallel.placement import fetch
from rlax_ft.training.performance import Performance, batch_tokens
from rlax_ft.training.reporters import make_reporters

# What must be finite: an update with another number in it has spoilt the parameters.
_MUST_BE_FINITE = ('loss', 'grad_norm')
# After so many steps from the start without any gradient a warning says so.
_STILL = 3


class MetricsWriter:
    """Writes one record per step; use as a context manager."""

    def __init__(
        self,
        folder: str | Path,
        *,
        start: int,
        total: int,
        title: str,
        show: tuple[str, ...] = ('loss',),
        performance: Performance | None = None,
        profile: tuple[int, int] | None = None,
        report_to: str = 'tensorboard',
        on_loop: Callable[[bool], None] = lambda now: None,
        may_skip: int = 0,
    ):
        """Opens the folder's files for a run that goes on after step `start`.

        Args:
          folder: the run folder; records of steps after `start` (from a run that was cut off) are dropped.
          start: last step already done.
          total: last step of the run.
          title: what the progress bar says.
          show: names of the few numbers on the progress bar.
          performance: whose metrics are added to those of steps that come with their batch.
          profile: (first, last) step of which a trace is written to the folder's profile/.
          report_to: names of reporters with commas between.
          on_loop: told True when the loop begins, and False when it has ended.
          may_skip: how many steps may have been skipped (metric `skipped`) over a number that is not finite.
        """
        self._path = Path(folder) / 'metrics.jsonl'
        # Of several processes one writes; all look at the numbers, so that all stop at what is not finite.
        if not is_first():
            self._path, report_to, profile = Path(os.devnull), '', None
        self._may_skip, self._skipped = may_skip, skipped_steps(drop_records_after(self._path, start))
        self._file = open(self._path, 'a')
        self._reporters = make_reporters(report_to, Path(folder), start)
        self._on_loop, self._still = on_loop, 0
        # A log file gets a line now and then, a terminal a bar that moves.
        pace = 0.5 if sys.stderr.isatty() else 15.0
        hidden = not is_first()
        self._bar = tqdm(total=total, initial=start, desc=title, mininterval=pace, dynamic_ncols=True, disable=hidden)
        self._show = show
        self._pending: tuple | None = None
        self._performance = performance
        self._profile, self._profile_folder = profile or (0, 0), Path(folder) / 'profile'
        self._trace(start)

    def write(self, step: int, metrics: dict, batch=None) -> None:
        """Takes the metrics of `step` (arrays may still be computing) and writes those of the step before.

        Args:
          step: number of the step.
          metrics: scalars by name.
          batch: what the step read, for its speed; only its shapes are looked at.
        """
        self.flush()
        self._pending = (step, metrics, None if batch is None else batch_tokens(batch))
        self._trace(step)
        self._bar.update(step - self._bar.n)

    def flush(self) -> None:
        """Writes what is pending; waits for it if need be."""
        if self._pending is None:
            return
        step, metrics, size = self._pending
        self._pending = None
        values = {name: float(value) for name, value in fetch(metrics).items()}
        if not self._path.exists():
            raise InputError(f'{self._path.parent}: the run folder was removed while the run went on; it has stopped')
        if self._performance is not None and size is not None:
            values |= self._performance.lap(*size)
        self._file.write(json.dumps({'step': step, **{k: _json_number(k, v) for k, v in values.items()}}) + '\n')
        self._file.flush()
        for report in self._reporters:
            report.write(step, {name: value for name, value in values.items() if math.isfinite(value)})
        self._check(step, values)
        self._bar.set_postfix({name: f'{values[name]:.3g}' for name in self._show if name in values}, refresh=False)

    def _check(self, step, values):
        self._skipped += round(values.get('skipped', 0))
        bad = next((name for name in _MUST_BE_FINITE if not math.isfinite(values.get(name, 0.0))), None)
        if bad and values.get('skipped') and self._skipped <= self._may_skip:
            logging.warning(
                'step %d: %s is %s; skipped, %d of --skip_bad_steps=%d',
                *(step, bad, values[bad], self._skipped, self._may_skip),
            )
        elif bad:
            skipped = f' (skipped, as {self._skipped} with --skip_bad_steps={self._may_skip})' if self._may_skip else ''
            raise InputError(
                f'step {step}: {bad} is {values[bad]}{skipped}; the run has stopped, earlier checkpoints are kept; '
                'try a lower --learning_rate, or look at the data and the reward'
            )
        self._still = self._still + 1 if values.get('grad_norm', 1.0) == 0.0 else -1 << 30
        if self._still == _STILL:
            logging.warning(
                'the first %d steps had no gradient: equal rewards or labels give none, nor do --lora_targets that the '
                'loss does not reach',
                _STILL,
            )

    def _trace(self, done):
        """Starts the profiler before its first step, and stops it when its last has been sent off and has ended."""
        first, last = self._profile
        if first and done == first - 1:
            jax.profiler.start_trace(str(self._profile_folder))
        elif first and done == last:
            jax.block_until_ready(self._pending)
            jax.profiler.stop_trace()

    def __enter__(self):
        """Returns itself."""
        self._on_loop(True)
        return self

    def __exit__(self, kind, *_):
        """Writes what is pending, unless an error ends the loop, and closes the files."""
        try:
            if kind is None:
                self.flush()
        finally:
            self._file.close()
            for report in self._reporters:
                report.close()
            self._bar.close()
            self._on_loop(False)


def read_records(path: str | Path) -> list[dict]:
    """The records of a metrics.jsonl, oldest first, without lines that are none; the last may be cut off in writing."""
    path = Path(path)
    records, lines = [], path.read_bytes().split(b'\n') if path.exists() else []
    for line in filter(None, lines):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif line is not lines[-1]:
            logging.warning('%s: a line that holds no record is left out: %.40r', path, line)
    return records


def drop_records_after(path: Path, step: int) -> list[dict]:
    """Rewrites a metrics.jsonl without the records later than `step`; returns the others."""
    records = [record for record in read_records(path) if _step_of(record) <= step]
    if path.is_file():
        temporary = path.with_suffix('.tmp')
        temporary.write_text(''.join(json.dumps(record) + '\n' for record in records))
        temporary.replace(path)
    return records


def skipped_steps(records: list[dict]) -> int:
    """How many steps of these records were skipped over a number that is not finite."""
    counts = (record.get('skipped', 0) for record in records)
    return sum(round(count) for count in counts if isinstance(count, int | float))


def _step_of(record):
    step = record.get('step')
    return step if isinstance(step, int | float) else math.inf


def _json_number(name, value):
    # JSON has no NaN or infinity; a speed that is none is not applicable here.
    return value if math.isfinite(value) else 'n/a' if name.startswith('perf/') else str(value)
