"""Speed of the train step: SFT, DPO, PPO's update, and scoring of groups, against TRL or our own plain computation.

    python experiments/benchmarks/train_step.py --against=trl --peer_python=PATH/TO/python --json=steps.json

The peer runs where it is installed: `--peer_python` names that environment's interpreter (`pip install trl torch`).
Both take turns, on the same shapes in the same precision; warm-up, with compilation, is not counted. TRL has no PPO any
more, so that stage has no peer. Leaves out sampling (generate.py).
"""

import json
import sys

from absl import app, flags
from alternate import race
from shapes import PYTHON, ROUNDS, SHAPE, SHAPES, WORKERS, report

STAGES = ('sft', 'dpo', 'dpo_cached', 'ppo', 'score')
_AGAINST = flags.DEFINE_enum('against', 'trl', ['trl', 'none'], 'The peer.')
_STAGES = flags.DEFINE_list('stages', list(STAGES), 'Which steps.')


def main(_):
    """Races each stage."""
    records = [measure(stage, SHAPES[SHAPE.value]) for stage in _STAGES.value]
    report(f'The train step, shape `{SHAPE.value}`', records)


def measure(stage: str, shape: dict) -> dict:
    """The record of one stage, in seconds a step; `ratio` says how many times faster ours is."""
    if stage == 'score':
        sizes = {name: shape[f'group_{name}'] for name in ('prompt', 'response')}
        shape = shape | dict(rows=shape['groups']) | sizes
    sizes = json.dumps(shape)
    commands = [[sys.executable, str(WORKERS / 'ours_step.py'), stage, sizes]]
    if stage == 'score':
        commands.append([sys.executable, str(WORKERS / 'ours_step.py'), 'score_plain', sizes])
    elif _AGAINST.value == 'trl' and stage != 'ppo':
        commands.append([PYTHON.value, str(WORKERS / 'trl_step.py'), stage, sizes])
    ours, *peer = (r['seconds'] for r in race(commands, rounds=ROUNDS.value, warmup=2))
    name = 'scoring, prompts shared against repeated' if stage == 'score' else f'{stage} step'
    return {
        'name': name,
        'ours': ours,
        'peer': peer[0] if peer else None,
        'unit': 's',
        'ratio': peer[0] / ours if peer else None,
    }


if __name__ == '__main__':
    app.run(main)
