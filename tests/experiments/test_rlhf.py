"""The main job, tiny: killed in the middle it goes on, ends with a whole report, and a third run has nothing to do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ['--model=tiny', '--max_steps=4', '--comparisons=24', '--eval_prompts=40', '--pool=64', '--best_of=2']
TINY += ['--methods=ppo,dpo_guided,dpo_ranking', '--num_seeds=2']
TRAINED = [f'{method}_{seed}' for method in ('ppo', 'dpo_guided', 'dpo_ranking') for seed in (0, 1)]


def start(out):
    environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'} | {'XDG_CACHE_HOME': str(out.parent)}
    command = [sys.executable, 'experiments/rlhf.py', f'--out={out}', *TINY]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run that was killed as PPO began, and then ended; with the output of the run that ended it."""
    out = tmp_path_factory.mktemp('rlhf') / 'run'
    process = start(out)
    deadline = time.time() + 240
    while not (out / 'ppo_0/metrics.jsonl').exists():
        assert process.poll() is None and time.time() < deadline, process.stdout.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / 'summary.json').exists()
    before = {stage: (out / stage / 'summary.json').stat().st_mtime_ns for stage in ('sft', 'feedback', 'reward_model')}
    process = start(out)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return out, before, output


def test_finished_stages_are_not_done_again(finished):
    out, before, _ = finished
    for stage, written in before.items():
        assert (out / stage / 'summary.json').stat().st_mtime_ns == written


def test_summary(finished):
    summary = json.loads((finished[0] / 'summary.json').read_text())
    policies = {p['name']: p for p in summary['policies']}
    assert list(policies) == ['sft', 'best_of_n', 'ppo', 'dpo_guided', 'dpo_ranking']
    for policy in policies.values():
        assert {'gold', 'score', 'kl', 'length', 'ungrammatical', 'win_rate'} <= policy.keys()
        assert 0 <= policy['win_rate_low'] <= policy['win_rate'] <= policy['win_rate_high'] <= 1
        assert policy['gold_low'] <= policy['gold'] <= policy['gold_high']
    assert all(len(policies[name]['seeds']) == 2 for name in ('ppo', 'dpo_guided', 'dpo_ranking'))
    assert policies['sft']['win_rate'] == 0.5 and abs(policies['sft']['kl']) < 1e-3
    assert {'reward_model_correlation', 'seconds'} <= summary.keys()


def test_report_and_figure(finished):
    out, _, output = finished
    report = (out / 'report.md').read_text()
    for title in ('SFT', 'best of n (n = 2)', 'PPO', 'DPO with soft labels', 'DPO on rankings'):
        assert f'| {title} |' in report and f'| {title} |' in output
    assert '## The same prompts before and after' in report and '![gold reward against KL](frontier.png)' in report
    assert (out / 'frontier.png').read_bytes()[:4] == b'\x89PNG'
    for stage in ('sft', 'reward_model', *TRAINED):
        assert (out / stage / 'model/model.safetensors').exists()


def test_a_third_run_ends_at_once_and_changes_nothing(finished):
    out = finished[0]
    before = (out / 'summary.json').stat().st_mtime_ns
    process = start(out)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and 'this run has ended' in output
    assert (out / 'summary.json').stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--methods=ppo,sac'], "error: --methods=ppo,sac: 'sac': use some of ppo, dpo, dpo_guided, dpo_ranking"),
        (['--methods=dpo,dpo'], "error: --methods=dpo,dpo: 'dpo': stands there twice"),
        (['--methods=ppo', '--beta=0.2'], 'error: --beta=0.2: has no effect without dpo in --methods=ppo'),
    ],
)
def test_methods_that_are_none_and_flags_of_none(flags, message, tmp_path):
    command = [sys.executable, 'experiments/rlhf.py', f'--out={tmp_path / "run"}', *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.strip() == message and not (tmp_path / 'run').exists()
