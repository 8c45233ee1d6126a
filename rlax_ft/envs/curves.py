"""The learning curve of several runs: training and evaluation, interquartile means with bootstrap intervals.

The statistics are those of Agarwal et al. (arXiv 2108.13264).
"""

import dataclasses
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use('Agg')
import matplotlib.pyplot as plt

_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')


@dataclasses.dataclass(frozen=True)
class Curve:
    """What one setting's seeds reached.

    Attributes:
      label: of the setting; empty where there is only one.
      steps: [records], environment steps.
      returns: [records, seeds], of episodes in training; NaN where none ended.
      eval_steps: [evaluations].
      eval_returns: [evaluations, seeds].
    """

    label: str
    steps: np.ndarray
    returns: np.ndarray
    eval_steps: np.ndarray
    eval_returns: np.ndarray


def interquartile_mean(x: np.ndarray) -> np.ndarray:
    """The mean of the middle half along the last axis; a value that a quartile cuts counts by the part inside."""
    x = np.sort(np.asarray(x, float), axis=-1)
    edges = np.arange(x.shape[-1] + 1) / x.shape[-1]
    inside = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return x @ (inside / inside.sum())


def bootstrap_interval(x: np.ndarray, *, level: float = 0.95, draws: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """(low, high): percentiles of the interquartile mean when the last axis (seeds) is drawn again with replacement."""
    x = np.asarray(x, float)
    picks = np.random.default_rng(0).integers(0, x.shape[-1], (draws, x.shape[-1]))
    means = np.stack([interquartile_mean(x[..., pick]) for pick in picks])
    tail = 50.0 * (1.0 - level)
    return tuple(np.percentile(means, [tail, 100.0 - tail], axis=0))


def smoothed(x: np.ndarray, window: int) -> np.ndarray:
    """The mean over the last `window` records of each column, NaN left out; NaN where there is nothing yet."""
    x = np.asarray(x, float)
    seen = np.isfinite(x)
    sums, counts = np.cumsum(np.where(seen, x, 0.0), axis=0), np.cumsum(seen, axis=0)
    before = lambda totals: totals - np.concatenate([np.zeros((window, x.shape[1])), totals])[: len(x)]  # noqa: E731
    counts = before(counts)
    return np.where(counts > 0, before(sums) / np.maximum(counts, 1), np.nan)


def plot_learning_curve(path: str | Path, curves: list[Curve], *, title: str, evaluated: str) -> None:
    """Draws curves: training smoothed (each seed thin, their interquartile mean thick), evaluations as points.

    Bands and bars are 95 % bootstrap intervals over seeds, where there are several.

    Args:
      path: the PNG to write.
      curves: of one setting each.
      title: of the figure.
      evaluated: what an evaluation is, for the legend.
    """
    with plt.rc_context({'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False}):
        figure, axes = plt.subplots(figsize=(7.0, 4.4), layout='constrained')
        for curve, colour in zip(curves, _COLOURS * len(curves)):
            _draw(axes, curve, colour, evaluated)
        seeds = curves[0].returns.shape[1]
        over = f': interquartile mean and 95 % bootstrap interval of {seeds} seeds' if seeds > 1 else ', 1 seed'
        axes.set_title(title + over, fontsize=10)
        axes.set_xlabel('environment steps of a seed')
        axes.set_ylabel('undiscounted episode return')
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=''))
        axes.grid(alpha=0.2, lw=0.6)
        axes.legend(frameon=False, fontsize=8)
        temporary = Path(path).with_suffix('.tmp.png')
        figure.savefig(temporary, dpi=160)
        plt.close(figure)
    temporary.replace(path)


def _draw(axes, curve, colour, evaluated):
    window = max(1, len(curve.steps) // 20)
    returns = smoothed(curve.returns, window)
    seen = np.isfinite(returns).all(axis=1)
    steps, returns, seeds = np.asarray(curve.steps, float)[seen], returns[seen], curve.returns.shape[1]
    label = f'{curve.label}, ' if curve.label else ''
    if len(steps):
        mean = interquartile_mean(returns)
        if seeds > 1:
            axes.plot(steps, returns, color=colour, lw=0.6, alpha=0.3)
            axes.fill_between(steps, *bootstrap_interval(returns), color=colour, alpha=0.2, lw=0)
        name = f'{label}training, mean of the last {window} records' if window > 1 else f'{label}training'
        axes.plot(steps, mean, color=colour, lw=1.6, label=name)
    if len(curve.eval_steps):
        mean = interquartile_mean(curve.eval_returns)
        low, high = bootstrap_interval(curve.eval_returns)
        bars = np.clip([mean - low, high - mean], 0.0, None) if seeds > 1 else None
        axes.errorbar(
            curve.eval_steps,
            mean,
            yerr=bars,
            color=colour,
            fmt='o',
            ms=5,
            capsize=3,
            mec='white',
            label=f'{label}evaluation, {evaluated}',
            zorder=3,
        )
