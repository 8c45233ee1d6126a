"""Mutated files that a run wrote (samples, metrics, flags), as viewers and plots read them: shown, or one line."""

import json
import shutil
import tempfile
from pathlib import Path

import values

from rlax_ft.evaluate.curves import check_metric, curve_table, group_runs, make_curve, read_run
from rlax_ft.evaluate.samples import make_filter, read_samples, side_by_side
from rlax_ft.evaluate.viewer import ansi, render, token_table, views_of

FOLDERS: list[Path] = []
NAMES = ('prompt', 'completion', 'tokens', 'logps', 'advantages', 'reward', 'kl', 'messages', 'step', 'loss')


def folder_of_ours():
    """A run folder as grpo.py leaves it."""
    if not FOLDERS:
        root = Path(tempfile.mkdtemp(prefix='fuzz-written-'))
        samples = [
            {'step': i, 'prompt': 'a', 'completion': 'b c', 'tokens': ['b', ' c'], 'logps': [-1.0, -0.5]}
            | {'ref_logps': [-1.1, -0.4], 'advantages': [0.5, 0.5], 'reward': 1.0 * i, 'rewards': {'length': 0.5}}
            for i in range(3)
        ]
        samples.append({'step': 3, 'messages': [{'role': 'user', 'content': 'x'}], 'prompt': 'x', 'completion': ''})
        metrics = [{'step': i, 'loss': 1 / i, 'reward': 0.1 * i} for i in range(1, 6)]
        for name, lines in (('samples', samples), ('metrics', metrics)):
            (root / f'{name}.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
        (root / 'flags.txt').write_text('--seed=0\n--beta=0.1\n--loss=dpo\n')
        (root / 'summary.json').write_text('{"steps": 5}')
        FOLDERS.append(root)
    return FOLDERS[0]


def mutation(rng, workdir):
    """Mutates one file, and shows the samples or draws the curves."""
    folder, other = workdir / 'run', workdir / 'other'
    for place in (folder, other):
        shutil.copytree(folder_of_ours(), place)
    path = folder / rng.choice(('samples.jsonl', 'metrics.jsonl', 'samples.jsonl', 'metrics.jsonl', 'flags.txt'))
    if path.suffix == '.txt' or rng.random() < 0.3:
        values.write_mutated(rng, path)
    else:
        lines = path.read_text().splitlines()
        i = rng.randrange(len(lines))
        lines[i] = json.dumps(values.mutated(rng, json.loads(lines[i]), NAMES))
        path.write_bytes(('\n'.join(lines) + '\n').encode('utf-8', 'surrogatepass'))
    return _show(rng, folder, other) if 'samples' in path.name else _draw(rng, folder, other)


def _show(rng, folder, other):
    records, _ = read_samples(folder)
    where = rng.choice(('', 'reward<0', 'step==1', 'reward>=1,step==2', 'b', 'x=', '==', 'nan<reward', '\x00', '(['))
    keep = make_filter(where, records) if where else lambda record: True
    pairs = side_by_side(records, read_samples(other)[0])
    for record in [r for r in records if keep(r)] + [r for pair in pairs for r in pair if r is not None]:
        for view in views_of([record]) or ['logp']:
            lines = [ansi(line) for line in render(record, view=view, width=rng.choice((1, 20, 100)))]
            if any('\n' in line or '\x00' in line for line in lines):
                return f'wrong: control characters reach the terminal: {lines}'
        token_table(record)
    return None


def _draw(rng, folder, other):
    runs = [read_run(str(place)) for place in (folder, other)]
    curves = {}
    for metric in ('loss', 'reward'):
        check_metric(metric, runs)
        groups = group_runs(runs, rng.choice(([], ['beta'], ['seed'])))
        made = (make_curve(label, members, metric, smooth=0.5) for label, members in groups.items())
        curves[metric] = [curve for curve in made if curve is not None]
    return None if curve_table(curves) else 'wrong: no table'
