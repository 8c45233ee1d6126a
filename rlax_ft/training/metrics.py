"""Where a run's numbers go: metrics.jsonl, TensorBoard and a progress bar, one step late.

A metric is written when the next one arrives, so that the host never waits for the step that it has just sent off.
Leaves out what the numbers mean: names are TRL's.
"""

import json
import math
import sys
from pathlib import Path

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm


class MetricsWriter:
    """Writes one record per step; use as a context manager."""

    def __init__(self, folder: str | Path, *, start: int, total: int, title: str, show: tuple[str, ...] = ('loss',)):
        """Opens the folder's files for a run that goes on after step `start`.

        Args:
          folder: the run folder; records of steps after `start` (from a run that was cut off) are dropped.
          start: last step already done.
          total: last step of the run.
          title: what the progress bar says.
          show: names of the few numbers on the progress bar.
        """
        self._path = Path(folder) / 'metrics.jsonl'
        drop_records_after(self._path, start)
        self._file = open(self._path, 'a')
        self._board = SummaryWriter(str(Path(folder) / 'tensorboard'), purge_step=start + 1, max_queue=200)
        # A log file gets a line now and then, a terminal a bar that moves.
        pace = 0.5 if sys.stderr.isatty() else 15.0
        self._bar = tqdm(total=total, initial=start, desc=title, mininterval=pace, dynamic_ncols=True)
        self._show = show
        self._pending = None

    def write(self, step: int, metrics: dict) -> None:
        """Takes the metrics of `step` (arrays may still be computing) and writes those of the step before."""
        self.flush()
        self._pending = (step, metrics)
        self._bar.update(step - self._bar.n)

    def flush(self) -> None:
        """Writes what is pending; waits for it if need be."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._file.write(json.dumps({'step': step, **{k: _json_number(v) for k, v in values.items()}}) + '\n')
        self._file.flush()
        for name, value in values.items():
            if math.isfinite(value):
                self._board.add_scalar(name, value, step)
        self._bar.set_postfix({name: f'{values[name]:.3g}' for name in self._show if name in values}, refresh=False)

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, *_):
        """Writes what is pending and closes the files."""
        self.flush()
        self._file.close()
        self._board.close()
        self._bar.close()


def read_records(path: str | Path) -> list[dict]:
    """The records of a metrics.jsonl, oldest first; a last line cut off in writing is left out."""
    path = Path(path)
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def drop_records_after(path: Path, step: int) -> None:
    """Rewrites a metrics.jsonl without the records later than `step`."""
    records = read_records(path)
    if path.exists():
        temporary = path.with_suffix('.tmp')
        temporary.write_text(''.join(json.dumps(r) + '\n' for r in records if r['step'] <= step))
        temporary.replace(path)


def _json_number(value):
    # JSON has no NaN or infinity.
    return value if math.isfinite(value) else str(value)
