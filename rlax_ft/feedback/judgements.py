"""The judgements file: what annotators, people or simulated, said about completions of one prompt.

One JSON object a line, {"prompt", "completions", "ranks", "annotator"}: a ranking record, so that every script reads
it with `--data`. Equal texts get equal ranks. Leaves out who judges.
"""

from collections.abc import Sequence

import numpy as np


def judgement(prompt: str, completions: Sequence[str], ranks: Sequence[int], annotator: str) -> dict:
    """One record; completions with the same text are tied at the best of their ranks."""
    best: dict[str, int] = {}
    for text, rank in zip(completions, ranks):
        best[text] = min(best.get(text, int(rank)), int(rank))
    order = {rank: place for place, rank in enumerate(sorted(set(best.values())))}
    return {
        'prompt': prompt,
        'completions': list(completions),
        'ranks': [order[best[text]] for text in completions],
        'annotator': annotator,
    }


def comparison_accuracy(judgements: Sequence[dict], scores: np.ndarray) -> float:
    """Share of the judged pairs of unequal rank that scores[N, K] order as the annotator did; a tie in scores is half."""
    right = total = 0.0
    for record, row in zip(judgements, scores):
        ranks = np.asarray(record['ranks'])
        better = ranks[:, None] < ranks[None, :]
        difference = np.sign(np.asarray(row)[:, None] - np.asarray(row)[None, :])
        right += float(((1 + difference) / 2)[better].sum())
        total += float(better.sum())
    return right / max(total, 1.0)
