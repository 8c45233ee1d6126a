"""Runs to which something happens, a full disk, a spoilt checkpoint, a folder that goes: one line, and nothing lost.

    python tests/fuzz/faults.py --only=grpo,kto

The cases are those of kills.py. A full disk (no file may grow beyond 8,000 bytes) must end with one line and exit code
2, and the same command then ends as the run that nothing happened to. So must one whose newest checkpoint was spoilt,
with a warning; a folder that is removed under a running script, and one that cannot be made, are one line. Exit code 1
where something else was found.
"""

import argparse
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import kills

SMALL = 8_000


def lines_of(log: Path) -> list[str]:
    """What a script said, but the progress of its loop and what it prints as results."""
    shown = re.split('[\r\n]+', log.read_text())
    return [line for line in shown if re.match('error: |Traceback|[A-Za-z.]*Error', line)]


def ends_in_one_line(process: int, log: Path) -> str:
    """Waits; what is wrong with how it ended, or an empty text where that was one line and exit code 2."""
    _, status = os.waitpid(process, 0)
    lines = lines_of(log)
    if os.waitstatus_to_exitcode(status) != 2 or len(lines) != 1 or not lines[0].startswith('error: '):
        return f'exit code {os.waitstatus_to_exitcode(status)}, {lines or log.read_text()[-300:]}'
    return ''


def full_disk(script, flags, base: Path, out: Path) -> str:
    """What is wrong with a run that finds the disk full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, resource.RLIM_INFINITY))  # The fork inherits it.
    process = kills.start(script, flags, base, out)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return ends_in_one_line(process, out.with_name(out.name + '.log'))


def spoil_newest(out: Path) -> str:
    """Takes the run's end away and cuts all files of its newest checkpoint; returns that checkpoint's name."""
    (out / 'summary.json').unlink()
    steps = sorted((path for path in (out / 'checkpoints').iterdir() if path.name.isdigit()), key=lambda p: int(p.name))
    # One file would not do: orbax leaves some that nobody reads again, as large as the others.
    for path in steps[-1].rglob('*'):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:100])
    return steps[-1].name


def removed(script, flags, base: Path, out: Path) -> str:
    """What is wrong with a run whose folder goes when it has begun."""
    process = kills.start(script, flags, base, out)
    log = out.with_name(out.name + '.log')
    while not any((out / name).exists() for name in ('metrics.jsonl', 'checkpoints')):
        if kills.ended(process, log):
            return ''  # It computes nothing that could be lost.
        time.sleep(0.02)
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    return ends_in_one_line(process, log)


def compare(case: str, base: Path, work: Path) -> dict[str, str]:
    """What is wrong, by fault."""
    script, flags = kills.CASES[case]
    whole, out = work / f'{case}_whole', work / f'{case}_out'
    kills.run_whole(script, flags, base, whole)
    wrong = {'full disk': full_disk(script, flags, base, out)}
    kills.run_whole(script, flags, base, out)
    wrong['full disk, then room'] = ', '.join(kills.differences(whole, out))
    if any(path.name.isdigit() for path in (out / 'checkpoints').glob('*')):
        name = spoil_newest(out)
        kills.run_whole(script, flags, base, out)
        said = f'/{name}: cannot be read' in out.with_name(out.name + '.log').read_text()
        shutil.rmtree(next((out / 'checkpoints').glob('broken-*')), ignore_errors=True)
        different = kills.differences(whole, out) + ([] if said else ['no warning'])
        wrong['spoilt checkpoint'] = ', '.join(different)
    wrong['removed folder'] = removed(script, flags, base, work / f'{case}_removed')
    log = work / 'nothing.log'
    wrong['no folder to be made'] = in_proc(script, flags, base, log)
    for name, what in wrong.items():
        print(f'{case:16} {name:22} {what or "as it should be"}', flush=True)
    return {f'{case}, {name}': what for name, what in wrong.items() if what}


def in_proc(script, flags, base: Path, log: Path) -> str:
    """What is wrong with a run whose folder cannot be made."""
    process = kills.start(script, flags, base, Path('/proc/nothing'), log)
    return ends_in_one_line(process, log)


def main() -> int:
    """Runs all cases; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', default=','.join(kills.CASES), help='cases of kills.py, with commas between')
    parser.add_argument('--work', default='', help='folder that keeps what cases start from, for the next call')
    given = parser.parse_args()
    cases, wrong = given.only.split(','), {}
    with tempfile.TemporaryDirectory() as folder:
        work, kept = Path(folder), Path(given.work or folder)
        (kept / 'base').mkdir(parents=True, exist_ok=True)
        kills.prepare(kept / 'cache')
        kills.make_bases(cases, kept / 'base')
        for case in cases:
            wrong |= compare(case, kept / 'base', work)
    print(json.dumps(wrong, indent=2) if wrong else f'{len(cases)} cases: one line each, nothing lost')
    return bool(wrong)


if __name__ == '__main__':
    sys.exit(main())
