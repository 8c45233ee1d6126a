"""Figures: reward against KL, over-optimisation, learning curves, policies side by side, reliability.

Their numbers come from frontier.py, comparison.py, curves.py and calibration.py.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

from rlax_ft.evaluate.calibration import Reliability
from rlax_ft.evaluate.comparison import MethodCurve
from rlax_ft.evaluate.curves import Curve
from rlax_ft.evaluate.frontier import Point

# A colour-blind safe palette (Okabe and Ito), and marks that tell its repetitions apart.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_MARKS = ('o', 'D', '^', 'v', 's', 'P')
_STYLE: Any = {'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False}


def plot_frontier(
    path: str | Path,
    *,
    title: str,
    methods: Sequence[MethodCurve],
    best_of_n: dict[str, dict[int, Point]],
    optimum: Sequence[Point],
    start: Point,
) -> None:
    """Gold reward against KL(pi || pi_ref): a curve or a point for each method, best of n and the optimum.

    Args:
      path: the PNG to write.
      title: says how small the task is, and over how many seeds.
      methods: a curve over betas with its band from the lowest to the highest seed; or where each seed ended, the
        mean with its interval, and how the first got there.
      best_of_n: by the reward model's name, (KL, gold) by n.
      optimum: (KL, gold) of pi* for falling beta, as far as samples estimate it; its end is marked.
      start: (0, gold) of the reference.
    """
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7.6, 5.0), layout='constrained')
        # A policy that strays in training leaves the frame: it is where policies end that matters.
        right = max(1.25 * max([point[0] for m in methods for seed in m.seeds for point in seed] or [0.0]), 1.0)
        _draw_optimum(axes, [point for point in optimum if point[0] <= 1.2 * right])
        for number, (name, points) in enumerate(best_of_n.items()):
            _draw_best_of_n(axes, name, points, right, dashes=('--', ':', '-.')[number % 3], numbered=number == 0)
        axes.plot(*start, marker='s', ms=7, ls='', color='0.15', label='reference π_SFT')
        for number, method in enumerate(methods):
            _draw_method(axes, method, start, number)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel('KL(π ‖ π_SFT) of the whole completion, in nats')
        axes.set_ylabel('gold reward')
        axes.set_xlim(-0.03 * right, right)
        shown = [y for x, y in [*optimum, *(p for points in best_of_n.values() for p in points.values())] if x <= right]
        shown += [y for method in methods for seed in method.seeds for _, y in seed]
        low, high = min([start[1], *shown]), max([start[1], *shown])
        axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
        axes.grid(alpha=0.2, lw=0.6)
        axes.legend(frameon=True, framealpha=0.9, edgecolor='none', loc='lower right', fontsize=8.5)
        _save(figure, path)


def _draw_optimum(axes, optimum):
    axes.plot(*zip(*optimum), color='0.15', lw=1.4, label='optimum  π* ∝ π_SFT exp(r/β)')


def _draw_best_of_n(axes, name, points, right, *, dashes, numbered):
    shown = {n: point for n, point in points.items() if point[0] <= right}
    look = dict(color='0.5', lw=1.2, ls=dashes, marker='o', ms=2.5)
    axes.plot(
        *zip(*shown.values()), label=f'best of n by {name}' + (', n below its points' if numbered else ''), **look
    )
    for n, point in shown.items() if numbered else ():
        if n > 1:
            axes.annotate(
                str(n), point, xytext=(3, -9), textcoords='offset points', ha='center', fontsize=6.5, color='0.4'
            )


def _draw_method(axes, method, start, number):
    colour, mark = _COLOURS[number % len(_COLOURS)], _MARKS[number % len(_MARKS)]
    if method.trace:
        axes.plot(*zip(*[start, *method.trace]), color=colour, lw=1.0, alpha=0.45)
    point = dict(color=colour, marker=mark, ms=6.5, mec='white', mew=0.8)
    several = len(method.seeds) > 1
    label = method.label + (f' ({len(method.seeds)} seeds)' if several else '')
    if method.box:
        ends = [seed[-1] for seed in method.seeds]
        (kl, gold), (kl_low, kl_high, low, high) = np.mean(ends, axis=0), method.box
        errors = dict(xerr=[[kl - kl_low], [kl_high - kl]], yerr=[[gold - low], [high - gold]])
        axes.errorbar(kl, gold, **errors, ls='', elinewidth=1.2, label=label, **point)
        if several:
            axes.plot(*zip(*ends), ls='', marker='.', ms=5, color=colour, alpha=0.7)
        return
    kl, mean, low, high = method.band(start)
    if several:
        axes.fill_between(kl, low, high, color=colour, alpha=0.15, lw=0)
    axes.plot(kl, mean, color=colour, lw=1.6)
    axes.plot(*zip(*(p for _, p in method.betas)), ls='', label=label, **point)
    for beta, place in method.betas:
        axes.annotate(
            f'β {beta:g}', place, xytext=(5, -10), textcoords='offset points', fontsize=6.5, color=colour, clip_on=True
        )


def plot_overoptimisation(
    path: str | Path, *, title: str, panels: dict[str, dict[str, tuple[list[list[Point]], list[list[Point]]]]]
) -> None:
    """Gold reward and reward model's score against KL, what both gained over the reference: a panel a method.

    Args:
      path: the PNG to write.
      title: says how small the task is.
      panels: for each method and each reward model (seeds' (KL, gold), seeds' (KL, score)), the reference first. Gold
        is drawn whole, with its peak marked; the score, which is what was maximised, dashed.
    """
    models = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    wide = min(len(panels), 3)
    rows = math.ceil(len(panels) / wide)
    with plt.rc_context(_STYLE):
        figure, grid = plt.subplots(
            rows, wide, figsize=(1.2 + 3.6 * wide, 0.9 + 3.2 * rows), layout='constrained', squeeze=False, sharey=True
        )
        for axes, (method, panel) in zip(grid.flat, panels.items()):
            for model, (golds, scores) in panel.items():
                colour = _COLOURS[models.index(model) % len(_COLOURS)]
                for seeds, dashes in ((golds, '-'), (scores, '--')):
                    if seeds:
                        _draw_gain(axes, seeds, colour, dashes, mark_peak=dashes == '-')
            axes.axhline(0.0, color='0.7', lw=0.8, zorder=0)
            axes.set_title(method, fontsize=10)
            axes.set_xlabel('KL(π ‖ π_SFT), in nats')
            axes.grid(alpha=0.2, lw=0.6)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel('gain over π_SFT')
        line = lambda **look: plt.Line2D([], [], **look)  # noqa: E731
        handles = [line(color=_COLOURS[i % len(_COLOURS)], lw=2, label=model) for i, model in enumerate(models)]
        handles += [
            line(color='0.3', lw=1.6, label='gold reward'),
            line(color='0.3', lw=1.3, ls='--', label="the reward model's score"),
            line(color='0.3', marker='v', ls='', label='peak of the gold reward'),
        ]
        figure.suptitle(title, fontsize=10)
        figure.legend(
            handles=handles, loc='outside lower center', ncols=min(len(handles), 4), frameon=False, fontsize=9
        )
        _save(figure, path)


def _draw_gain(axes, seeds, colour, dashes, *, mark_peak):
    """The mean gain over seeds in a band from the lowest to the highest, and its peak."""
    gains = [[(kl, value - seed[0][1]) for kl, value in seed] for seed in seeds]
    kl, mean, low, high = MethodCurve('', gains).band((0.0, 0.0))
    axes.plot(kl, mean, color=colour, lw=1.6 if dashes == '-' else 1.3, ls=dashes)
    if len(seeds) > 1:
        axes.fill_between(kl, low, high, color=colour, alpha=0.12, lw=0)
    if mark_peak:
        top = mean.argmax()
        axes.plot(kl[top], mean[top], marker='v', ms=7, color=colour, mec='white', mew=0.8)


def plot_bars(
    path: str | Path, panels: dict[str, list[tuple[str, float, float | None, float | None]]], title: str = ''
):
    """Models side by side, a panel a number: a point with its interval for each model.

    Args:
      path: the PNG to write.
      panels: for each number (model, value, lower, upper) of each model; without an interval None.
      title: above all.
    """
    names = list(dict.fromkeys(row[0] for rows in panels.values() for row in rows))
    wide = min(len(panels), 4)
    rows = math.ceil(len(panels) / wide)
    longest = max(len(name) for name in names)
    with plt.rc_context(_STYLE):
        size = (0.09 * longest + 2.5 * wide + 0.4, rows * (0.9 + 0.3 * len(names)) + 0.3)
        figure, grid = plt.subplots(rows, wide, figsize=size, layout='constrained', squeeze=False, sharey=True)
        for axes, (panel, values) in zip(grid.flat, panels.items()):
            for name, value, low, high in values:
                place, colour = names.index(name), _COLOURS[names.index(name) % len(_COLOURS)]
                if low is not None and high is not None:
                    axes.plot([low, high], [place, place], color=colour, lw=1.8, alpha=0.6)
                axes.plot(value, place, marker='o', ms=6.5, color=colour, mec='white', mew=0.8)
            axes.set_title(panel, fontsize=10)
            axes.margins(x=0.12)
            # A difference of nothing is not to fill a panel.
            left, right = axes.get_xlim()
            axes.set_xlim(min(left, (left + right) / 2 - 0.05), max(right, (left + right) / 2 + 0.05))
            axes.grid(alpha=0.2, lw=0.6)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        grid[0, 0].set_yticks(range(len(names)), names)
        grid[0, 0].set_ylim(len(names) - 0.5, -0.5)
        figure.suptitle(title, fontsize=10)
        _save(figure, path)


def plot_reliability(path: str | Path, curves: dict[str, Reliability]) -> None:
    """Accuracy against confidence for each judge; the diagonal is a calibrated one, and marks grow with their count.

    Args:
      path: the PNG to write.
      curves: by judge.
    """
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(4.6, 4.0 + 0.22 * len(curves)), layout='constrained')
        axes.plot([0.5, 1.0], [0.5, 1.0], color='0.6', lw=1.0, ls='--', label='calibrated')
        for number, (name, curve) in enumerate(curves.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            kept = curve.count > 0
            points = curve.confidence[kept], curve.accuracy[kept]
            axes.plot(*points, color=colour, lw=1.4, label=f'{name}: error {curve.error:.3f}')
            sizes = 10 + 90 * curve.count[kept] / curve.count.max()
            axes.scatter(*points, s=sizes, color=colour, edgecolor='white', lw=0.8, zorder=3)
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(top=1.03)
        axes.set_xlabel('confidence σ(|margin|)')
        axes.set_ylabel('accuracy')
        axes.grid(alpha=0.2, lw=0.6)
        figure.legend(frameon=False, loc='outside lower left', fontsize=8.5)
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
    with plt.rc_context(_STYLE):
        width = 4.6 * wide
        lines = sum(_wrapped(label, width).count('\n') + 1 for label in labels)
        figure, panels = plt.subplots(
            rows, wide, figsize=(width, 3.2 * rows + 0.25 * lines), layout='constrained', squeeze=False
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
        texts = [_wrapped(text, width) for text in handles]
        legend = figure.legend(list(handles.values()), texts, title=title, loc='outside lower left', fontsize=9)
        legend.set_frame_on(False)
        legend.set_alignment('left')
        legend.get_title().set_fontsize(9)
        _save(figure, path)


def _wrapped(text, inches):
    """A legend's text in lines that a figure of this width has room for, at 9 points."""
    return textwrap.fill(text, max(int(10 * inches) - 6, 20))


def _save(figure, path):
    """Writes a figure whole or not at all."""
    temporary = Path(path).with_suffix('.tmp.png')
    figure.savefig(temporary, dpi=160)
    plt.close(figure)
    temporary.replace(path)
