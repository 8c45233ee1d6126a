"""The control benchmark runs, at toy size, and writes its records."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'experiments/benchmarks/control.py'


@pytest.mark.slow
def test_benchmark_writes_records(tmp_path):
    pytest.importorskip('torch', reason='the CleanRL-like peer is written in PyTorch')
    file = tmp_path / 'control.json'
    command = [sys.executable, SCRIPT, '--total_steps=512', '--rounds=1', '--num_seeds=2', f'--json={file}']
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    records = json.loads(file.read_text())
    assert len(records) == 3
    for record in records:
        assert record['unit'] == 'steps/s' and record['ratio'] == pytest.approx(record['ours'] / record['peer'])
