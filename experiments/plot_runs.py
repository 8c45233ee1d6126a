"""Learning curves of several runs side by side, with bands over seeds, as a PNG and a Markdown table.

    python experiments/plot_runs.py runs/dpo runs/ipo --metrics=loss,eval/gold
    python experiments/plot_runs.py runs/beta_* --metrics=eval/gold,eval/kl --group_by=beta --smooth=0.6 --out=beta.png

Runs whose flags differ in nothing but the seed are one curve: their mean, in a band from the lowest to the highest.
With --group_by runs of equal values of those flags are. The table, of each metric's mean over the last tenth of the
steps, is printed, and written beside the PNG.
"""

import argparse
import sys
from pathlib import Path

from rlax_ft.errors import InputError
from rlax_ft.evaluate.curves import check_metric, curve_table, group_runs, make_curve, mixed_flags, read_run
from rlax_ft.evaluate.plots import plot_curves


def main(folders: list[str], metrics: list[str], group_by: list[str], smooth: float, out: Path) -> None:
    """Draws the curves and prints the table."""
    if not 0 <= smooth < 1:
        raise InputError(f'--smooth={smooth}: must be at least 0 and below 1')
    if out.suffix != '.png':
        raise InputError(f'--out={out}: a figure is written as .png; give {out.with_suffix(".png")}')
    runs = [read_run(folder) for folder in dict.fromkeys(folders)]
    groups = group_runs(runs, group_by)
    for label, members in groups.items():
        if mixed := mixed_flags(members):
            warn(f'{label}: its {len(members)} runs differ in --{", --".join(mixed)}, too, and are averaged')
    curves = {}
    for metric in metrics:
        check_metric(metric, runs)
        made = {label: make_curve(label, members, metric, smooth=smooth) for label, members in groups.items()}
        curves[metric] = [curve for curve in made.values() if curve is not None]
        if missing := [label for label, curve in made.items() if curve is None]:
            warn(f'{metric}: not in {"; ".join(missing)}')
        for curve in curves[metric]:
            if curve.dropped:
                warn(f'{metric}: {curve.dropped} values of {curve.label} are no finite numbers and are left out')
    table = curve_table(curves)
    out.parent.mkdir(parents=True, exist_ok=True)
    plot_curves(out, curves, smooth=smooth)
    out.with_suffix('.md').write_text(table + '\n')
    print(f'{table}\n\n{out}, {out.with_suffix(".md")}')


def warn(text: str) -> None:
    """A line on standard error."""
    print(f'warning: {text}', file=sys.stderr)


def listed(text: str) -> list[str]:
    """`a,b` as a list."""
    return [part for part in text.split(',') if part]


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='run folders')
    parser.add_argument('--metrics', type=listed, default=['loss'], help='names in metrics.jsonl, a panel each: loss')
    parser.add_argument('--group_by', type=listed, default=[], help='flags whose values make a curve')
    parser.add_argument('--smooth', type=float, default=0.0, help='0 to 1: share of the running mean that stays: 0')
    parser.add_argument('--out', type=Path, default=Path('curves.png'), help='the figure: curves.png')
    arguments = parser.parse_args()
    try:
        main(arguments.runs, arguments.metrics or ['loss'], arguments.group_by, arguments.smooth, arguments.out)
    except (InputError, OSError) as error:
        parser.exit(2, f'error: {" ".join(str(error).split())}\n')
