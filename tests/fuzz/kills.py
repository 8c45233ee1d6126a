"""Runs killed at random moments: they must end as the run that nobody killed, bit for bit.

    python tests/fuzz/kills.py --kills=20
    python tests/fuzz/kills.py --kills=2 --only=ppo_lora,ppo_env --seed=7

Every training script runs once whole and once under SIGKILL, given again each time until it has ended. Final
parameters, kept checkpoints, metrics (but speed) and summary (but seconds) are compared. Prints a table; exit code 1
where anything differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Name -> script, and its flags; {base} is a folder with what earlier stages leave.
_TINY = '--batch_size=16 --learning_rate=1e-3 --save_every=2 --save_minutes=0'
_START = '--init_from={base}/sft --task=reviews'
CASES = {
    'sft': ('sft', f'--model=tiny --demonstrations=200 --max_steps=7 --eval_every=3 {_TINY}'),
    'sft_packed': ('sft', f'--model=tiny --demonstrations=400 --packing --max_steps=5 {_TINY} --batch_size=8'),
    'reward_model': ('reward_model', f'{_START} --comparisons=60 --max_steps=7 {_TINY}'),
    'dpo': ('dpo', f'{_START} --comparisons=60 --max_steps=7 --eval_every=3 {_TINY}'),
    'dpo_moving': ('dpo', f'{_START} --comparisons=60 --max_steps=7 --sync_reference=3 {_TINY}'),
    'ppo': ('ppo', f'{_START} --prompts=64 --max_steps=5 --minibatches=2 --update_epochs=2 --target_kl=0.5 {_TINY}'),
    'ppo_engine': ('ppo', f'{_START} --prompts=64 --max_steps=5 --engine_rows=4 --group_size=2 --eval_every=2 {_TINY}'),
    'ppo_lora': ('ppo', f'{_START} --prompts=64 --max_steps=5 --lora_rank=2 {_TINY}'),
    'grpo': (
        'grpo',
        f'{_START} --prompts=64 --max_steps=5 --group_size=4 --dynamic_sampling --curriculum --ahead=1 {_TINY}',
    ),
    'kto': ('kto', f'{_START} --comparisons=60 --max_steps=7 --eval_every=3 {_TINY}'),
    'online_dpo': (
        'online_dpo',
        f'{_START} --reward=gold --prompts=64 --max_steps=5 --group_size=2 --sync_reference=2 {_TINY}',
    ),
    'distill': ('distill', f'{_START} --teacher={{base}}/sft --prompts=64 --max_steps=5 --on_policy_share=1 {_TINY}'),
    'ppo_env': (
        'ppo_env',
        '--env=CartPole-v1 --num_envs=4 --num_steps=32 --total_steps=1536 --gru=8 --num_seeds=2 --log_every=2 '
        '--save_every=3 --eval_episodes=4 --normalize_observations',
    ),
}
# Numbers of the clock are never the same twice.
_CLOCK = ('perf/', 'seconds', 'steps_per_second', 'compile')


def command(case: str, base: Path, out: Path) -> list[str]:
    """The command line of a case."""
    script, flags = CASES[case]
    path = ROOT / f'experiments/{script}.py'
    return [sys.executable, str(path), *flags.format(base=base).split(), f'--out={out}', '--report_to=']


def environment() -> dict[str, str]:
    """With this tree's package, whatever is installed."""
    return {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}


def run_whole(case: str, base: Path, out: Path) -> float:
    """Runs a case to its end; returns its seconds."""
    started = time.monotonic()
    result = subprocess.run(command(case, base, out), env=environment(), capture_output=True, text=True, timeout=600)
    if result.returncode:
        raise RuntimeError(f'{case}: {result.stderr[-2000:]}')
    return time.monotonic() - started


def run_killed(case: str, base: Path, out: Path, kills: int, seconds: float, rng: random.Random) -> list[float]:
    """Runs a case that is killed `kills` times at random moments; returns after how many seconds each time.

    Raises:
      RuntimeError: a start ended with an error.
    """
    moments = []
    while True:
        process = subprocess.Popen(command(case, base, out), env=environment(), stdout=-1, stderr=-1, text=True)
        try:
            limit = rng.uniform(0.2, 1.0) * seconds if len(moments) < kills else 600
            _, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            moments.append(limit)
            continue
        if process.returncode:
            raise RuntimeError(f'{case}, after kills at {moments}: {errors[-2000:]}')
        if len(moments) >= kills or moments:
            return moments
        # It was faster than the first kill: once more from the start.
        shutil.rmtree(out)


def result_of(folder: Path) -> dict:
    """What a run leaves, as values that can be compared."""
    checkpoints = folder / 'checkpoints'
    clock = lambda name: any(part in name for part in _CLOCK)  # noqa: E731
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    summary = json.loads((folder / 'summary.json').read_text())
    files = [path for name in ('model', 'adapter') for path in sorted((folder / name).rglob('*')) if path.is_file()]
    return {
        'kept checkpoints': sorted(path.name for path in checkpoints.iterdir() if path.is_dir()),
        'parameters': parameters(checkpoints),
        'files of the model': {str(path.relative_to(folder)): path.read_bytes() for path in files},
        'metrics': [{k: v for k, v in line.items() if not clock(k)} for line in lines],
        'summary': {name: value for name, value in summary.items() if not clock(name)},
        'samples': (folder / 'samples.jsonl').read_bytes() if (folder / 'samples.jsonl').exists() else b'',
        'other files': sorted(path.name for path in folder.iterdir() if path.name != '.lock'),
    }


def parameters(folder: Path) -> list[bytes]:
    """All arrays of the newest checkpoint."""
    import jax
    import numpy as np

    from rlax_ft.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder)
    state = checkpoints.read(checkpoints.latest_step())
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    leaves = (jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in jax.tree.leaves(state))
    return [np.asarray(leaf).tobytes() for leaf in leaves]


def compare(case: str, base: Path, work: Path, kills: int, rng: random.Random) -> str:
    """Runs a case whole and killed; returns what differs, or an empty text."""
    whole, killed = work / f'{case}_whole', work / f'{case}_killed'
    run_whole(case, base, work / f'{case}_first')  # Compiles: the next one is as fast as those that are killed.
    seconds = run_whole(case, base, whole)
    moments = run_killed(case, base, killed, kills, seconds, rng)
    expected, found = result_of(whole), result_of(killed)
    different = [name for name in expected if expected[name] != found[name]]
    times = ', '.join(f'{moment:.1f}' for moment in moments)
    print(f'{case:14} killed after {times} of {seconds:.1f} s: ' + (', '.join(different) or 'identical'), flush=True)
    return ', '.join(different)


def main(arguments: list[str] | None = None) -> int:
    """Runs all cases; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=2, help='SIGKILLs of each case')
    parser.add_argument('--only', default=','.join(CASES), help='cases, with commas between')
    parser.add_argument('--seed', type=int, default=0)
    given = parser.parse_args(arguments)
    rng, failed = random.Random(given.seed), []
    with tempfile.TemporaryDirectory() as folder:
        base, work = Path(folder) / 'base', Path(folder)
        run_whole('sft', base, base / 'sft')
        for case in given.only.split(','):
            if compare(case, base, work, given.kills, rng):
                failed.append(case)
    print(f'{len(given.only.split(",")) - len(failed)} identical, {len(failed)} not: {", ".join(failed) or "-"}')
    return bool(failed)


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
