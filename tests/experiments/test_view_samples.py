"""The viewer of samples: plain text in a pipe, keys in a terminal."""

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'experiments/view_samples.py'


@pytest.fixture
def runs(tmp_path):
    for run, sign in (('one', 1), ('two', -1)):
        (tmp_path / run).mkdir()
        samples = [
            {
                'prompt': f'prompt {i}',
                'completion': f'{run} says {i}',
                'reward': sign * (i - 0.5),
                'tokens': [run, f' says {i}'],
                'logps': [-0.1, -3.0],
                'advantages': [0.5, -0.5],
            }
            for i in range(3)
        ]
        (tmp_path / run / 'samples.jsonl').write_text('\n'.join(map(json.dumps, samples)) + '\n')
    return [str(tmp_path / 'one'), str(tmp_path / 'two')]


def view(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=120)


def test_a_pipe_gets_plain_text(runs):
    done = view(runs[0], '--where=reward<0')
    assert done.returncode == 0 and '\x1b' not in done.stdout, done.stderr
    assert '=== 1 of 1 ===' in done.stdout and 'one says 0' in done.stdout and 'one says 1' not in done.stdout
    assert "'one'                -0.100      0.500" in done.stdout
    both = view(*runs, '--where=says 2').stdout
    assert both.index('one says 2') < both.index('two says 2') and '=== 1 of 1 ===' in both


@pytest.mark.parametrize(
    'arguments, match',
    [
        (['--where=gold<0'], "no sample has a number 'gold'; found reward"),
        (['--where=nothing of the kind'], 'none of 3 samples'),
        (['more', 'runs'], '3 runs; one is shown, or two are compared'),
    ],
)
def test_a_mistake_is_one_line(runs, arguments, match):
    done = view(runs[0], *arguments)
    assert done.returncode == 2 and match in done.stderr and done.stderr.count('\n') == 1


def test_a_terminal_gets_colours_and_keys(runs):
    pty = pytest.importorskip('pty', reason='pseudo-terminals are POSIX')
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {'COLUMNS': '80', 'LINES': '24', 'TERM': 'xterm-256color'}
        os.execv(sys.executable, [sys.executable, str(SCRIPT), *runs])
    screens = []
    # What is pressed once the screen shows what it should.
    for shown, keys in (('1/3', 'n'), ('2/3', 'c'), ('[advantage]', '/reward<0\n'), ('where reward<0', 'q')):
        seen, until = '', time.monotonic() + 60
        while shown not in seen or 'quit' not in seen:
            assert time.monotonic() < until and select.select([terminal], [], [], 60)[0], seen
            seen += os.read(terminal, 65536).decode(errors='replace')
        screens.append(seen)
        os.write(terminal, keys.encode())
    rest = b''
    try:
        while select.select([terminal], [], [], 20)[0] and (part := os.read(terminal, 65536)):
            rest += part
    except OSError:  # The terminal is closed.
        pass
    assert os.waitpid(child, 0)[1] == 0
    assert '\x1b[38;5;16;48;5;215m says 0' in screens[0]  # -3 nats, by log-probability.
    assert 'one says 1' in screens[1].replace('\x1b[0m', '').replace('\x1b[38;5;16;48;5;215m', '')
    assert '\x1b[38;5;16;48;5;203mtwo' in screens[2] and b'\x1b[?1049l' in rest
