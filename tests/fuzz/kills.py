"""Runs killed at random moments: they must end as the run that nobody killed, bit for bit.

    python tests/fuzz/kills.py --kills=20 --record
    python tests/fuzz/kills.py --kills=2 --only=ppo_lora,ppo_env --seed=7

Every training script runs once whole, and then under SIGKILL, given again each time until it has ended; a case starts
anew until it has had its kills. Half of them come at a moment of the clock after start-up, half a few milliseconds
after something in the run folder has changed: in a save, an export, a line that is written. Final parameters, kept
checkpoints, metrics (but speed) and summary (but seconds) are compared each time a run has ended. Prints a table; exit
code 1 where anything differs. The scripts run in forks of one process, which has the imports behind it.
"""

import argparse
import importlib
import json
import os
import pickle
import pkgutil
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'experiments/benchmarks/RESULTS.md'
TITLE = 'Runs killed at random moments'
HEAD = '| case | kills | runs compared | what differs |\n|---|---|---|---|\n'

# Name -> script, and its flags; {base} is a folder with what earlier stages leave.
_TINY = '--batch_size=16 --learning_rate=1e-3 --save_every=2 --save_minutes=0 --report_to='
_START = '--init_from={base}/sft --task=exact'  # Its completions are of a few tokens.
_TALK = '--max_prompt_tokens=32 --max_new_tokens=64'
_TALKS = f'--env=calculator --init_from={{base}}/talks --group_size=2 --max_steps=5 {_TALK} {_TINY}'
# Name -> script, and its flags, of what the cases start from; those of one name and a dot come first.
BASES = {
    'sft': ('sft', f'--task=exact --model=tiny --demonstrations=200 --max_steps=7 {_TINY}'),
    'shown': ('converse', '--env=calculator --demonstrations=60'),
    'talks': (
        'sft',
        f'--data={{base}}/shown/demonstrations.jsonl --tokenizer=bytes --model=tiny --max_steps=4 {_TALK} {_TINY}',
    ),
    'collected': ('collect', f'{_START} --comparisons=60'),
}
CASES = {
    'sft': ('sft', f'--model=tiny --demonstrations=200 --max_steps=7 --eval_every=3 {_TINY}'),
    'sft_packed': ('sft', f'--model=tiny --demonstrations=400 --packing --max_steps=5 {_TINY} --batch_size=8'),
    'reward_model': ('reward_model', f'{_START} --comparisons=60 --max_steps=7 {_TINY}'),
    'collect': ('collect', f'{_START} --comparisons=60'),
    'dpo': ('dpo', f'{_START} --comparisons=60 --max_steps=7 --eval_every=3 {_TINY}'),
    'dpo_moving': ('dpo', f'{_START} --comparisons=60 --max_steps=7 --sync_reference=3 {_TINY}'),
    'ppo': ('ppo', f'{_START} --prompts=64 --max_steps=5 --minibatches=2 --update_epochs=2 --target_kl=0.5 {_TINY}'),
    'ppo_engine': ('ppo', f'{_START} --prompts=64 --max_steps=5 --engine_rows=4 --group_size=2 --eval_every=2 {_TINY}'),
    'ppo_lora': ('ppo', f'{_START} --prompts=64 --max_steps=5 --lora_rank=2 {_TINY}'),
    'grpo': (
        'grpo',
        f'{_START} --prompts=64 --max_steps=5 --group_size=4 --dynamic_sampling --curriculum --ahead=1 '
        f'--sample_every=2 {_TINY}',
    ),
    'grpo_lora': ('grpo', f'{_START} --prompts=64 --max_steps=5 --group_size=4 --lora_rank=2 --beta=0.1 {_TINY}'),
    'grpo_talks': ('grpo', f'{_TALKS} --sample_every=2 --eval_every=3 --eval_prompts=4'),
    'grpo_talks_lora': ('grpo', f'{_TALKS} --lora_rank=2 --beta=0.1 --eval_prompts=4'),
    'kto': ('kto', f'{_START} --comparisons=60 --max_steps=7 --eval_every=3 {_TINY}'),
    'kto_bco': ('kto', f'{_START} --data={{base}}/collected/judgements.jsonl --loss=bco --max_steps=7 {_TINY}'),
    'online_dpo': (
        'online_dpo',
        f'{_START} --reward=gold --prompts=64 --max_steps=5 --group_size=2 --sync_reference=2 {_TINY}',
    ),
    'distill': ('distill', f'{_START} --teacher={{base}}/sft --prompts=64 --max_steps=5 --on_policy_share=1 {_TINY}'),
    'distill_given': (
        'distill',
        f'{_START} --teacher={{base}}/sft --prompts=64 --max_steps=5 --on_policy_share=0.5 --eval_every=2 {_TINY}',
    ),
    'converse': ('converse', f'--env=calculator --init_from={{base}}/talks --conversations=96 {_TALK}'),
    'ppo_env': (
        'ppo_env',
        '--env=CartPole-v1 --num_envs=4 --num_steps=32 --total_steps=1536 --gru=8 --num_seeds=2 --log_every=2 '
        '--save_every=3 --eval_episodes=4 --normalize_observations --report_to=',
    ),
}
# Numbers of the clock are never the same twice.
_CLOCK = ('perf/', 'seconds', 'steps_per_second', 'compile', 'time/')


