"""Whether a long run of PPO keeps its memory and its programs: many tiny updates in one process.

    python experiments/benchmarks/leaks.py
    python experiments/benchmarks/leaks.py --updates=100 --settled=20      # small, to see that it works

Prints by how much the process's peak of memory grew after the first updates, the functions that were compiled after
them (none should be), and the functions of the run that were compiled more than once. Exit code 1 where memory grew by
more than --limit_mb or something was compiled late. Leaves out speed.
"""

import json
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path

import jax
from absl import app, flags

from rlax_ft.harness.loading import load_script
from rlax_ft.harness.results import RECORD, record
from rlax_ft.training.metrics import read_records

SCRIPTS = Path(__file__).resolve().parents[1]
_UPDATES = flags.DEFINE_integer('updates', 1000, 'Updates of the run.', lower_bound=2)
_SETTLED = flags.DEFINE_integer('settled', 50, 'Updates after which nothing may grow.', lower_bound=1)
_LIMIT = flags.DEFINE_float('limit_mb', 20.0, 'By how many MB the peak may grow after them.')


def main(_):
    """Runs, prints the figures as JSON, and ends with 1 where there is a leak."""
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), _UPDATES.value, _SETTLED.value)
    print(json.dumps(figures, indent=2))
    if RECORD.value:
        record(
            'Memory of a long run',
            f'{_UPDATES.value:,} tiny PPO updates in one process: its peak of memory grew by {figures["grown_mb"]} MB '
            f'after the first {_SETTLED.value}; functions compiled after them: {len(figures["compiled_late"])}.',
        )
    if figures['grown_mb'] > _LIMIT.value or figures['compiled_late']:
        sys.exit(1)


def measure(folder: Path, updates: int, settled: int) -> dict:
    """Runs PPO for so many updates; returns what grew and what was compiled after `settled` of them."""
    ppo = load_script(SCRIPTS / 'ppo.py')
    compilations = Compilations(folder / 'ppo/metrics.jsonl')
    ppo.train(
        ppo.PPOSettings(
            out=f'{folder}/ppo',
            model='tiny',
            max_steps=updates,
            batch_size=8,
            prompts=64,
            update_epochs=2,
            save_every=max(updates // 4, 1),
        )
    )
    compilations.close()
    peaks = [record['perf/peak_memory_gb'] * 1e3 for record in read_records(folder / 'ppo/metrics.jsonl')]
    # What follows the last update, the evaluation, is compiled once more for its own shapes.
    within = [(step, name) for step, name in compilations.seen if step < updates - 1]
    late = [name for step, name in within if step >= settled]
    often = Counter(name for _, name in within)
    return {
        'updates': updates,
        'settled_mb': round(peaks[settled - 1], 1),
        'grown_mb': round(peaks[-1] - peaks[settled - 1], 1),
        'compiled_late': sorted(set(late)),
        'compiled_often': {name: count for name, count in often.items() if count > 1 and name in OURS},
    }


# What the loop of ppo.py calls, by the names that jax gives them.
OURS = ('step', 'estimate', 'minibatch', 'sample', 'mean_over_steps', 'adaptive_coef')


class Compilations(logging.Handler):
    """Notes which function jax compiles, and after how many updates of a run."""

    def __init__(self, metrics: Path):
        """Listens from now on.

        Args:
          metrics: metrics.jsonl of the run, a line an update.
        """
        super().__init__(logging.DEBUG)
        self.seen: list[tuple[int, str]] = []
        self._metrics, self._logger = metrics, logging.getLogger('jax')
        jax.config.update('jax_log_compiles', True)
        self._before = self._logger.propagate
        self._logger.propagate = False
        self._logger.addHandler(self)

    def emit(self, record):
        """Notes a compilation."""
        text = record.getMessage()
        if text.startswith('Compiling '):
            step = self._metrics.read_bytes().count(b'\n') if self._metrics.exists() else 0
            self.seen.append((step, text.split()[1].removeprefix('jit(').removesuffix(')')))

    def close(self):
        """Listens no more."""
        jax.config.update('jax_log_compiles', False)
        self._logger.removeHandler(self)
        self._logger.propagate = self._before
        super().close()


if __name__ == '__main__':
    app.run(main)
