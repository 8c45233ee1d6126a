"""`reviews`: a small grammar of film reviews, with a gold reward that parses them exactly.

    review := clause (("and" | "but") clause)* "."
    clause := "the" SUBJECT "was" ["not"] [INTENSIFIER] ADJECTIVE

It mirrors the sentiment experiment of the DPO paper (arXiv 2305.18290, section 6 and appendix C.1): the prompt is how
a review begins, the gold reward is its sentiment. Authors are a little more often displeased than pleased.
"""

import numpy as np

from rlax_ft.tasks.task import Task

SUBJECTS = ('acting', 'plot', 'music', 'dialogue', 'pacing', 'ending', 'humour', 'camera', 'direction', 'cast')
VALENCES = {
    **dict.fromkeys(('charming', 'clever', 'moving', 'funny', 'warm', 'lively'), 1.0),
    **dict.fromkeys(('brilliant', 'superb'), 2.0),
    **dict.fromkeys(('wooden', 'dull', 'slow', 'clumsy', 'flat', 'bland'), -1.0),
    **dict.fromkeys(('awful', 'dreadful'), -2.0),
}
INTENSIFIERS = {'very': 1.5, 'truly': 1.25, 'rather': 0.75, 'slightly': 0.5}
NEGATION = -0.5
CONJUNCTIONS = ('and', 'but')
UNGRAMMATICAL = -3.0

_POSITIVE = tuple(a for a, v in VALENCES.items() if v > 0)
_NEGATIVE = tuple(a for a, v in VALENCES.items() if v < 0)


def parse(text: str) -> list[tuple[str, float]] | None:
    """The clauses of a review as (subject, valence), or None where the text is not a review.

    A clause's valence is that of its adjective, times its intensifier (1.5, 1.25, 0.75, 0.5), times -0.5 if negated.
    """
    words = text.split()
    clauses = []
    at = 0

    def take(options):
        nonlocal at
        if at < len(words) and words[at] in options:
            at += 1
            return words[at - 1]
        return None

    while True:
        subject = take(('the',)) and take(SUBJECTS)
        if not (subject and take(('was',))):
            return None
        factor = NEGATION if take(('not',)) else 1.0
        factor *= INTENSIFIERS.get(take(INTENSIFIERS), 1.0)
        adjective = take(VALENCES)
        if adjective is None:
            return None
        clauses.append((subject, factor * VALENCES[adjective]))
        if take(('.',)):
            return clauses if at == len(words) else None
        if not take(CONJUNCTIONS):
            return None


def reward(prompt: str, completion: str) -> float:
    """The sum of the clauses' valences; a repeated subject counts once (the first time), ungrammatical text is -3."""
    clauses = parse(f'{prompt} {completion}')
    if clauses is None:
        return UNGRAMMATICAL
    first: dict[str, float] = {}
    for subject, valence in clauses:
        first.setdefault(subject, valence)
    return float(sum(first.values()))


def _prompts(rng: np.random.Generator, count: int) -> list[str]:
    subjects, longer = rng.integers(len(SUBJECTS), size=count), rng.random(count) < 0.5
    return [f'the {SUBJECTS[s]} was' if more else f'the {SUBJECTS[s]}' for s, more in zip(subjects, longer)]


def _demonstrate(rng: np.random.Generator, prompt: str) -> str:
    subject = prompt.split()[1]
    others = [s for s in SUBJECTS if s != subject]
    # Now and then an author comes back to what was said already.
    subjects = [subject, *rng.choice(others, size=2, replace=bool(rng.random() < 0.1))]
    words, last = [], 0.0
    for index in range(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2])):
        predicate, valence = _predicate(rng)
        if index:
            turns = valence * last < 0
            words.append('but' if turns != (rng.random() < 0.1) else 'and')
        words += ['the', str(subjects[index]), 'was', *predicate]
        last = valence
    return ' '.join([*words[len(prompt.split()) :], '.'])


def _predicate(rng):
    adjective = str(rng.choice(_POSITIVE if rng.random() < 0.46 else _NEGATIVE))
    words, valence = [], VALENCES[adjective]
    if rng.random() < 0.15:
        words.append('not')
        valence *= NEGATION
    if rng.random() < 0.3:
        words.append(str(rng.choice(list(INTENSIFIERS))))
    return [*words, adjective], valence


TASK = Task(
    name='reviews',
    words=('the', 'was', 'not', '.', *CONJUNCTIONS, *INTENSIFIERS, *SUBJECTS, *VALENCES),
    max_new_tokens=24,
    max_prompt_tokens=4,
    ends=True,
    prompts=_prompts,
    demonstrate=_demonstrate,
    reward=reward,
    grammatical=lambda prompt, completion: parse(f'{prompt} {completion}') is not None,
)