def start(script: str, flags: str, base: Path, out: Path, log: Path | None = None) -> int:
    """Starts a script in a fork; returns its process id. What it says is in `log`, or OUT.log."""
    log = log or out.with_name(out.name + '.log')
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.argv = [str(ROOT / f'experiments/{script}.py'), *flags.format(base=base).split(), f'--out={out}']
        runpy.run_path(sys.argv[0], run_name='__main__')
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(process: int, log: Path) -> bool:
    """Whether it has ended well.

    Raises:
      RuntimeError: it ended with an error.
    """
    pid, status = os.waitpid(process, os.WNOHANG)
    if pid and status:
        raise RuntimeError(f'{log.name}: {status}: {log.read_text()[-2000:]}')
    return bool(pid)


def changes(folder: Path) -> int:
    """A number that differs when a file of the folder is made, grows, or goes."""
    seen, left = 0, [folder]
    while left:
        try:
            for entry in os.scandir(left.pop()):
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                    seen ^= hash(entry.path)
                else:
                    seen ^= hash((entry.path, entry.stat().st_size))
        except FileNotFoundError:  # It has been renamed meanwhile.
            seen += 1
    return seen


def run_whole(script: str, flags: str, base: Path, out: Path) -> tuple[float, float, int]:
    """Runs to the end; returns (seconds to its first step in metrics, seconds in all, changes of its folder)."""
    began, first, count, seen = time.monotonic(), None, 0, 0
    process = start(script, flags, base, out)
    while not ended(process, out.with_name(out.name + '.log')):
        time.sleep(0.01)
        now = changes(out)
        count, seen = count + (now != seen), now
        if first is None and (out / 'metrics.jsonl').exists():
            first = time.monotonic() - began
    return first or 0.0, time.monotonic() - began, count


