"""Whether a long run keeps its memory and its programs: many tiny updates in one process.

    python experiments/benchmarks/leaks.py
    python experiments/benchmarks/leaks.py --script=grpo
    python experiments/benchmarks/leaks.py --updates=100 --settled=20      # small, to see that it works

Prints by how much the process's peak of memory grew after the first updates, the functions that were compiled after
them (none should be), and the functions of the run that were compiled more than once. Exit code 1 where memory grew by
more than --limit_mb or something was compiled late. Leaves out speed.
"""

import json
import logging
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import jax
from absl import app, flags

from rlax_ft.harness.loading import load_script
from rlax_ft.harness.results import RECORD, record
from rlax_ft.training.performance import peak_memory

SCRIPTS = Path(__file__).resolve().parents[1]
_TEXT = dict(model='tiny', batch_size=8, prompts=64, update_epochs=2)
_ENV = dict(env='CartPole-v1', num_envs=4, num_steps=16, minibatches=2, update_epochs=2, log_every=1, eval_episodes=4)
# Script -> its settings, tiny ones, and the flag that counts what is learned from in an update, by how many of them.
RUNS = {
    'ppo': ('PPOSettings', _TEXT, 'max_steps', 1),
    'grpo': ('GRPOSettings', _TEXT | dict(group_size=4), 'max_steps', 1),
    'ppo_env': ('EnvSettings', _ENV, 'total_steps', 64),
}
_SCRIPT = flags.DEFINE_enum('script', 'ppo', list(RUNS), 'What is run.')
_UPDATES = flags.DEFINE_integer('updates', 1000, 'Updates of the run.', lower_bound=2)
_SETTLED = flags.DEFINE_integer('settled', 50, 'Updates after which nothing may grow.', lower_bound=1)
_LIMIT = flags.DEFINE_float('limit_mb', 20.0, 'By how many MB the peak may grow after them.')


def main(_):
    """Runs, prints the figures as JSON, and ends with 1 where there is a leak."""
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), _UPDATES.value, _SETTLED.value, _SCRIPT.value)
    print(json.dumps(figures, indent=2))
    if RECORD.value:
        record(
            'Memory of a long run' + ('' if _SCRIPT.value == 'ppo' else f': {_SCRIPT.value}'),
            f'{_UPDATES.value:,} tiny updates of {_SCRIPT.value}.py in one process: its peak of memory grew by '
            f'{figures["grown_mb"]} MB after the first {_SETTLED.value}; functions compiled after them: '
            f'{len(figures["compiled_late"])}; of the loop, compiled more than once: {len(figures["compiled_often"])}.',
        )
    if figures['grown_mb'] > _LIMIT.value or figures['compiled_late']:
        sys.exit(1)


def measure(folder: Path, updates: int, settled: int, script: str = 'ppo') -> dict:
    """Runs a script for so many updates; returns what grew and what was compiled after `settled` of them."""
    module, (name, given, length, each) = load_script(SCRIPTS / f'{script}.py'), RUNS[script]
    metrics = folder / script / 'metrics.jsonl'
    compilations, peaks = Compilations(metrics), Peaks(metrics, (settled, updates))
    how = dict(out=f'{folder}/{script}', save_every=max(updates // 4, 1), report_to='', **{length: updates * each})
    module.train(getattr(module, name)(**given, **how))
    compilations.close()
    at_first, at_last = peaks.close()
    # What follows the last update, the evaluation, is compiled once more for its own shapes.
    within = [(step, name) for step, name in compilations.seen if step < updates - 1]
    late = [name for step, name in within if step >= settled]
    often = Counter(name for _, name in within)
    return {
        'updates': updates,
        'settled_mb': round(at_first / 1e6, 1),
        'grown_mb': round((at_last - at_first) / 1e6, 1),
        'compiled_late': sorted(set(late)),
        'compiled_often': {name: count for name, count in often.items() if count > 1 and name in OURS},
    }


class Peaks(threading.Thread):
    """Notes the process's peak of memory when a run has written so many lines of metrics, or has ended."""

    def __init__(self, metrics: Path, lines: tuple[int, ...]):
        """Looks from now on.

        Args:
          metrics: metrics.jsonl of the run, a line an update.
          lines: after how many of them.
        """
        super().__init__(daemon=True)
        self._metrics, self._lines, self._ended, self._seen = metrics, lines, threading.Event(), []
        self.start()

    def run(self):
        """Looks at the file until all is noted or the run has ended."""
        while len(self._seen) < len(self._lines) and not self._ended.wait(0.05):
            count = self._metrics.read_bytes().count(b'\n') if self._metrics.exists() else 0
            if count >= self._lines[len(self._seen)]:
                self._seen.append(peak_memory())

    def close(self) -> list[int]:
        """The peaks in bytes; what was not reached in the run is noted now."""
        self._ended.set()
        self.join()
        return [*self._seen, *[peak_memory()] * (len(self._lines) - len(self._seen))]


# What the loops call, by the names that jax gives them.
OURS = ('step', 'estimate', 'minibatch', 'sample', 'mean_over_steps', 'adaptive_coef', 'advance', 'iteration')


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
