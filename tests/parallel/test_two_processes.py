"""Two real processes run every script as one device does: sampling, host rewards, evaluation, export, and a stop."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlax_ft.harness.starting_model import checkpoint_params
from rlax_ft.hf.folder import load_pretrained

ROOT = Path(__file__).parents[2]

# One process runs all stages, so that jax starts once.
DRIVER = """
import sys
import typing
from pathlib import Path
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.loading import load_script
root, *stages = sys.argv[1:]
for stage in stages:
    script, *flags = stage.split()
    module = load_script(Path(root) / f'experiments/{script}.py')
    sys.argv = [script, *flags]
    main = getattr(module, 'train', None) or module.collect
    run_script(typing.get_type_hints(main)['settings'], main)
"""

REWARD = """
def short(records, completions, **info):
    return [1.0 - 0.1 * len(text) for text in completions]


def rank(records, candidates):
    return [{'ranks': [sorted(texts).index(text) for text in texts]} for texts in candidates]
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('two')
    words = ['red', 'blue', 'green', 'grey']
    rows = [{'prompt': f'say {w} {i}', 'chosen': w, 'rejected': 'no'} for i, w in enumerate(words * 6)]
    write = lambda name, records: (folder / name).write_text(''.join(json.dumps(r) + '\n' for r in records))  # noqa: E731
    write('pairs.jsonl', rows)
    write('demonstrations.jsonl', [{'prompt': r['prompt'], 'completion': r['chosen']} for r in rows])
    write('prompts.jsonl', [{'prompt': r['prompt']} for r in rows])
    (folder / 'reward.py').write_text(REWARD)
    (folder / 'driver.py').write_text(DRIVER)
    return folder


def stages(folder, out):
    same = '--report_to= --batch_size=8 --eval_prompts=4 --max_steps=2 --max_new_tokens=8 --max_prompt_tokens=16'
    return [
        f'sft {same} --model=tiny --tokenizer=bytes --data={folder}/demonstrations.jsonl --learning_rate=1e-3 '
        f'--out={out}/sft',
        f'dpo {same} --init_from={out}/sft --data={folder}/pairs.jsonl --learning_rate=1e-4 --out={out}/dpo',
        f'ppo {same} --init_from={out}/sft --data={folder}/prompts.jsonl --reward={folder}/reward.py:short '
        f'--learning_rate=1e-4 --update_epochs=2 --out={out}/ppo',
        f'grpo {same} --init_from={out}/sft --data={folder}/prompts.jsonl --reward={folder}/reward.py:short '
        f'--group_size=2 --beta=0.05 --sample_every=1 --learning_rate=1e-4 --out={out}/grpo',
        f'reward_model {same.replace("--eval_prompts=4 ", "")} --init_from={out}/sft --data={folder}/pairs.jsonl '
        f'--learning_rate=1e-4 --out={out}/reward_model',
    ]


def more_stages(folder, out):
    same = '--report_to= --batch_size=8 --max_steps=2 --max_new_tokens=8 --max_prompt_tokens=16 --learning_rate=1e-4'
    policy = f'{same} --eval_prompts=4 --init_from={out}/sft'
    return [
        stages(folder, out)[0],
        stages(folder, out)[-1],
        f'kto {policy} --data={folder}/pairs.jsonl --out={out}/kto',
        f'online_dpo {policy} --data={folder}/prompts.jsonl --reward={out}/reward_model --sync_reference=1 '
        f'--out={out}/online_dpo',
        f'distill {policy} --data={folder}/demonstrations.jsonl --teacher={out}/sft --on_policy_share=0.5 '
        f'--out={out}/distill',
        f'collect --init_from={out}/sft --data={folder}/prompts.jsonl --annotator={folder}/reward.py:rank '
        f'--comparisons=8 --max_new_tokens=8 --max_prompt_tokens=16 --out={out}/collect',
        f'ppo_env --report_to= --env=CartPole-v1 --num_envs=8 --num_steps=16 --total_steps=512 --eval_episodes=4 '
        f'--num_seeds=4 --log_every=2 --out={out}/ppo_env',
    ]