def run_killed(script, flags, base: Path, out: Path, whole: tuple[float, float, int], kills: int, rng) -> int:
    """Runs until it has ended, or as long as kills are left over; returns how often it was killed."""
    first, seconds, count = whole
    done = 0
    while True:
        # A run that goes on is shorter than a whole one, and what it changes is less.
        moment = rng.uniform(0.9 * first, max(first, 0.8 * seconds))
        change, delay = rng.randint(1, count // 2 + 1), rng.uniform(0, 0.02)
        by_clock, last = rng.random() < 0.5, done == kills
        began, seen, process = time.monotonic(), changes(out), start(script, flags, base, out)
        while not ended(process, out.with_name(out.name + '.log')):
            time.sleep(0.05 if last else 0.01)
            if last:
                continue
            if not by_clock:
                now = changes(out)
                change, seen = change - (now != seen), now
            if time.monotonic() - began > moment if by_clock else not change:
                time.sleep(0 if by_clock else delay)
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                done += 1
                when = f'{time.monotonic() - began:.1f} s' if by_clock else 'a change of its folder'
                print(f'  {out.name}: kill {done}, after {when}', file=sys.stderr, flush=True)
                break
        else:
            return done


def result_of(folder: Path) -> dict:
    """What a run leaves, as values that can be compared."""
    checkpoints = folder / 'checkpoints'
    steps = sorted(path.name for path in checkpoints.iterdir() if path.is_dir()) if checkpoints.exists() else []
    clock = lambda name: any(part in name for part in _CLOCK)  # noqa: E731
    read = lambda name: (folder / name).read_bytes() if (folder / name).exists() else b''  # noqa: E731
    lines = [json.loads(line) for line in read('metrics.jsonl').splitlines()]
    summary = json.loads((folder / 'summary.json').read_text())
    others = ('model', 'adapter', 'tokenizer', 'reference', 'value_model')
    files = [path for name in others for path in sorted((folder / name).rglob('*')) if path.is_file()]
    return {
        'kept checkpoints': steps,
        'parameters': parameters(checkpoints) if steps else [],
        'files of the model': {str(path.relative_to(folder)): path.read_bytes() for path in files},
        'metrics': [{k: v for k, v in line.items() if not clock(k)} for line in lines],
        'summary': {name: value for name, value in summary.items() if not clock(name)},
        **{name: read(name) for name in ('samples.jsonl', 'conversations.jsonl', 'judgements.jsonl')},
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


def differences(expected: Path, found: Path) -> list[str]:
    """What differs between two runs that ended."""

    def compared():
        results = result_of(expected), result_of(found)
        return [name for name in results[0] if results[0][name] != results[1][name]]

    return in_fork(compared)


def in_fork(function):
    """The function's result, computed in a fork: a process that has computed with jax cannot fork any more."""
    here, there = os.pipe()
    process = os.fork()
    if not process:
        try:
            answer = pickle.dumps(function())
        except BaseException:
            answer = pickle.dumps([f'cannot be compared: {traceback.format_exc()[-300:]}'])
        os.write(there, answer)
        os._exit(0)
    os.waitpid(process, 0)
    os.close(there)
    with os.fdopen(here, 'rb') as file:
        return pickle.load(file)


def compare(case: str, base: Path, work: Path, kills: int, rng: random.Random, keep: str) -> tuple[int, int, str]:
    """Runs a case whole and killed; returns (kills, runs that were compared, what differs)."""
    script, flags = CASES[case]
    whole, killed = work / f'{case}_whole', work / f'{case}_killed'
    run_whole(
        script, flags, base, work / f'{case}_first'
    )  # Compiles: the next one is as fast as those that are killed.
    timing = run_whole(script, flags, base, whole)
    done, runs, different = 0, 0, differences(work / f'{case}_first', whole)
    while done < kills and not different:
        shutil.rmtree(killed, ignore_errors=True)
        at_once = run_killed(script, flags, base, killed, timing, kills - done, rng)
        done, runs = done + at_once, runs + bool(at_once)
        different = differences(whole, killed)
    if different and keep:
        shutil.copytree(work, keep, dirs_exist_ok=True)
    print(
        f'{case:16} {done} kills of a run of {timing[1]:.1f} s ({timing[0]:.1f} s to its first step, {timing[2]} '
        f'changes of its folder), {runs} runs compared: {", ".join(different) or "identical"}',
        flush=True,
    )
    return done, runs, ', '.join(different)


def prepare(cache: Path) -> None:
    """Imports what scripts import, and puts what they compile where only this process looks."""
    os.environ.update(JAX_PLATFORMS='cpu', XDG_CACHE_HOME=str(cache))
    sys.path.insert(0, str(ROOT))
    import rlax_ft

    # These compute when they are imported, and who has computed with jax cannot fork; scripts do without them.
    left_out = ('worker', 'harness.optimum', 'harness.race')
    for module in pkgutil.walk_packages(rlax_ft.__path__, 'rlax_ft.'):
        if not module.name.endswith(left_out):
            importlib.import_module(module.name)
    for name in ('datasets', 'pyarrow.parquet', 'transformers.models.auto'):
        importlib.import_module(name)
    warnings.filterwarnings('ignore', message='os.fork', category=RuntimeWarning)


def make_bases(cases: list[str], base: Path) -> None:
    """Runs what the cases start from."""
    needed, flags = [], [CASES[case][1] for case in cases]
    for name in reversed(BASES):
        if any(f'{{base}}/{name}' in text for text in flags):
            needed.insert(0, name)
            flags.append(BASES[name][1])
    for name in needed:  # A run that has ended ends again at once.
        run_whole(*BASES[name], base, base / name)


def write_down(rows: dict[str, tuple[int, int, str]]) -> None:
    """Puts the cases' rows into RESULTS.md, beside those of other cases that stand there."""
    from rlax_ft.harness.results import record

    section = RESULTS.read_text().partition(f'\n## {TITLE}\n')[2].partition('\n## ')[0]
    kept = {line.split('|')[1].strip(): line for line in section.splitlines() if line.startswith('| ')}
    kept |= {case: f'| {case} | {n} | {runs} | {what or "nothing"} |' for case, (n, runs, what) in rows.items()}
    kept.pop('case', None)
    total = sum(int(line.split('|')[2]) for line in kept.values())
    record(TITLE, f'{total} kills.\n\n{HEAD}' + '\n'.join(kept[case] for case in CASES if case in kept), RESULTS)


def main(arguments: list[str] | None = None) -> int:
    """Runs all cases; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=2, help='SIGKILLs of each case')
    parser.add_argument('--only', default=','.join(CASES), help='cases, with commas between')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--work', default='', help='folder that keeps what cases start from, for the next call')
    parser.add_argument('--keep', default='', help='folder for the runs of a case in which something differs')
    parser.add_argument('--record', action='store_true', help='write the rows of these cases into RESULTS.md')
    given = parser.parse_args(arguments)
    rows, cases = {}, given.only.split(',')
    with tempfile.TemporaryDirectory() as folder:
        work, kept = Path(folder), Path(given.work or folder)
        base = kept / 'base'
        base.mkdir(parents=True, exist_ok=True)
        prepare(kept / 'cache')
        make_bases(cases, base)
        for case in cases:
            rng = random.Random(f'{given.seed} {case}')
            rows[case] = compare(case, base, work, given.kills, rng, given.keep)
            if given.record:
                in_fork(lambda: write_down({case: rows[case]}))  # noqa: B023
    failed = [case for case, (_, _, different) in rows.items() if different]
    print(f'{len(cases) - len(failed)} identical, {len(failed)} not: {", ".join(failed) or "-"}')
    return bool(failed)


if __name__ == '__main__':
    sys.exit(main())
