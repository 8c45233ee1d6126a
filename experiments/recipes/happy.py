"""A rule for ppo.py on models of little stories: is somebody happy?

    python experiments/ppo.py --flagfile=experiments/recipes/stories_ppo.flags --model=FOLDER

Leaves out how well the story is written: the KL to the starting model has to see to that.
"""

import re

_HAPPY = re.compile(r'\b(?:was|were|is|are|felt|feel|feels|became|so|very)(?: (?:so|very|all|both))* happy\b')


def somebody_is_happy(prompt: str, completion: str) -> float:
    """1 where the completion says that somebody is happy, else 0; saying it twice earns nothing."""
    return float(bool(_HAPPY.search(completion)))
