"""Every preference loss and KTO on human comparisons: held-out accuracy with its interval, beside the length baseline.

    python experiments/benchmarks/human_data.py --data=harmless-base-test.jsonl.gz --recipe=hh --out=runs/hh
    python experiments/benchmarks/human_data.py --data=testset-v1.json --recipe=pandalm --out=runs/pandalm
    python experiments/benchmarks/human_data.py --data=testset-v1.json --recipe=pandalm --out=runs/quick --model=tiny \
        --max_steps=40 --set=max_prompt_tokens=64,max_new_tokens=64

Each line of the table is a run of dpo.py or kto.py with the recipe, from one model that sft.py has made of the better
answers. Where the data has several annotators (PandaLM), DPO is also trained on the share of them that agrees, and the
difference to majority labels has a paired bootstrap interval over the held-out comparisons. A run that has ended is
read, not repeated.
"""

import inspect
import json
from pathlib import Path

import numpy as np
from absl import app, flags, logging

from rlax_ft.evaluate.win_rate import paired_difference
from rlax_ft.harness.command_line import parse, prepare_process
from rlax_ft.harness.loading import load_script
from rlax_ft.harness.results import RECORD, record
from rlax_ft.losses import preference, unpaired

HERE = Path(__file__).resolve().parents[1]
# Further hyperparameters, where the defaults are for rewards of another scale.
_BETAS = {'simpo': 2.0, 'dpo_norm': 2.0, 'ipo': 0.1}
_DATA = flags.DEFINE_string('data', None, 'Comparisons.', required=True)
_RECIPE = flags.DEFINE_enum('recipe', 'hh', ('hh', 'pandalm'), 'Which recipes.')
_OUT = flags.DEFINE_string('out', 'runs/human', 'Folder of the runs.')
_LOSSES = flags.DEFINE_list('losses', [], 'Which losses; all where empty.')
_STEPS = flags.DEFINE_integer('max_steps', 0, "Steps of each run; 0: the recipe's.")
_MODEL = flags.DEFINE_string('model', 'small', 'Of sft.py.')
_SET = flags.DEFINE_list('set', [], "NAME=VALUE flags of every run, instead of the recipe's, such as batch_size=16.")


def names(module) -> list[str]:
    """The losses of a module, as --loss calls them."""
    return [n[:-5] for n, _ in inspect.getmembers(module, inspect.isfunction) if n.endswith('_loss')]


def run(script: str, settings: str, name: str, **given) -> dict:
    """The summary of a run of a script with its recipe, in the folder `name`."""
    module = load_script(HERE / f'{script}.py')
    given |= {'max_steps': _STEPS.value} if _STEPS.value else {}
    given |= {'out': Path(_OUT.value) / name, 'data': _DATA.value}
    lines = [f'--flagfile={HERE}/recipes/{_RECIPE.value}_{script}.flags', *(f'--{part}' for part in _SET.value)]
    lines += [f'--{k}={v}' for k, v in given.items()]
    return module.train(parse(getattr(module, settings), lines))


def main(_):
    """Trains, and prints the table."""
    logging.set_verbosity(logging.WARNING)
    prepare_process()
    run('sft', 'SFTSettings', 'sft', model=_MODEL.value)
    start, summaries = Path(_OUT.value) / 'sft', {}
    for module, script, settings in ((preference, 'dpo', 'DPOSettings'), (unpaired, 'kto', 'KTOSettings')):
        for loss in names(module):
            if _LOSSES.value and loss not in _LOSSES.value:
                continue
            beta = {'beta': _BETAS[loss]} if loss in _BETAS else {}
            summaries[loss] = run(script, settings, loss, loss=loss, init_from=start, **beta)
    lines = ['| loss | held-out accuracy (95 %) | by length alone | pairs |', '|---|---|---|---|']
    for loss, s in summaries.items():
        interval = f'{s["eval_accuracy"]:.1%} ({s["eval_accuracy_low"]:.1%} to {s["eval_accuracy_high"]:.1%})'
        lines.append(f'| `{loss}` | {interval} | {s["length_baseline_accuracy"]:.1%} | {s["eval_pairs"]} |')
    if _RECIPE.value == 'pandalm':
        run('dpo', 'DPOSettings', 'agreement', loss='dpo', labels='agreement', init_from=start)
        run('dpo', 'DPOSettings', 'dpo', loss='dpo', init_from=start)
        soft, hard = (np.load(Path(_OUT.value) / name / 'eval_margins.npy') for name in ('agreement', 'dpo'))
        difference, low, high = paired_difference(soft > 0, hard > 0)
        lines.append(
            f'\nSoft labels of three annotators less majority labels: {difference:+.1%} ({low:+.1%} to {high:+.1%})'
        )
    print('\n'.join(lines))
    (Path(_OUT.value) / 'human_data.json').write_text(json.dumps(summaries, indent=2) + '\n')
    if RECORD.value:
        record(f'Human comparisons, {_RECIPE.value}', '\n'.join(lines))


if __name__ == '__main__':
    app.run(main)