def start(folder, commands, *, processes, devices, extra=()):
    """A run of `processes`, each with `devices` of its own, started as a user would."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': ''}
    environment.pop('JAX_PLATFORMS', None)
    launcher = [str(ROOT / 'launch/local.py'), f'--processes={processes}', f'--devices={devices}', *extra, '--']
    return subprocess.Popen(
        [sys.executable, *launcher, str(folder / 'driver.py'), str(ROOT), *commands],
        stdout=open(folder / 'log.txt', 'w'),
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=folder,
    )


def end(folder, process):
    """(exit code, what was printed) of a run."""
    code = process.wait(timeout=600)
    return code, (folder / 'log.txt').read_text()


def metrics(path):
    return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def run_both(folder, make):
    """Runs the stages in `folder / 'one'` on one device, and in `folder / 'two'` on two processes."""
    for out, processes, devices, mesh in (('one', 1, 1, ''), ('two', 2, 2, ' --mesh=data=2,fsdp=2')):
        commands = [
            stage + ('' if stage.startswith(('collect', 'ppo_env')) else mesh) for stage in make(folder, folder / out)
        ]
        process = start(folder, commands, processes=processes, devices=devices)
        code, text = end(folder, process)
        assert code == 0, text[-3000:]


def same_models(folder, names):
    for name in names:
        one, two = (load_file(folder / out / name / 'model/model.safetensors') for out in ('one', 'two'))
        for key in one:
            np.testing.assert_allclose(two[key], one[key], atol=1e-5, err_msg=f'{name} {key}')
        for a, b in zip(metrics(folder / 'one' / name), metrics(folder / 'two' / name), strict=True):
            np.testing.assert_allclose(b['loss'], a['loss'], rtol=1e-4, atol=1e-6)
        files = [{p.name for p in (folder / out / name).iterdir()} - {'.lock'} for out in ('one', 'two')]
        # Log-probabilities of the reference are kept where one process has made them.
        assert files[1] == {file for file in files[0] if not file.startswith('reference-')}


def test_two_processes_are_one_device(folder):
    run_both(folder, stages)
    same_models(folder, ('sft', 'dpo', 'ppo', 'grpo', 'reward_model'))
    samples = [(folder / out / 'ppo/samples.jsonl').read_text() for out in ('one', 'two')]
    texts = [re.findall(r'"completion": "[^"]*"', text) for text in samples]
    assert texts[0] == texts[1] and len(texts[0]) == 2
    groups = [(folder / out / 'grpo/samples.jsonl').read_text().splitlines() for out in ('one', 'two')]
    rows = [[json.loads(line) for line in lines] for lines in groups]
    assert len(rows[0]) == len(rows[1]) and any('advantages' in row for row in rows[1])
    for a, b in zip(*rows, strict=True):
        assert a['completion'] == b['completion']
        np.testing.assert_allclose(b.get('advantages', []), a.get('advantages', []), atol=1e-3)


@pytest.mark.slow
def test_other_scripts_on_two_processes_are_those_of_one_device(folder, tmp_path):
    for name in ('pairs.jsonl', 'demonstrations.jsonl', 'prompts.jsonl', 'reward.py', 'driver.py'):
        shutil.copy(folder / name, tmp_path)
    run_both(tmp_path, more_stages)
    same_models(tmp_path, ('reward_model', 'kto', 'online_dpo', 'distill'))
    judged = [(tmp_path / out / 'collect/judgements.jsonl').read_text() for out in ('one', 'two')]
    ranks = [re.findall(r'"ranks": (\[[^]]*\])', text) for text in judged]
    assert ranks[0] == ranks[1] and len(ranks[0]) == 8
    summaries = [json.loads((tmp_path / out / 'ppo_env/summary.json').read_text()) for out in ('one', 'two')]
    assert summaries[0]['eval_return_mean'] == summaries[1]['eval_return_mean']
    assert (tmp_path / 'two/ppo_env/learning_curve.png').exists()


def test_sigterm_to_one_of_two_saves_one_checkpoint_of_both_and_resumes(folder):
    """Stopped on the mesh of two processes; restored by one process on another mesh bit by bit, and resumed there."""
    out = folder / 'stopped'
    long = stages(folder, out)[0].replace('--max_steps=2', '--max_steps={}')
    process = start(folder, [f'{long.format(1000)} --mesh=fsdp=4'], processes=2, devices=2, extra=['--all'])
    while process.poll() is None and not ((out / 'sft/metrics.jsonl').exists() and metrics(out / 'sft')):
        time.sleep(0.1)
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    os.kill(int(children[1]), signal.SIGTERM)
    code, text = end(folder, process)
    assert code == 143, text[-3000:]
    steps = [int(path.name) for path in (out / 'sft/checkpoints').iterdir() if path.name.isdigit()]
    assert len(steps) == 1 and 0 < steps[0] < 1000
    assert text.count(f'stopped after step {steps[0]}') == 1  # Process 0 speaks for both.
    kept = checkpoint_params(str(out / f'sft/checkpoints/{steps[0]}'))
    for last in (steps[0], steps[0] + 2):
        # At the step where it was stopped nothing is left to learn: what was restored is exported.
        own = folder / f'until_{last}'
        shutil.copytree(out, own)
        command = long.format(last).replace(str(out), str(own))
        again = start(folder, [f'{command} --mesh=data=2,tensor=2'], processes=1, devices=4)
        code, text = end(folder, again)
        assert code == 0, text[-3000:]
        assert [record['step'] for record in metrics(own / 'sft')] == list(range(1, last + 1))
        restored = load_pretrained(own / 'sft/model')[1]
        same = [bool((a == b).all()) for a, b in zip(*map(jax.tree.leaves, (kept, restored)), strict=True)]
        assert all(same) if last == steps[0] else not any(same)
