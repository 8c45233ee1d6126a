"""A disk that fills while a run saves: one line, exit code 2, and the same command ends the run when there is room."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rlax_ft.errors import InputError
from rlax_ft.harness.run import open_run
from rlax_ft.harness.settings import RunSettings

ROOT = Path(__file__).parents[2]
FLAGS = ['--task=reviews', '--model=tiny', '--demonstrations=64', '--batch_size=8', '--max_steps=4', '--save_every=2']


def run(folder, largest=resource.RLIM_INFINITY):
    """Runs sft.py, which can write no file larger than so many bytes: the system then says what a full disk says."""
    command = [sys.executable, str(ROOT / 'experiments/sft.py'), *FLAGS, f'--out={folder}', '--report_to=']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    if largest > 0:  # What it compiles is cut off, too, and must not stay for others.
        environment['XDG_CACHE_HOME'] = str(folder.parent / 'cache')
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))  # noqa: E731
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, preexec_fn=limit, cwd=folder.parent
    )


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    full = run(tmp_path / 'run', largest=20_000)
    assert full.returncode == 2, full.stderr
    lines = [line for line in re.split('[\r\n]+', full.stderr) if line and not line.startswith('sft: ')]
    assert len(lines) == 1, lines
    (line,) = lines
    assert line.startswith('error: ') and 'File too large' in line and 'the same command resumes' in line
    assert not (tmp_path / 'run/summary.json').exists()
    again = run(tmp_path / 'run')
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / 'run/summary.json').read_text())['steps'] == 4
    lines = [json.loads(line)['step'] for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
    assert lines == [1, 2, 3, 4]


def test_a_folder_that_cannot_be_written_is_one_line():
    with pytest.raises(InputError, match=r'--out=/proc/nothing: cannot be written \(.*\); give another folder'):
        open_run(RunSettings(out='/proc/nothing'), 'x')
