"""Which preference methods reach the optimum of their own theory, on the task `exact`, over several seeds.

    python experiments/benchmarks/preference_optimum.py --json=preference_optimum.json

Each method trains a policy that is a table (evaluate/tables.py) by the objective that its script uses; a seed has a
reference of its own, and all seeds train in one program. The distance is KL(pi || optimum), by enumeration of all
completions. DPO, rankings, online DPO and XPO end at pi_ref exp(r / beta) / Z; IPO, KTO, SPPO and Nash-MD elsewhere
(evaluate/optima.py), and how far that is from there is a column of its own. What --json holds is not repeated.
"""

import json
import time
from pathlib import Path

import numpy as np
from absl import app, flags

from rlax_ft.harness.optimum import METHODS, train
from rlax_ft.harness.results import RECORD, record

_SEEDS = flags.DEFINE_integer('seeds', 5, 'How many.')
_STEPS = flags.DEFINE_integer('steps', 1500, 'Steps of each method; SPPO takes a third of them in each iteration.')
_BATCH = flags.DEFINE_integer('batch_size', 1024, 'Groups in a step.')
_METHODS = flags.DEFINE_multi_enum('method', [], list(METHODS), 'Which of them; all where it is not given.')
_JSON = flags.DEFINE_string('json', '', 'File for the records; methods that it has at these settings are read from it.')


def main(_):
    """Trains each method, and prints the table."""
    lines = [
        '| method | KL(π ‖ its optimum), worst seed | mean | KL(its optimum ‖ π\\*) |',
        '|---|---|---|---|',
    ]
    for name in _METHODS.value or METHODS:
        own, away, seconds = measured(name)
        lines.append(f'| {name} | {max(own):.4f} | {np.mean(own):.4f} | {np.mean(away):.3f} |')
        print(f'{lines[-1]}  {seconds:.0f} s', flush=True)
    if RECORD.value:
        record('The optimum of preference methods', '\n'.join(lines))


def measured(name: str) -> tuple[list[float], list[float], float]:
    """(both distances of every seed, seconds of processor time): from the file where it has them, else by training."""
    path, given = Path(_JSON.value), {'seeds': _SEEDS.value, 'steps': _STEPS.value, 'batch_size': _BATCH.value}
    known = json.loads(path.read_text()) if _JSON.value and path.exists() else []
    found = [r for r in known if r['name'] == name and given.items() <= r.items()]
    if not found:
        started = time.process_time()
        own, away = train(name, *given.values())
        seconds = time.process_time() - started
        found = [{'name': name, **given, 'kl': own.tolist(), 'optimum_kl': away.tolist(), 'seconds': seconds}]
        if _JSON.value:
            path.write_text(json.dumps(known + found, indent=2) + '\n')
    return found[0]['kl'], found[0]['optimum_kl'], found[0]['seconds']


if __name__ == '__main__':
    app.run(main)
