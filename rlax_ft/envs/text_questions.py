"""`twenty_questions`: which of twelve things is meant? Questions cost, and the best policy is computed.

The assistant asks about one of the properties (`alive`), which is answered with yes or no at a cost of 0.05, or names a
thing (`whale`), which ends the game: 1 where it is the one, else 0. Other words cost as a question does.
"""

import functools

import numpy as np

from rlax_ft.envs.text import TextEnvironment, TextStep

COST, MAX_TURNS = 0.05, 20
PROPERTIES = ('alive', 'animal', 'big', 'flies', 'swims', 'legs', 'metal')
# A thing and the properties that it has.
THINGS = {
    'cat': 'alive animal legs',
    'eagle': 'alive animal flies legs',
    'horse': 'alive animal big legs',
    'whale': 'alive animal big swims',
    'trout': 'alive animal swims',
    'duck': 'alive animal flies swims legs',
    'oak': 'alive big',
    'moss': 'alive',
    'ship': 'big swims metal',
    'plane': 'big flies metal',
    'spoon': 'metal',
    'table': 'legs',
}
_HAS = {thing: frozenset(properties.split()) for thing, properties in THINGS.items()}


@functools.cache
def best_value(things: frozenset[str], turns: int) -> float:
    """The expected sum of rewards of the best policy, when one of these is meant and so many turns are left."""
    guess = 1.0 / len(things)
    if turns <= 1 or len(things) == 1:
        return guess
    values = [guess]
    for name in PROPERTIES:
        parts = [frozenset(t for t in things if (name in _HAS[t]) is side) for side in (True, False)]
        if all(parts):
            values.append(sum(len(part) / len(things) * best_value(part, turns - 1) for part in parts) - COST)
    return max(values)


def _records(count, seed):
    rng = np.random.default_rng([seed, 2])
    prompt = [{'role': 'user', 'content': 'Which?'}]
    return [{'prompt': prompt, 'thing': str(thing)} for thing in rng.choice(list(THINGS), size=count)]


def _reset(record):
    return (record['thing'], 0), record['prompt']


def _step(state, text):
    thing, turn = state
    said = text.strip().casefold()
    if said in THINGS:
        return TextStep((thing, turn + 1), [], float(said == thing), True)
    reply = ('yes' if said in _HAS[thing] else 'no') if said in PROPERTIES else 'what?'
    return TextStep((thing, turn + 1), [{'role': 'user', 'content': reply}], -COST, turn + 1 >= MAX_TURNS)


def _demonstrate(record, rng):
    """Asks at random until one thing is left, or, once in eight, names one that fits before that."""
    messages, left = [], set(THINGS)
    for name in rng.permutation(PROPERTIES).tolist():
        if len(left) == 1 or rng.random() < 1 / 8:
            break
        yes = name in _HAS[record['thing']]
        left = {thing for thing in left if (name in _HAS[thing]) is yes}
        messages += [{'role': 'assistant', 'content': name}, {'role': 'user', 'content': 'yes' if yes else 'no'}]
    return [*messages, {'role': 'assistant', 'content': str(rng.choice(sorted(left)))}]


TWENTY_QUESTIONS = TextEnvironment(
    'twenty_questions',
    _reset,
    _step,
    MAX_TURNS,
    records=_records,
    demonstrate=_demonstrate,
    optimum=lambda records: best_value(frozenset(THINGS), MAX_TURNS),
)
