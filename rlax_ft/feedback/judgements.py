"""The judgements file: what annotators, people or simulated, said about completions of one prompt.

One JSON object a line, {"prompt", "completions", "ranks", "annotator"}: a ranking record, so that every script reads
it with `--data`. Equal texts get equal ranks. Leaves out who judges.
"""

from collections.abc import Sequence


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
