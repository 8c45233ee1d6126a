"""Unit tests of Python programs that a model wrote, each program in a process of its own (sandbox.py).

The process has limits of time and memory, an empty folder, no environment variables, no network, and starts no other
process. It runs as the same user and can read files: who trains on programs of strangers runs all of this in a
container. Leaves out other languages.
"""

import concurrent.futures
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile

from rlax_ft.data.records import plain_text
from rlax_ft.errors import InputError
from rlax_ft.rewards import sandbox
from rlax_ft.rewards.fields import field_of

_BLOCK = re.compile(r'```[ \t]*(?:python3?|py)?[ \t]*\r?\n(.*?)(?:```|\Z)', re.DOTALL | re.IGNORECASE)
# What a program may take beyond its limit to start, before it is killed from outside.
_START_SECONDS = 10.0


def code(
    records,
    completions,
    *,
    tests='tests',
    entry_point='entry_point',
    before='',
    partial=False,
    seconds=5.0,
    memory_mb=1024,
    network=False,
    workers=0,
    **_,
):
    """1 where the program passes all its tests, else 0; the share of tests that it passes, if `partial`.

    The program is the last fenced block of the completion, or all of it. Tests are, in the record's field: a text of
    Python that runs behind the program (with HumanEval's `check(candidate)`, which is called); a list of such texts,
    a test each (MBPP); a list of {"input", "output"}, what the program reads and prints, or arguments and result of the
    entry point where the input is a list; or {"inputs": [..], "outputs": [..]} (APPS). Text of JSON is
    read as such.

    Args:
      records: with the tests.
      completions: texts.
      tests: the field with the tests.
      entry_point: the field with the name of the function that they call.
      before: a field whose text stands before the program, such as imports; empty for none.
      partial: give the share of tests passed.
      seconds: for all tests of a program.
      memory_mb: of address space.
      network: let programs use it, and start processes; also for systems on which it cannot be shut off.
      workers: programs at a time; 0: one a core.

    Raises:
      InputError: a record without tests, or a system without a way to shut the network off.
    """
    if seconds <= 0 or memory_mb < 64:
        raise InputError(f'code(seconds={seconds}, memory_mb={memory_mb}): give seconds above 0 and 64 MB or more')
    jobs = []
    for record, text in zip(records, completions):
        start = plain_text(field_of(record, before)) + '\n' if before else ''
        inner = _read(record, tests)
        name = record.get(entry_point) or (inner.get('fn_name') if isinstance(inner, dict) else '') or ''
        jobs.append((start + program_of(text), tests_of(record, tests, str(name)), str(name)))
    how = dict(seconds=seconds, memory_mb=memory_mb, network=network)
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        passed = list(pool.map(lambda job: run_tests(*job, **how), jobs))
    return [sum(some) / len(some) if partial else float(all(some)) for some in passed]


def program_of(text: str) -> str:
    """The last fenced block of Python in a text, or the text itself."""
    blocks = _BLOCK.findall(text)
    return blocks[-1] if blocks else text


def tests_of(record: dict, field: str, entry_point: str = '') -> list[list]:
    """A record's tests as [kind, ...]: ['run', source], ['print', input, output] or ['call', arguments, result].

    Args:
      record: with the tests.
      field: that holds them.
      entry_point: the function that a list of arguments is for; without one it is a list of lines.

    Raises:
      InputError: there are none, or they have another form.
    """
    value, given = _read(record, field), record[field]
    if isinstance(value, dict) and isinstance(value.get('inputs'), list) and isinstance(value.get('outputs'), list):
        if len(value['inputs']) != len(value['outputs']):
            raise InputError(f'field "{field}" has {len(value["inputs"])} inputs and {len(value["outputs"])} outputs')
        value = [{'input': i, 'output': o} for i, o in zip(value['inputs'], value['outputs'])]
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not value or not all(map(_is_test, value)):
        raise InputError(
            f'field "{field}" is {str(given)[:60]!r}; a text of asserts, a list of such texts, or a list of '
            '{"input", "output"} was expected'
        )
    kinds = []
    for test in value:
        if isinstance(test, str):
            kinds.append(['run', test])
        else:
            kinds.append(
                ['call' if entry_point and isinstance(test['input'], list) else 'print', test['input'], test['output']]
            )
    return kinds


def run_tests(
    program: str, tests: list[list], entry_point: str = '', *, seconds: float, memory_mb: int, network: bool = False
) -> list[bool]:
    """Which tests a program passes, in a process of its own; those that it did not come to count as failed.

    Raises:
      InputError: the network cannot be shut off.
    """
    # A verdict counts only with a token that the program does not see: ending the process early passes nothing.
    token = secrets.token_hex(16)
    job: dict[str, object] = {'program': program, 'tests': tests, 'entry_point': entry_point, 'token': token}
    job |= {'seconds': seconds, 'memory_mb': memory_mb, 'network': network}
    with tempfile.TemporaryDirectory(prefix='tests-') as folder, tempfile.TemporaryFile() as verdicts:
        process = subprocess.Popen(
            [sys.executable, '-I', sandbox.__file__],
            stdin=subprocess.PIPE,
            stdout=verdicts,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={'HOME': folder, 'TMPDIR': folder, 'OPENBLAS_NUM_THREADS': '1', 'OMP_NUM_THREADS': '1'},
            start_new_session=True,
        )
        try:
            process.communicate(json.dumps(job).encode('utf-8', 'surrogatepass'), timeout=seconds + _START_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _kill(process)
        if process.returncode == sandbox.NO_BARRIER:
            raise InputError(
                'code: the network cannot be shut off on this system (that takes Linux on x86-64 or arm64, with '
                'seccomp); code(network=True) runs programs without that barrier'
            )
        verdicts.seek(0)
        lines = verdicts.read().decode('utf-8', 'replace').split('\n')
    passed = {line for line in lines if line.startswith(token)}
    return [f'{token} {i}' in passed for i in range(len(tests))]


def _read(record, field):
    """The field, its text read as JSON where it is JSON."""
    value = field_of(record, field)
    try:
        return json.loads(value) if isinstance(value, str) and value.lstrip()[:1] in ('[', '{') else value
    except ValueError:
        return value  # Python that begins with a list.


def _is_test(test):
    return isinstance(test, str) or (isinstance(test, dict) and {'input', 'output'} <= test.keys())


def _kill(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
