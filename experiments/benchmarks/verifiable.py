"""What GRPO's recipes reach where a rule says what is right: before and after, and the processor time of each stage.

    python experiments/benchmarks/verifiable.py --out=runs/verifiable --record
    python experiments/benchmarks/verifiable.py --only=gsm8k --gsm8k=FOLDER --model=stories260K --record

Every stage is a script run as a user runs it, in the folder --out; what has ended there is read, not repeated. GSM8K
needs its train.jsonl and test.jsonl, and a small language model. Leaves out speed against peers (grpo_step.py).
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from absl import app, flags

from rlax_ft.harness.results import RECORD, record

EXPERIMENTS = Path(__file__).resolve().parents[1]
TITLE = 'GRPO where a rule says what is right'
HEAD = '| recipe | before | after | best | processor seconds: start, GRPO |\n|---|---|---|---|---|\n'
_OUT = flags.DEFINE_string('out', 'runs/verifiable', 'Folder of the runs.')
_ONLY = flags.DEFINE_list('only', ['sort', 'calculator', 'twenty_questions'], 'sort, calculator, ..., gsm8k.')
_GSM8K = flags.DEFINE_string('gsm8k', '', 'Folder with train.jsonl and test.jsonl of GSM8K.')
_MODEL = flags.DEFINE_string('model', '', 'Model folder that gsm8k starts from.')
# Of text environments: how many demonstrations, and the lengths in which they are played.
TALKS = {
    'calculator': (16000, '--max_prompt_tokens=16 --max_new_tokens=64 --turn_tokens=16'),
    'twenty_questions': (8000, '--max_prompt_tokens=16 --max_new_tokens=112 --turn_tokens=12'),
    'grid_words': (8000, '--max_prompt_tokens=32 --max_new_tokens=320 --turn_tokens=8'),
}
FORMAT = r"--reward=format(pattern='.*\n#### -?[0-9][0-9.,]*\s*')"


def main(_):
    """Runs what is asked for, and prints the table."""
    out = Path(_OUT.value).absolute()
    out.mkdir(parents=True, exist_ok=True)
    rows = [row(name, out) for name in _ONLY.value]
    table = HEAD + '\n'.join(rows)
    print(table)
    if RECORD.value:
        record(TITLE if _ONLY.value != ['gsm8k'] else 'GRPO on the form of GSM8K solutions', table)


def row(name: str, out: Path) -> str:
    """A line of the table: share of what is right, or mean reward, before GRPO and after."""
    runs = f'runs/{name}'
    if name in TALKS:
        count, lengths = TALKS[name]
        shown = stage(out, f'{runs}/shown', 'converse', f'--env={name}', f'--demonstrations={count}')
        start = stage(out, f'{runs}/sft', 'sft', recipe(f'{name}_sft'), f'--data={runs}/shown/demonstrations.jsonl')
        grpo = stage(out, f'{runs}/grpo', 'grpo', recipe(f'grpo_{name}'))
        played = [
            stage(
                out,
                f'{runs}/played_{model}',
                'converse',
                f'--env={name}',
                f'--init_from={runs}/{model}',
                '--conversations=1024',
                *lengths.split(),
            )
            for model in ('sft', 'grpo')
        ]
        values, best = [p['reward'] for p in played], played[0]['optimum']
        return line(f'grpo_{name}', values, best, shown['processor'] + start['processor'], grpo['processor'])
    given = [] if name == 'sort' else [f'--data={Path(_GSM8K.value).absolute()}/train.jsonl']
    model = [] if name == 'sort' else [f'--model={Path(_MODEL.value).absolute()}']
    start = stage(out, f'{runs}/sft', 'sft', recipe(f'{name}_sft'), *given, *model)
    grpo = stage(out, f'{runs}/grpo', 'grpo', recipe(f'grpo_{name}'), *given)
    asked = ['--task=sort']
    if name == 'gsm8k':
        test = f'--data={Path(_GSM8K.value).absolute()}/test.jsonl'
        asked = [test, FORMAT, '--prompts=512', '--max_prompt_tokens=224', '--max_new_tokens=96']
    models = f'--models=sft={runs}/sft,grpo={runs}/grpo'
    measured = stage(out, f'{runs}/measured', 'evaluate', models, *asked)
    key = 'gold' if name == 'sort' else 'reward'
    values = [model[key] for model in measured['models']]
    return line(f'grpo_{name}', values, 1.0, start['processor'], grpo['processor'])


def line(name, values, best, start, grpo):
    """The line as it stands in the table."""
    return f'| `{name}` | {values[0]:.3f} | {values[1]:.3f} | {best:.3f} | {start:.0f}, {grpo:.0f} |'


def stage(out: Path, folder: str, script: str, *arguments: str) -> dict:
    """The summary of a run, and `processor`, the seconds of processor time that it took in all."""
    spent = out / folder / 'processor_seconds'
    if not spent.exists():
        before = processor_seconds()
        command = [sys.executable, str(EXPERIMENTS / f'{script}.py'), *arguments, f'--out={folder}']
        subprocess.run(command, cwd=out, check=True, env=os.environ)
        spent.write_text(str(processor_seconds() - before))
    return json.loads((out / folder / 'summary.json').read_text()) | {'processor': float(spent.read_text())}


def processor_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def recipe(name: str) -> str:
    """A recipe as a flag."""
    return f'--flagfile={EXPERIMENTS}/recipes/{name}.flags'


if __name__ == '__main__':
    app.run(main)
