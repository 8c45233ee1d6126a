"""Speed of the train step (SFT, DPO, KTO, PPO's update) and of scoring groups, against a peer or a plain computation.

    python experiments/benchmarks/train_step.py --against=trl --peer_python=PATH/TO/python --json=steps.json

The peer runs where it is installed: `--peer_python` names that environment's interpreter (`pip install trl torch`, or
`pip install google-tunix`). Both take turns, on the same shapes in the same precision; warm-up, with compilation, is
not counted. A stage that a peer lacks is timed alone: PPO in TRL; KTO, PPO and a reference computed ahead in Tunix.
Sampling is timed by generate.py.
"""

import json
import sys
from pathlib import Path

from absl import app, flags

from rlax_ft.harness.benchmark import PYTHON, ROUNDS, SHAPE, SHAPES, report
from rlax_ft.harness.race import race

STAGES = ('sft', 'dpo', 'dpo_cached', 'kto', 'ppo', 'score', 'ensemble', 'grid')
# What our own plain form of a stage is called, and the name of the comparison.
PLAIN = {
    'score': ('score_plain', 'scoring, prompts shared against repeated'),
    'ensemble': ('reward', 'step of 5 reward models (heads) against one'),
    'grid': ('dpo_cached', 'step of 6 betas of DPO under one vmap against one'),
}
# Title, worker, the stages that it knows, and the packages that RESULTS.md names.
PEERS = {
    'trl': (' against TRL', 'torch_worker.py', ('sft', 'dpo', 'dpo_cached', 'kto'), ('trl', 'torch', 'transformers')),
    'tunix': (' against Tunix', 'tunix_worker.py', ('sft', 'dpo'), ('google-tunix', 'jax', 'flax')),
    'none': ('', '', (), ()),
}
WORKERS = Path(__file__).parent / 'workers'
_AGAINST = flags.DEFINE_enum('against', 'trl', list(PEERS), 'The peer.')
_STAGES = flags.DEFINE_list('stages', list(STAGES), 'Which steps.')


def main(_):
    """Races each stage."""
    records = [measure(stage, SHAPES[SHAPE.value]) for stage in _STAGES.value]
    against, _, _, packages = PEERS[_AGAINST.value]
    report(f'The train step{against}, shape `{SHAPE.value}`', records, packages)


def measure(stage: str, shape: dict) -> dict:
    """The record of one stage, in seconds a step; `ratio` says how many times faster ours is."""
    if stage == 'score':
        sizes = {name: shape[f'group_{name}'] for name in ('prompt', 'response')}
        shape = shape | dict(rows=shape['groups']) | sizes
    sizes = json.dumps(shape)
    _, worker, stages, _ = PEERS[_AGAINST.value]
    commands = [[sys.executable, str(WORKERS / 'ours_step.py'), stage, sizes]]
    if stage in PLAIN:
        commands.append([sys.executable, str(WORKERS / 'ours_step.py'), PLAIN[stage][0], sizes])
    elif stage in stages:
        commands.append([PYTHON.value, str(WORKERS / worker), stage, sizes])
    ours, *peer = (r['seconds'] for r in race(commands, rounds=ROUNDS.value, warmup=2))
    return {
        'name': PLAIN[stage][1] if stage in PLAIN else f'{stage} step',
        'ours': ours,
        'peer': peer[0] if peer else None,
        'unit': 's',
        'ratio': peer[0] / ours if peer else None,
    }


if __name__ == '__main__':
    app.run(main)
