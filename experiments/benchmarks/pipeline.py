"""Measures what the README says of the pipeline, from a cold start, and writes it to RESULTS.md with the hardware.

    python experiments/benchmarks/pipeline.py --human_data=harmless-base-test.jsonl.gz

Runs rlhf.py with empty caches (its figure is copied beside RESULTS.md), the sorting recipes, and, where a file of
human comparisons is given, the recipes hh_*. Leaves out speed against peers.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

from rlax_ft.harness.results import record

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parent
_DATA = flags.DEFINE_string('human_data', '', 'JSONL(.gz) of human comparisons; without it that part is left out.')
_OUT = flags.DEFINE_string('out', '', 'Folder for the runs; a temporary one when empty.')


def main(_):
    """Runs everything and writes RESULTS.md."""
    runs = Path(_OUT.value or tempfile.mkdtemp())
    runs.mkdir(parents=True, exist_ok=True)
    started = time.time()
    run(runs, 'rlhf.py', '--out=runs/rlhf')
    seconds = time.time() - started
    started = time.time()
    run(runs, 'rlhf.py', '--out=runs/rlhf')
    again = time.time() - started
    run(runs, 'sft.py', '--flagfile=' + recipe('sort_sft'))
    run(runs, 'ppo.py', '--flagfile=' + recipe('sort_ppo'))
    record('`rlhf.py`', rlhf_section(runs / 'runs/rlhf', seconds, again))
    record('Sorting: recipes `sort_sft`, `sort_ppo`', sort_section(runs / 'runs/sort/ppo'))
    if _DATA.value:
        data = '--data=' + str(Path(_DATA.value).absolute())
        for script in ('sft', 'reward_model', 'dpo'):
            run(runs, f'{script}.py', '--flagfile=' + recipe(f'hh_{script}'), data)
        record('Human comparisons: recipes `hh_sft`, `hh_reward_model`, `hh_dpo`', human_section(runs / 'runs/hh'))
    shutil.copy(runs / 'runs/rlhf/frontier.png', HERE / 'frontier.png')


def run(folder, script, *arguments):
    """Runs a script as a user would, in `folder`, with caches of its own; stops at the first that fails."""
    environment = os.environ | {'XDG_CACHE_HOME': str(folder / 'cache')}
    subprocess.run([sys.executable, str(EXPERIMENTS / script), *arguments], cwd=folder, env=environment, check=True)


def recipe(name):
    """Path of a recipe."""
    return str(EXPERIMENTS / 'recipes' / f'{name}.flags')


def rlhf_section(folder, seconds, again):
    """The table of rlhf.py."""
    report = (folder / 'report.md').read_text()
    table = '\n'.join(line for line in report.split('\n## ')[0].splitlines() if line.startswith('|'))
    summary = json.loads((folder / 'summary.json').read_text())
    return f"""{seconds:.0f} s from a cold start, caches empty; run again in the same folder, {again:.1f} s. The
reward model's correlation with the gold reward on fresh SFT samples is {summary['reward_model_correlation']:.2f}.

{table}

![gold reward against KL](frontier.png)
"""


def sort_section(folder):
    """Accuracy of sorting before and after PPO."""
    records = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    summary = json.loads((folder / 'summary.json').read_text())
    before = records[0]['objective/scores']
    return f"""Samples of the SFT model, whose demonstrations are right half of the time, are right {before:.1%} of the
time; after {summary['steps']} updates of PPO {summary['gold']:.1%}, at a KL of {summary['kl']:.2f} nats.
"""


def human_section(folder):
    """Held-out accuracies on human comparisons."""
    rows = []
    for name in ('reward_model', 'dpo'):
        s = json.loads((folder / name / 'summary.json').read_text())
        interval = f'{s["eval_accuracy_low"]:.1%} to {s["eval_accuracy_high"]:.1%}'
        rows.append(f'| {name} | {s["eval_accuracy"]:.1%} | {interval} | {s["eval_pairs"]} |')
    baseline = json.loads((folder / 'reward_model/summary.json').read_text())['length_baseline_accuracy']
    sft = json.loads((folder / 'sft/summary.json').read_text())
    return f"""A model from scratch with a BPE of 2,048 tokens, held-out perplexity {sft['eval_perplexity']:.0f}.
Accuracy on held-out comparisons; a judge that knows only which response is longer has {baseline:.1%}.

| | accuracy | 95 % interval | pairs |
|---|---|---|---|
{chr(10).join(rows)}
"""


if __name__ == '__main__':
    app.run(main)
