"""Figures: reward against KL, and learning curves. Their numbers come from frontier.py and curves.py."""

import math
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from rlax_ft.evaluate.curves import Curve

# A colour-blind safe palette (Okabe and Ito).
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')


def plot_frontier(
    path: str | Path,
    *,
    task: str,
    policies: dict[str, tuple[float, float]],
    traces: dict[str, list[tuple[float, float]]],
    best_of_n: dict[int, tuple[float, float]],
    optimum: list[tuple[float, float]],
    start: tuple[float, float],
) -> None:
    """Gold reward against KL(pi || pi_SFT): where each policy ended, how it got there, and two curves beside.

    Args:
      path: the PNG to write.
      task: the embedded task, whose small size the title says.
      policies: (KL, gold) by name, drawn as points.
      traces: (KL, gold) during training by the same names, drawn as thin lines.
      best_of_n: (KL, gold) by n, for growing n.
      optimum: (KL, gold) of pi* for falling beta, as far as samples of pi_SFT estimate it; its end is marked.
      start: (KL, gold) of the SFT policy.
    """
    with plt.rc_context({'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False}):
        figure, axes = plt.subplots(figsize=(7.2, 4.6), layout='constrained')
        axes.plot(*zip(*optimum), color='0.15', lw=1.4, label='optimum  π* ∝ π_SFT exp(r/β)')
        if len(optimum) > 1:
            axes.plot(*optimum[-1], marker='|', ms=11, mew=1.6, ls='', color='0.15')
            axes.annotate(
                f'π* is estimated up to here, {optimum[-1][0]:.2f} nats:\nfurther on too few SFT samples carry weight',
                optimum[-1],
                xytext=(-5, 8),
                textcoords='offset points',
                ha='right',
                fontsize=7.5,
                color='0.3',
            )
        look = dict(color='0.5', lw=1.2, ls='--', marker='o', ms=2.5)
        axes.plot(*zip(*best_of_n.values()), label='best of n by reward model, n below its points', **look)
        for n, point in best_of_n.items():
            axes.annotate(
                str(n), point, xytext=(0, -9), textcoords='offset points', ha='center', fontsize=6.5, color='0.4'
            )
        axes.plot(*start, marker='s', ms=7, ls='', color='0.15', label='SFT')
        for (name, point), colour in zip(policies.items(), _COLOURS):
            trace = traces.get(name, [])
            if trace:
                axes.plot(*zip(*[start, *trace]), color=colour, lw=1.0, alpha=0.55)
            axes.plot(*point, marker='o', ms=7, ls='', color=colour, mec='white', mew=0.8, label=name)
        axes.set_title(f'Toy task `{task}`: a vocabulary of tens of words, a small model, one seed', fontsize=10)
        axes.set_xlabel('KL(π ‖ π_SFT) of the whole completion, in nats')
        axes.set_ylabel('gold reward')
        furthest = max([point[0] for point in policies.values()] + [p[0] for t in traces.values() for p in t])
        axes.set_xlim(left=-0.05, right=max(furthest * 1.1, 1.0))
        shown = [y for x, y in [*optimum, *best_of_n.values()] if x <= axes.get_xlim()[1]] + [
            p[1] for p in policies.values()
        ]
        axes.set_ylim(min([start[1], *shown]) - 0.3, max([start[1], *shown]) + 0.3)
        axes.grid(alpha=0.2, lw=0.6)
        axes.legend(frameon=False, loc='lower right', fontsize=9)
        _save(figure, path)


def plot_curves(path: str | Path, curves: dict[str, list[Curve]], *, smooth: float = 0.0) -> None:
    """Learning curves, a panel a metric: the mean over seeds, in a band from the lowest to the highest seed.

    Args:
      path: the PNG to write.
      curves: by metric; a label has one colour in all panels.
      smooth: by which they were smoothed, to be said.
    """
    labels = list(dict.fromkeys(curve.label for row in curves.values() for curve in row))
    wide = min(len(curves), 3)
    rows = math.ceil(len(curves) / wide)
    with plt.rc_context({'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False}):
        figure, panels = plt.subplots(
            rows, wide, figsize=(4.6 * wide, 3.2 * rows + 0.25 * len(labels)), layout='constrained', squeeze=False
        )
        for axes, (metric, row) in zip(panels.flat, curves.items()):
            for curve in row:
                # After the colours come dashes.
                dashes, colour = divmod(labels.index(curve.label), len(_COLOURS))
                style = dict(color=_COLOURS[colour], ls=('-', '--', ':', '-.')[dashes % 4])
                mean, low, high = curve.centre()
                axes.plot(curve.steps, mean, lw=1.6, label=f'{curve.label} (n = {len(curve.values)})', **style)
                if len(curve.values) > 1:
                    axes.fill_between(curve.steps, low, high, color=_COLOURS[colour], alpha=0.18, lw=0)
            axes.set_title(metric, fontsize=10)
            axes.set_xlabel('step')
            axes.grid(alpha=0.2, lw=0.6)
        for axes in panels.flat[len(curves) :]:
            axes.set_visible(False)
        handles = {text: handle for axes in panels.flat for handle, text in zip(*axes.get_legend_handles_labels())}
        title = 'mean over n seeds; band: lowest to highest seed' + (f'; smoothed by {smooth:g}' if smooth else '')
        look = dict(frameon=False, fontsize=9, title_fontsize=9, alignment='left', loc='outside lower left')
        figure.legend(handles.values(), handles.keys(), title=title, **look)
        _save(figure, path)


def _save(figure, path):
    """Writes a figure whole or not at all."""
    temporary = Path(path).with_suffix('.tmp.png')
    figure.savefig(temporary, dpi=160)
    plt.close(figure)
    temporary.replace(path)
