"""Measures training speed on CartPole against PPO as others write it, ours and a peer in turn.

    python experiments/benchmarks/control.py --rounds=7 --record
    python experiments/benchmarks/control.py --total_steps=4096 --rounds=1     # small, to see that it works

Peers: workers/plain_ppo.py, a restatement of purejaxrl's program with its settings (4 environments, 128 steps, 4
epochs of 4 minibatches), since purejaxrl itself does not run with gymnax 1.0; and workers/torch_ppo.py, a loop in the
manner of CleanRL's `ppo.py` (Gymnasium's synchronous vector of environments and PyTorch, the same settings).
Compilation is not counted. Scores come from control_scores.py.
"""

import sys
from pathlib import Path

from absl import app, flags

from rlax_ft.harness.benchmark import ROUNDS, report
from rlax_ft.harness.race import race

WORKERS = Path(__file__).parent / 'workers'
_STEPS = flags.DEFINE_integer('total_steps', 500_000, 'Environment steps of a run.', lower_bound=512)
_SEEDS = flags.DEFINE_integer('num_seeds', 8, 'Seeds of the vmapped comparison.', lower_bound=2)
# A host loop is slow; its rate does not depend on how long it runs.
_HOST_STEPS = 20_480


def rival(name: str, peer: str, *, seeds: int, peer_steps: int) -> dict:
    """The record of our program against a peer, in environment steps a second."""
    programs = [('ours_ppo', _STEPS.value), (peer, peer_steps)]
    commands = [[sys.executable, str(WORKERS / f'{p}.py'), str(steps), str(seeds)] for p, steps in programs]
    times = race(commands, rounds=ROUNDS.value)
    # An update is 4 environments times 128 steps.
    mine, other = (steps // 512 * 512 * seeds / t['seconds'] for (_, steps), t in zip(programs, times))
    return {'name': name, 'ours': mine, 'peer': other, 'unit': 'steps/s', 'ratio': mine / other}


def main(_):
    """Measures and prints."""
    steps, many = _STEPS.value, _SEEDS.value
    records = [
        rival('1 seed, against purejaxrl restated', 'plain_ppo', seeds=1, peer_steps=steps),
        rival(f'{many} seeds, against purejaxrl restated', 'plain_ppo', seeds=many, peer_steps=steps),
        rival('1 seed, against a CleanRL-like loop', 'torch_ppo', seeds=1, peer_steps=min(steps, _HOST_STEPS)),
    ]
    report('PPO for environments: speed', records)


if __name__ == '__main__':
    app.run(main)
