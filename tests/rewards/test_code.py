"""Programs against their tests: what passes, and what no program can do."""

import platform
import sys
import time

import pytest

from rlax_ft.errors import InputError
from rlax_ft.rewards.code import code, program_of

LINUX = sys.platform == 'linux' and platform.machine() in ('x86_64', 'aarch64')
pytestmark = pytest.mark.skipif(not LINUX, reason='the sandbox needs Linux on x86-64 or arm64')
ADD = 'def add(a, b):\n    return a + b\n'
ASSERTS = ['assert add(1, 2) == 3', 'assert add(2, 2) == 5']


def test_every_form_of_tests():
    human_eval = {'tests': 'def check(candidate):\n    assert candidate(1, 2) == 3', 'entry_point': 'add'}
    printed = {'tests': [{'input': '1 2\n', 'output': '3'}, {'input': '5 5', 'output': '10\n'}]}
    called = {'tests': '{"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}'}
    reads = 'a, b = map(int, input().split())\nprint(a + b)'
    records = [{'tests': ASSERTS[0]}, {'tests': ASSERTS}, human_eval, printed, called, human_eval]
    programs = [ADD, f'Here it is:\n```python\n{ADD}```\n', ADD, reads, ADD, 'def sub(a, b):\n    return 1']
    assert code(records, programs) == [1.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    assert code(records[1:2], programs[1:2], partial=True) == [0.5]
    body = {'prompt': 'def add(a, b):', 'test': human_eval['tests'], 'entry_point': 'add'}
    assert code([body], ['    return a + b'], tests='test', before='prompt') == [1.0]
    assert program_of('```py\nfirst\n```\nthen\n```\nsecond') == 'second'
    for wrong in ({}, {'tests': []}, {'tests': 3}, {'tests': {'inputs': [1], 'outputs': []}}):
        with pytest.raises(InputError, match='field "tests"'):
            code([wrong], ['x'])


PASSES = {'tests': ['assert f()', 'pass']}
HARMFUL = {
    'loops': 'while True: pass',
    'catches its alarm': 'import signal\nsignal.signal(14, lambda *_: None)\nwhile True: pass',
    'sleeps': 'import time\ntime.sleep(60)',
    'takes memory': 'x = bytearray(2 << 30)\nf = lambda: True',
    'leaves': 'import sys\nsys.exit(0)',
    'leaves at once': 'import os\nos._exit(0)',
    'network': 'import socket\nsocket.socket()\nf = lambda: True',
    'shell': 'import subprocess\nsubprocess.run(["true"])\nf = lambda: True',
    'forks': 'import os\nos.fork()\nf = lambda: True',
    'kills': 'import os\nos.kill(os.getppid(), 0)\nf = lambda: True',
    'is no Python': 'def f(:',
    'raises': 'raise SystemError',
}


def test_no_program_gets_away_with_it():
    start = time.monotonic()
    assert code([PASSES] * len(HARMFUL), list(HARMFUL.values()), seconds=1.0) == [0.0] * len(HARMFUL)
    assert time.monotonic() - start < 60
    # The same limits let an ordinary program through, threads and its own files included.
    fine = 'import threading\nt = threading.Thread(target=lambda: open("a", "w").write("x"))\nt.start()\nt.join()\n'
    assert code([PASSES], [fine + 'f = lambda: open("a").read() == "x"'], seconds=20.0) == [1.0]
