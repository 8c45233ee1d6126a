"""How varied texts are."""

from collections.abc import Sequence


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words over all n-grams, of all texts together (arXiv 1510.03055); 0 where there is none.

    It falls as texts are added, so compare equal numbers of them.
    """
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def distinct_share(texts: Sequence[str]) -> float:
    """Share of texts that differ: 1 where none stands there twice."""
    return len(set(texts)) / len(texts) if texts else 0.0
