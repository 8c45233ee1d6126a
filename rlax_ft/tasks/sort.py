"""`sort`: write five digits in order; a verifiable task whose demonstrations are right half of the time."""

from rlax_ft.tasks.task import Task

DIGITS = tuple('0123456789')
LENGTH = 5


def reward(prompt: str, completion: str) -> float:
    """1 if the completion is the prompt's digits in ascending order, else 0."""
    return float(completion.split() == sorted(prompt.split()[:LENGTH]))


def _prompts(rng, count):
    return [' '.join([*(DIGITS[d] for d in row), '=']) for row in rng.integers(10, size=(count, LENGTH))]


def _demonstrate(rng, prompt):
    answer = sorted(prompt.split()[:LENGTH])
    # The usual slip: two neighbours that differ change places.
    slips = [i for i in range(LENGTH - 1) if answer[i] != answer[i + 1]]
    if rng.random() < 0.5 and slips:
        i = int(rng.choice(slips))
        answer[i], answer[i + 1] = answer[i + 1], answer[i]
    return ' '.join(answer)


def _grammatical(_, completion):
    words = completion.split()
    return len(words) == LENGTH and all(word in DIGITS for word in words)


TASK = Task(
    name='sort',
    words=('=', *DIGITS),
    max_new_tokens=LENGTH + 1,
    max_prompt_tokens=LENGTH + 2,
    ends=True,
    prompts=_prompts,
    demonstrate=_demonstrate,
    reward=reward,
    grammatical=_grammatical,
)
