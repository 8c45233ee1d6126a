"""Times two programs in turn: each is a process of its own that does its work once whenever it is told to.

A worker calls `serve(work)`; whoever measures calls `race([command, ...])`. Taking turns means that what else the
machine does falls on both alike; a warm-up is not counted, and the median of the rounds is taken.

A worker may run in an interpreter that has a peer and not this package: `race` shows it the package, and this file
needs the standard library only.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path


def serve(work: Callable[[], dict | None]) -> None:
    """Runs `work` once for each line of standard input, and answers with its seconds and whatever it returned."""
    turns = Turns()
    while turns.wait():
        turns.done(**(work() or {}))


class Turns:
    """A worker's side of the race, for work that cannot be called: `wait` for a turn, and say that it is `done`."""

    def __init__(self):
        """Keeps standard output for answers; whatever libraries print goes to standard error."""
        self._answers, sys.stdout = sys.stdout, sys.stderr

    def wait(self) -> bool:
        """Waits for the next turn, and starts the clock; False when there is none."""
        told = bool(sys.stdin.readline())
        self._started = time.perf_counter()
        return told

    def done(self, **extra) -> None:
        """Stops the clock and answers with the seconds and what else there is to say."""
        print(json.dumps({'seconds': time.perf_counter() - self._started, **extra}), file=self._answers, flush=True)


def race(commands: Sequence[Sequence[str]], *, rounds: int, warmup: int = 1) -> list[dict]:
    """Each command's median seconds over rounds in which the commands take turns.

    Args:
      commands: of the workers.
      rounds: that count.
      warmup: that do not: they hold imports and compilation.

    Returns:
      For each command its last answer, with the medians of `seconds` and of what begins so, and `fastest` the least.

    Raises:
      RuntimeError: a worker stopped.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Of what lies beside the package nothing is shown: an interpreter keeps its own libraries.
        (Path(folder) / 'rlax_ft').symlink_to(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [folder, os.environ.get('PYTHONPATH')]))
        start = partial(subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        workers = [start(command, env=os.environ | {'PYTHONPATH': path}) for command in commands]
        counted: list[list[dict]] = [[] for _ in workers]
        last: list[dict] = [{} for _ in workers]
        try:
            for i in range(warmup + rounds):
                for j, worker in enumerate(workers):
                    last[j] = _turn(worker)
                    if i >= warmup:
                        counted[j].append(last[j])
        finally:
            for worker in workers:
                worker.stdin.close()
                worker.wait()
    return [_summed(answers) for answers in counted]


def _summed(answers):
    """The last answer, with the medians of all that are seconds."""
    medians = {
        name: statistics.median(answer[name] for answer in answers)
        for name in answers[-1]
        if name.startswith('seconds')
    }
    return answers[-1] | medians | {'fastest': min(answer['seconds'] for answer in answers)}


def _turn(worker):
    """Has a worker do its work once; its answer."""
    try:
        worker.stdin.write('\n')
        worker.stdin.flush()
    except BrokenPipeError:  # It has stopped already; its exit code says more than the pipe.
        pass
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f'{" ".join(map(str, worker.args))}: stopped with exit code {worker.wait()}')
    return json.loads(line)


def table(records: Sequence[dict]) -> str:
    """Records as a Markdown table."""
    rows = ['| what | ours | peer | unit | ratio |', '|---|---|---|---|---|']
    for r in records:
        peer, ratio = (f'{r[k]:.3g}' if r[k] is not None else '' for k in ('peer', 'ratio'))
        rows.append(f'| {r["name"]} | {r["ours"]:.3g} | {peer} | {r["unit"]} | {ratio} |')
    return '\n'.join(rows)
