"""What a judge of two texts says when it is asked in both orders.

A verdict is the probability that the text shown first is the better one: 1, 0, 0.5 for a tie, or anything between.
Leaves out the judge.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class BothOrders:
    """Verdicts on N pairs of ours and theirs.

    Attributes:
      shown_first: float[N], verdicts where ours stood first.
      shown_second: float[N], verdicts where theirs stood first.
    """

    shown_first: np.ndarray
    shown_second: np.ndarray

    def wins(self) -> np.ndarray:
        """float[N], how far ours won over both orders: 1 or 0 where they agree, 0.5 where they contradict."""
        return (np.asarray(self.shown_first, np.float64) + 1.0 - np.asarray(self.shown_second, np.float64)) / 2.0

    def position_bias(self) -> float:
        """Mean verdict for the text shown first, less 0.5: above 0 the first place helps; 0 for a fair judge."""
        return float((np.mean(self.shown_first) + np.mean(self.shown_second)) / 2.0 - 0.5)

    def consistency(self) -> float:
        """Share of pairs on which both orders name the same winner, or both a tie."""
        return float(
            np.mean(np.sign(np.asarray(self.shown_first) - 0.5) == np.sign(0.5 - np.asarray(self.shown_second)))
        )


def outcome_shares(wins: np.ndarray) -> tuple[float, float, float]:
    """(won, tied, lost) as shares; a tie is exactly 0.5."""
    wins = np.asarray(wins)
    return float((wins > 0.5).mean()), float((wins == 0.5).mean()), float((wins < 0.5).mean())
