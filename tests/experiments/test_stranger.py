"""A script copied elsewhere runs, beside whatever its new folder holds; a signal ends a run with a checkpoint."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(folder):
    own = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    return own | {'XDG_CACHE_HOME': str(folder), 'PYTHONPATH': str(ROOT)}


def test_a_copy_of_a_script_runs_beside_files_of_ones_own(tmp_path):
    shutil.copy(ROOT / 'experiments/dpo.py', tmp_path / 'dpo.py')
    for name in ('settings', 'run', 'evaluation', 'learner', 'reference', 'collect'):
        (tmp_path / f'{name}.py').write_text('raise RuntimeError("this file is the user\'s own")\n')
    pairs = [{'prompt': f'{i}?', 'chosen': f' {i}.', 'rejected': ' No.', 'note': i} for i in range(20)]
    (tmp_path / 'pairs.jsonl').write_text(''.join(json.dumps(pair) + '\n' for pair in pairs))
    small = ['--max_prompt_tokens=16', '--max_new_tokens=16', '--tokenizer=bytes', '--model=tiny', '--batch_size=6']
    command = [sys.executable, 'dpo.py', '--data=pairs.jsonl', '--max_steps=1', *small]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert 'Traceback' not in result.stderr
    samples = [json.loads(line) for line in (tmp_path / 'runs/dpo/samples.jsonl').read_text().splitlines()]
    assert samples and {'step', 'prompt', 'completion', 'kl', 'length'} <= samples[0].keys()
    summary = json.loads((tmp_path / 'runs/dpo/summary.json').read_text())
    assert summary['steps'] == 1 and {'kl', 'length', 'eval_accuracy'} <= summary.keys()


def test_a_signal_ends_a_run_with_a_checkpoint_and_one_line(tmp_path):
    flags = ['--task=reviews', '--model=tiny', '--demonstrations=200', '--batch_size=16', '--max_steps=100000']
    command = [sys.executable, str(ROOT / 'experiments/sft.py'), *flags, '--out=run']
    how = dict(cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, **how)
    metrics, deadline = tmp_path / 'run/metrics.jsonl', time.time() + 240
    while not metrics.exists() or metrics.read_text().count('\n') < 3:
        assert process.poll() is None and time.time() < deadline, process.stderr.read()
        time.sleep(0.05)
    # A second process may not write there meanwhile.
    second = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=120
    )
    assert second.returncode == 2 and 'another process is writing there' in second.stderr
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    last = errors.strip().splitlines()[-1]
    assert 'is saved; the same command resumes' in last and 'Traceback' not in errors
    step = max(int(path.name) for path in (tmp_path / 'run/checkpoints').iterdir() if path.name.isdigit())
    assert f'stopped after step {step}' in last
    assert json.loads(metrics.read_text().splitlines()[-1])['step'] == step
