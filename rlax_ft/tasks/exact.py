"""`exact`: four prompts with 6^4 completions each, few enough to enumerate.

Whatever an algorithm claims about pi* = pi_ref exp(r / beta) / Z can be checked here by computing, not by sampling.
The reward of a completion is a fixed table of its letters by place, plus one of neighbouring letters.
"""

import itertools

import numpy as np

from rlax_ft.tasks.task import Task

PROMPTS = ('north', 'east', 'south', 'west')
LETTERS = ('a', 'b', 'c', 'd', 'e', 'f')
LENGTH = 4

_rng = np.random.default_rng(20)
_BY_PLACE = _rng.normal(size=(len(PROMPTS), LENGTH, len(LETTERS))) * 0.5
_BY_NEIGHBOURS = _rng.normal(size=(len(LETTERS), len(LETTERS))) * 0.3
# How authors go on from a letter, by prompt and letter before; before the first stands letter 0.
HABIT = _rng.dirichlet(np.full(len(LETTERS), 2.0), size=(len(PROMPTS), len(LETTERS)))


def reward(prompt: str, completion: str) -> float:
    """sum_t a[x, t, y_t] + sum_t b[y_t, y_{t+1}]; anything else than four letters is -3."""
    if not grammatical(prompt, completion):
        return -3.0
    y = [LETTERS.index(letter) for letter in completion.split()]
    places = sum(_BY_PLACE[PROMPTS.index(prompt), t, letter] for t, letter in enumerate(y))
    return float(places + sum(_BY_NEIGHBOURS[a, b] for a, b in itertools.pairwise(y)))


def grammatical(_, completion: str) -> bool:
    """Whether the completion is four letters."""
    letters = completion.split()
    return len(letters) == LENGTH and all(letter in LETTERS for letter in letters)


def completions() -> list[str]:
    """All 1,296 completions."""
    return [' '.join(letters) for letters in itertools.product(LETTERS, repeat=LENGTH)]


def _prompts(rng, count):
    return [PROMPTS[i] for i in rng.integers(len(PROMPTS), size=count)]


def _demonstrate(rng, prompt):
    letters, state = [], 0
    for _ in range(LENGTH):
        state = rng.choice(len(LETTERS), p=HABIT[PROMPTS.index(prompt), state])
        letters.append(LETTERS[state])
    return ' '.join(letters)


TASK = Task(
    name='exact',
    words=(*PROMPTS, *LETTERS),
    max_new_tokens=LENGTH,
    max_prompt_tokens=2,
    ends=False,
    prompts=_prompts,
    demonstrate=_demonstrate,
    reward=reward,
    grammatical=grammatical,
)
