"""Mutated comparisons, judges and rewards of evaluate.py --on=pairs: a report, or one line. Leaves out models."""

import json
from pathlib import Path

import values

from rlax_ft.harness.command_line import parse
from rlax_ft.harness.evaluation import Compared
from rlax_ft.harness.loading import load_script
from rlax_ft.harness.run import Run
from rlax_ft.training.checkpoint import Checkpoints

EVALUATE = Path(__file__).resolve().parents[2] / 'experiments/evaluate.py'
USER, GOOD, BAD = ({'role': r, 'content': c} for r, c in (('user', 'hi'), ('assistant', 'yes'), ('assistant', 'no')))
PAIRS = [
    {'prompt': 'a', 'chosen': ' b', 'rejected': ' c', 'subset': 'chat', 'margin': 1.0},
    {'prompt': [USER], 'chosen': [GOOD], 'rejected': [BAD], 'subset': 'chat'},
    {'chosen': [USER, GOOD], 'rejected': [USER, BAD], 'subset': 'maths', 'label': 0.75},
    {'prompt': 'a', 'completions': [' b', ' c', ' d'], 'ranks': [1, 0, 1]},
    {'prompt': 'q', 'chosen': ' longer answer', 'rejected': ' d'},
]
RESULTS = (
    '[0.5] * len(records)',
    '[1.0 if len(a) > len(b) else 0.0 for a, b in zip(first, second)]',
    '[]',
    'None',
    '0.5',
    '[2.0] * len(records)',
    '[float("nan")] * len(records)',
    '[None] * len(records)',
    '["x"] * len(records)',
    '[[0.5]] * len(records)',
    '[True] * len(records)',
    '1 / 0',
    '[r["margin"] for r in records]',
    '(0.5 for _ in records)',
    '{i: 0.5 for i in range(len(records))}',
    '[10**400] * len(records)',
    '[1e308, -1e308] * len(records)',
)


def mutation(rng, workdir):
    """Writes comparisons, one mutated, and a file of functions; measures by one of them."""
    data, code = workdir / 'pairs.jsonl', workdir / f'mine_{rng.getrandbits(40)}.py'
    records = list(PAIRS)
    if rng.random() < 0.4:
        records.append(values.mutated(rng, rng.choice(PAIRS), ('prompt', 'chosen', 'rejected', 'subset', 'label')))
    rng.shuffle(records)
    data.write_text(''.join(json.dumps(record) + '\n' for record in records))
    if rng.random() < 0.1:
        data.write_bytes(values.mutated_bytes(rng, data.read_bytes()))
    result = rng.choice(RESULTS[:2] if rng.random() < 0.5 else RESULTS)
    source = (
        f'def judge(records, first, second):\n    return {result}\n\n'
        f'def rule(records, completions):\n    first = second = completions\n    return {result}\n'
    )
    code.write_text(source if rng.random() < 0.9 else values.mutated_bytes(rng, source.encode()).decode('latin-1'))
    by = rng.choice(('judge', 'reward'))
    usual = f'{code}:{"judge" if by == "judge" else "rule"}'
    name = usual if rng.random() < 0.8 else rng.choice((f'{code}:judge', f'{code}:rule', f'{code}:x', f'{code}:'))
    module = load_script(EVALUATE)
    settings = parse(module.EvaluateSettings, ['--on=pairs', f'--data={data}', f'--{by}={name}', f'--out={workdir}/o'])
    module.check(settings)
    compared = Compared(settings, Run(workdir, Checkpoints(workdir / 'c'), None), None)
    record = compared.judge(name) if by == 'judge' else compared.rule(name)
    text = module.judge_report([record])
    json.dumps({k: v for k, v in record.items() if k != 'margins'}, allow_nan=False)
    return None if text and 0 <= record['accuracy'] <= 1 else f'wrong: {record}'
