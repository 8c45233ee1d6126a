"""plot_runs.py: folders to a figure and a table, warnings for what is left out, one line for a mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'experiments/plot_runs.py'


@pytest.fixture
def runs(tmp_path):
    for beta in (0.1, 0.4):
        for seed in (0, 1):
            folder = tmp_path / f'b{beta}_s{seed}'
            folder.mkdir()
            (folder / 'flags.txt').write_text(f'--out={folder}\n--seed={seed}\n--beta={beta}\n')
            records = [{'step': s, 'loss': beta + seed, 'kl': 'nan' if s == 1 else 1.0} for s in (1, 2)]
            if beta == 0.1:
                records[-1]['eval/gold'] = 2.0
            (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, records)) + '\n')
    return sorted(str(folder) for folder in tmp_path.glob('b*'))


def plot(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=120)


def test_curves_over_seeds(runs, tmp_path):
    out = tmp_path / 'new/curves.png'
    done = plot(*runs, '--metrics=loss,eval/gold,kl', '--smooth=0.5', f'--out={out}')
    assert done.returncode == 0, done.stderr
    assert out.read_bytes()[:4] == b'\x89PNG'
    table = out.with_suffix('.md').read_text()
    assert table in done.stdout
    assert '| beta=0.1 | 2 | 0.6 (0.1 to 1.1) | 2 (2 to 2) | 1 (1 to 1) |' in table
    assert '| beta=0.4 | 2 | 0.9 (0.4 to 1.4) |  | 1 (1 to 1) |' in table
    assert 'eval/gold: not in beta=0.4' in done.stderr and '2 values of beta=0.1 are no finite numbers' in done.stderr


@pytest.mark.parametrize(
    'arguments, match',
    [
        (['--metrics=los'], 'there are loss'),
        (['--group_by=gamma'], '--group_by=gamma: no run has that flag'),
        (['--smooth=1'], '--smooth=1.0: must be at least 0 and below 1'),
        (['--out=curves.pdf'], 'give curves.png'),
        (['nowhere'], 'give the folder of a run'),
    ],
)
def test_a_mistake_is_one_line(runs, arguments, match):
    done = plot(*runs, *arguments)
    assert done.returncode == 2 and match in done.stderr and done.stderr.count('\n') == 1
