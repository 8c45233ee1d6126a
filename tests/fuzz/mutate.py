"""Mutated inputs, thousands of them, and what each did: fine, one line, or something that no user should see.

    python tests/fuzz/mutate.py --kind=records,templates,folders --count=1000 --seed=0

A kind is a file of this folder with a function `mutation(rng, workdir)`: it makes one mutated input in the empty folder
`workdir`, has the package read it, and raises what the package raises. It may return an outcome of its own, such as
`wrong`, with a colon and details behind it. `workdir.parent / 'outside'` is what nothing may touch (PLANTED).

Each kind runs in a process of its own, which is watched: `hang` is more than 10 seconds, `memory` more than 1 GiB.
--record puts the counts into experiments/benchmarks/RESULTS.md, a row for each kind and seed.
"""

import argparse
import collections
import contextlib
import importlib.util
import json
import logging
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parents[1] / 'experiments/benchmarks/RESULTS.md'
TITLE = 'Mutated inputs'
HEAD = '| kind | seed | inputs | fine | one line | anything else |\n|---|---|---|---|---|---|\n'
SECONDS, BYTES = 10.0, 2**30
GOOD = ('fine', 'one line')
PLANTED = 1_000_000.0


def kinds() -> list[str]:
    """The kinds that there are."""
    return sorted(path.stem for path in HERE.glob('*.py') if 'def mutation(' in path.read_text())


def attempt(kind: str, seed: int, number: int, folder: Path) -> str:
    """The outcome of one mutation, with details behind a colon where it is not good."""
    workdir, outside = folder / 'inside', folder / 'outside'
    shutil.rmtree(workdir, ignore_errors=True)
    for path in (workdir, outside):
        path.mkdir(parents=True, exist_ok=True)
    from rlax_ft.errors import InputError

    before, written = _held_from_now(), _times(outside)
    try:
        outcome = _mutation(kind)(random.Random(f'{kind} {seed} {number}'), workdir) or 'fine'
    except InputError as error:
        outcome = 'one line' if '\n' not in str(error) and str(error).strip() else f'several lines: {error!r}'
    except Exception:
        lines = [line.strip() for line in traceback.format_exc().splitlines() if line.strip(' ^~')]
        outcome = 'traceback: ' + ' | '.join(lines[-5:])
    if _peak() - before > BYTES:
        return f'memory: {outcome}'
    return outcome if _times(outside) == written else f'outside: {outcome}'


def run(kind: str, count: int, seed: int = 0, start: int = 0) -> tuple[collections.Counter, list[tuple[int, str]]]:
    """(how often each outcome, the numbers and outcomes that are not good), the mutations in a process of their own."""
    outcomes, bad, number = collections.Counter(), [], start
    while number < start + count:
        command = [sys.executable, __file__, '--worker', f'--kind={kind}', f'--seed={seed}']
        command += [f'--start={number}', f'--count={start + count - number}']
        environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(HERE.parents[1])}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as worker:
            limit = 120.0  # The first answer comes after imports.
            while number < start + count:
                line = worker.stdout.readline() if select.select([worker.stdout], [], [], limit)[0] else None
                outcome = json.loads(line) if line else 'hang' if line is None else 'the process died'
                limit, name = SECONDS + 2.0, outcome.partition(':')[0]
                if name != 'ready':
                    outcomes[name] += 1
                    bad += [] if name in GOOD else [(number, outcome)]
                    number += 1
                if not line:
                    worker.kill()
                    break
    return outcomes, bad


def work(kind: str, count: int, seed: int, start: int) -> None:
    """Prints the outcome of each mutation."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter('ignore')
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        _mutation(kind)
        attempt(kind, seed, start, Path(folder) / 'first')  # What a first time imports and compiles.
        print(json.dumps('ready'), file=answers, flush=True)
        for number in range(start, start + count):
            print(json.dumps(attempt(kind, seed, number, Path(folder))), file=answers, flush=True)


def _mutation(kind):
    name = f'fuzz_{kind}'
    if name not in sys.modules:
        if str(HERE) not in sys.path:
            sys.path.insert(0, str(HERE))
        spec = importlib.util.spec_from_file_location(name, HERE / f'{kind}.py')
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name].mutation


def _held_from_now():
    """Bytes that this process holds; what it held before no longer counts as its peak, where the system can forget."""
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')
    return _peak()


def _peak():
    """Most bytes that this process has held."""
    with contextlib.suppress(OSError):
        lines = Path('/proc/self/status').read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM:')) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _times(folder):
    """What would change by writing there; a mutation marks what it puts there by `PLANTED` as its time."""
    times = {str(path): path.stat().st_mtime for path in sorted(folder.rglob('*'))}
    return {path: time for path, time in times.items() if time != PLANTED}


def write_down(kind: str, seed: int, outcomes: collections.Counter) -> None:
    """Puts a row into RESULTS.md, beside those of other kinds and seeds that stand there."""
    sys.path.insert(0, str(HERE.parents[1]))
    from rlax_ft.harness.results import record

    section = RESULTS.read_text().partition(f'\n## {TITLE}\n')[2].partition('\n## ')[0]
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in section.splitlines() if line[:1] == '|']
    rows = {(cell[0], int(cell[1])): cell for cell in cells if cell[1].isdigit()}
    good = [outcomes[name] for name in GOOD]
    counts = [outcomes.total(), *good, outcomes.total() - sum(good)]
    rows[kind, seed] = [kind, str(seed), *(f'{count:,}' for count in counts)]
    total = sum(int(cell[2].replace(',', '')) for cell in rows.values())
    table = ''.join('| ' + ' | '.join(rows[key]) + ' |\n' for key in sorted(rows))
    record(
        TITLE,
        f'{total:,} inputs, each fine, one line, or anything else (a traceback, hang ...).\n\n{HEAD}{table}',
        RESULTS,
    )


def main() -> int:
    """Runs what the flags say, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kind', default=','.join(kinds()), help='kinds with commas between them; all when absent')
    parser.add_argument('--count', type=int, default=100, help='mutations of each kind')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--start', type=int, default=0, help='number of the first mutation')
    parser.add_argument('--record', action='store_true', help='write the counts into RESULTS.md')
    parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.kind, given.count, given.seed, given.start)
        return 0
    failed = False
    for kind in given.kind.split(','):
        if kind not in kinds():
            print(f'--kind={kind}: no such kind; there are {", ".join(kinds())}', file=sys.stderr)
            return 2
        outcomes, bad = run(kind, given.count, given.seed, given.start)
        print(f'{kind:<16}' + '  '.join(f'{name} {count:,}' for name, count in outcomes.most_common()), flush=True)
        for number, outcome in bad[:20]:
            print(f'    --kind={kind} --seed={given.seed} --start={number} --count=1: {outcome[:600]}', flush=True)
        failed |= bool(bad)
        if given.record:
            write_down(kind, given.seed, outcomes)
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
