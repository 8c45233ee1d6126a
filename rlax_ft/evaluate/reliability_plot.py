"""The reliability diagram: how often predicted winners win, by how surely they were predicted.

Leaves out its numbers (calibration.py).
"""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from rlax_ft.evaluate.calibration import Reliability

_COLOURS = ('#D55E00', '#0072B2', '#009E73')


def plot_reliability(path: str | Path, curves: dict[str, Reliability]) -> None:
    """A curve for each of several forms of one model, beside the diagonal; point sizes are shares of the pairs.

    Args:
      path: the PNG to write, whole or not at all.
      curves: by label.
    """
    with plt.rc_context({'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False}):
        figure, axes = plt.subplots(figsize=(4.8, 4.4), layout='constrained')
        axes.plot((0.5, 1), (0.5, 1), color='0.6', lw=1, ls='--', label='calibrated')
        for (label, curve), colour in zip(curves.items(), _COLOURS):
            kept = curve.count > 0
            points = curve.confidence[kept], curve.accuracy[kept]
            axes.plot(*points, color=colour, lw=1.2, label=f'{label}: expected error {curve.error:.3f}')
            axes.scatter(*points, s=300 * curve.count[kept] / curve.count.sum() + 8, color=colour, alpha=0.6, lw=0)
        axes.set_xlim(0.49, 1.01)
        axes.set_xlabel('probability given to the predicted winner')
        axes.set_ylabel('how often it wins, held out')
        axes.grid(alpha=0.2, lw=0.6)
        axes.legend(frameon=False, fontsize=9)
        temporary = Path(path).with_suffix('.tmp.png')
        figure.savefig(temporary, dpi=160)
        plt.close(figure)
        temporary.replace(path)
