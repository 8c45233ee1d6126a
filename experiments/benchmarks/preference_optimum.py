"""Which preference methods reach the optimum of their own theory, on the task `exact`, over several seeds.

    python experiments/benchmarks/preference_optimum.py --json=preference_optimum.json

Each method trains a policy that is a table (evaluate/tables.py) by the objective that its script uses; a seed has a
reference of its own, and all seeds train in one program. The distance is KL(pi || optimum), by enumeration of all
completions. DPO, rankings, online DPO and XPO end at pi_ref exp(r / beta) / Z; IPO, KTO, SPPO and Nash-MD elsewhere
(evaluate/optima.py), and how far that is from there is a column of its own.
"""

import json
import time
from pathlib import Path

from absl import app, flags

from rlax_ft.harness.optimum import METHODS, train
from rlax_ft.harness.results import RECORD, record

_SEEDS = flags.DEFINE_integer('seeds', 5, 'How many.')
_STEPS = flags.DEFINE_integer('steps', 1500, 'Steps of each method; SPPO takes a third of them in each iteration.')
_BATCH = flags.DEFINE_integer('batch_size', 1024, 'Groups in a step.')
_METHODS = flags.DEFINE_multi_enum('method', [], list(METHODS), 'Which of them; all where it is not given.')
_JSON = flags.DEFINE_string('json', '', 'File for the records.')


def main(_):
    """Trains each method, and prints the table."""
    records, lines = (
        [],
        ['| method | KL(π ‖ its optimum), worst seed | mean | KL(its optimum ‖ π\\*) |', '|---|---|---|---|'],
    )
    for name in _METHODS.value or METHODS:
        started = time.time()
        own, away = train(name, _SEEDS.value, _STEPS.value, _BATCH.value)
        seconds = time.time() - started
        records.append({'name': name, 'kl': own.tolist(), 'optimum_kl': away.tolist(), 'seconds': seconds})
        lines.append(f'| {name} | {own.max():.4f} | {own.mean():.4f} | {away.mean():.3f} |')
        print(f'{lines[-1]}  {seconds:.0f} s', flush=True)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(records, indent=2) + '\n')
    if RECORD.value:
        record('The optimum of preference methods', '\n'.join(lines))


if __name__ == '__main__':
    app.run(main)
