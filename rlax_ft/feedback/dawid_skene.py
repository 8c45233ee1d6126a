"""How reliable each annotator is, without gold answers: Dawid and Skene's model, fitted by EM.

Each unit has a true class; annotator a says l where it is k with probability pi_a[k, l] (Dawid and Skene, 1979).
Leaves out where labels come from.
"""

import dataclasses
import itertools
from collections import defaultdict

import numpy as np

from rlax_ft.data.feedback import preference

FIRST, TIE, SECOND = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Reliability:
    """What was fitted.

    Attributes:
      posterior: float[N, C], of each unit's class.
      confusion: float[A, C, C], what each annotator says (last axis) of each true class.
      prior: float[C].
    """

    posterior: np.ndarray
    confusion: np.ndarray
    prior: np.ndarray

    def accuracy(self) -> np.ndarray:
        """float[A], how often each says what is so, under the prior."""
        return np.einsum('c,acc->a', self.prior, self.confusion)


def dawid_skene(labels: np.ndarray, classes: int, *, steps: int = 200, smoothing: float = 0.01) -> Reliability:
    """Maximum likelihood by EM, begun from the shares of the votes.

    Args:
      labels: int[N, A], classes from 0, -1 where somebody did not judge.
      classes: C.
      steps: at most.
      smoothing: added to every count, so that nobody is sure beyond measure.
    """
    labels = np.asarray(labels)
    votes = (labels[:, :, None] == np.arange(classes)).astype(float)  # [N, A, C]
    posterior = votes.sum(axis=1) + 1e-9
    posterior /= posterior.sum(axis=1, keepdims=True)
    for _ in range(steps):
        prior = posterior.mean(axis=0)
        confusion = np.einsum('nk,nal->akl', posterior, votes) + smoothing
        confusion /= confusion.sum(axis=2, keepdims=True)
        logits = np.log(prior + 1e-12) + np.einsum('nal,akl->nk', votes, np.log(confusion))
        new = np.exp(logits - logits.max(axis=1, keepdims=True))
        new /= new.sum(axis=1, keepdims=True)
        done = np.abs(new - posterior).max() < 1e-7
        posterior = new
        if done:
            break
    return Reliability(posterior, confusion, prior)


def annotator_weights(rows: list[dict]) -> dict[str, float]:
    """A weight in [0, 1] for each annotator's votes: 2 p - 1, p the chance that he prefers what is better.

    0 is somebody who guesses, 1 somebody who never errs; where all are 0, all are 1.

    Args:
      rows: of feedback (rlax_ft/data/feedback.py).
    """
    labels, names = pair_labels(rows)
    if not len(labels):
        return {}
    fitted = dawid_skene(labels, 3)
    # A unit is no different with its two sides exchanged: both truths count alike. Half of the ties are right.
    sides = (fitted.confusion + fitted.confusion[:, ::-1, ::-1]) / 2
    right = sides[:, FIRST, FIRST] + sides[:, FIRST, TIE] / 2
    weights = np.clip(2 * right - 1, 0.0, 1.0)
    return {name: float(w) for name, w in zip(names, weights if weights.any() else np.ones(len(weights)))}


def pair_labels(rows: list[dict]) -> tuple[np.ndarray, list[str]]:
    """(int[N, A] of FIRST, TIE, SECOND or -1 for every pair of responses that was judged, names of the annotators)."""
    units: dict[tuple, dict] = defaultdict(dict)
    names: dict[str, int] = {}
    for row in rows:
        ranks = row.get('ranks') or []
        for i, j in itertools.combinations(range(len(ranks)), 2):
            column = names.setdefault(row['annotator'], len(names))
            label = {1.0: FIRST, 0.5: TIE, 0.0: SECOND}[preference(ranks, i, j)]
            units[row['item'], i, j].setdefault(column, label)  # A repetition tells nothing new of the item.
    labels = np.full((len(units), len(names)), -1)
    for n, said in enumerate(units.values()):
        for column, label in said.items():
            labels[n, column] = label
    return labels, list(names)
