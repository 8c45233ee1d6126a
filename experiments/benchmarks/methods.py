"""compare.py with one of its recipes, its tables and figure put into RESULTS.md.

    python experiments/benchmarks/methods.py --recipe=reviews_compare --out=runs/reviews --record
    python experiments/benchmarks/methods.py --recipe=overoptimisation_compare --out=runs/overoptimisation --record

The first shows methods at equal KL beside best of n and the optimum, the second where gold reward turns down. What has
been run under --out is not repeated. Leaves out everything that is measured.
"""

import shutil
from pathlib import Path

from absl import app, flags, logging

from rlax_ft.harness.command_line import parse, prepare_process
from rlax_ft.harness.loading import load_script
from rlax_ft.harness.results import RECORD, record

HERE = Path(__file__).resolve().parent
# By recipe: title, sections of report.md, figure.
SHOWN = {
    'reviews_compare': ('Methods at equal KL', ('At equal KL', 'Every run'), 'frontier.png'),
    'overoptimisation_compare': ('Over-optimisation', ('Over-optimisation',), 'overoptimisation.png'),
}
_RECIPE = flags.DEFINE_enum('recipe', 'reviews_compare', list(SHOWN), 'Of compare.py.')
_OUT = flags.DEFINE_string('out', 'runs/compare', 'Folder of the runs.')
_SET = flags.DEFINE_list('set', [], "NAME=VALUE flags of compare.py, instead of the recipe's, such as num_seeds=1.")


def main(_):
    """Runs the comparison, or what is left of it, and prints its tables."""
    logging.set_verbosity(logging.WARNING)
    prepare_process()
    script = load_script(HERE.parent / 'compare.py')
    lines = [f'--flagfile={HERE.parent}/recipes/{_RECIPE.value}.flags', f'--out={_OUT.value}']
    script.compare(parse(script.CompareSettings, [*lines, *(f'--{part}' for part in _SET.value)]))
    title, names, figure = SHOWN[_RECIPE.value]
    parts = dict(part.split('\n', 1) for part in (Path(_OUT.value) / 'report.md').read_text().split('\n## ')[1:])
    tables = [without_figures(parts[name]) for name in names]
    print('\n\n'.join(tables))
    if RECORD.value:
        shutil.copy(Path(_OUT.value) / figure, HERE / f'{_RECIPE.value}.png')
        record(title, '\n\n'.join([*tables, f'![{title}]({_RECIPE.value}.png)']))


def without_figures(section: str) -> str:
    """A section of a report without the lines that show a figure."""
    return '\n'.join(line for line in section.strip().splitlines() if not line.startswith('!['))


if __name__ == '__main__':
    app.run(main)
