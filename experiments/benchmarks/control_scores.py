"""Runs the recipes of PPO for environments and holds their scores against what they should reach.

    python experiments/benchmarks/control_scores.py --record
    python experiments/benchmarks/control_scores.py --only=cartpole,acrobot

A recipe that is finished already in its folder below --out is read, not run again. Speed against
peers is measured by control.py.
"""

import json
import subprocess
import sys
from pathlib import Path

from absl import app, flags

from rlax_ft.harness.results import RECORD, record

EXPERIMENTS = Path(__file__).parents[1]
# What each recipe should reach over 100 episodes, and whether each seed or the mean of the seeds should.
BARS = {
    'cartpole': (475, 'each'),
    'acrobot': (-86, 'mean'),
    'pendulum': (-170, 'mean'),
    'mountaincar': (-115, 'mean'),
    'mountaincarcontinuous': (92, 'mean'),
    'breakout': (80, 'mean'),
    'spaceinvaders': (160, 'mean'),
    'lunarlander': (230, 'mean'),
    'cartpole_masked': (475, 'each'),
}
_ONLY = flags.DEFINE_list('only', list(BARS), 'Recipes to run.')
_OUT = flags.DEFINE_string('out', 'runs/control', 'Folder of the run folders.')


def scored(name: str) -> dict:
    """summary.json of a recipe."""
    folder = Path(_OUT.value) / name
    recipe = EXPERIMENTS / f'recipes/ppo_{name}.flags'
    command = [sys.executable, EXPERIMENTS / 'ppo_env.py', f'--flagfile={recipe}', f'--out={folder}']
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f'error: {name}: {(done.stderr.strip().splitlines() or ["no output"])[-1]}')
    return json.loads((folder / 'summary.json').read_text())


def row(name: str, summary: dict) -> str:
    """One line of the table."""
    bar, how = BARS[name]
    means = summary['eval_return_mean']
    reached = min(means) if how == 'each' else summary['return_mean']
    return (
        f'| `ppo_{name}` | {summary["env"]} | {summary["total_steps"]:,} | {bar} ({how}) | '
        f'{reached:.1f}{"" if reached >= bar else ", below"} | {" ".join(f"{m:.1f}" for m in means)} | '
        f'{summary["steps_per_second_of_all_runs"]:,.0f} |'
    )


def main(_):
    """Runs what is not finished, and prints the table."""
    unknown = [name for name in _ONLY.value if name not in BARS]
    if unknown:
        print(f'error: --only={unknown[0]}: one of {", ".join(BARS)}', file=sys.stderr)
        sys.exit(2)
    rows = [
        '| recipe | environment | steps | bar | reached | each seed | steps/s, all seeds |',
        '|---|---|---|---|---|---|---|',
    ]
    for name in _ONLY.value:
        rows.append(row(name, scored(name)))
        print(rows[-1], flush=True)
    if RECORD.value:
        record('PPO for environments: scores over 100 episodes', '\n'.join(rows))


if __name__ == '__main__':
    app.run(main)
