"""`grid_words`: a walk to a goal on a grid, told in words; and the same world as an `Environment` (`grid_world`).

Both take their rules from one table, so that an agent of ppo_env.py (`--env=rlax_ft.envs.text_grid:grid_world`) and a
language model act in the same world: a step costs 0.1, the goal gives 1, and after 12 steps it is over.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.envs.environment import Box, Discrete, Environment, Step
from rlax_ft.envs.text import TextEnvironment, TextStep

SIDE, MAX_STEPS, STEP_REWARD, GOAL_REWARD = 4, 12, -0.1, 1.0
ACTIONS = ('north', 'south', 'west', 'east')
_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
_WALLS = frozenset({(1, 1), (2, 1), (1, 3)})
CELLS = tuple(cell for cell in itertools.product(range(SIDE), repeat=2) if cell not in _WALLS)


def _next_cell(cell, action):
    moved = tuple(a + b for a, b in zip(cell, _MOVES[action]))
    return moved if moved in CELLS else cell


# NEXT[cell, action] is the cell that follows, by number; who walks into a wall stays.
NEXT = np.asarray([[CELLS.index(_next_cell(cell, a)) for a in range(len(ACTIONS))] for cell in CELLS], np.int32)
# Every pair of different cells.
PAIRS = np.asarray([p for p in itertools.product(range(len(CELLS)), repeat=2) if p[0] != p[1]], np.int32)


def distance(start: int, goal: int) -> int:
    """Steps on the shortest way between two cells."""
    reached, steps = {start}, 0
    while goal not in reached:
        reached |= {int(NEXT[cell, a]) for cell in reached for a in range(len(ACTIONS))}
        steps += 1
    return steps


def grid_world() -> Environment:
    """The world for agents that see numbers: which cell they are on and which is the goal, one-hot each."""
    following, pairs, count = jnp.asarray(NEXT), jnp.asarray(PAIRS), len(CELLS)

    def seen(cell, goal):
        return jnp.concatenate([jax.nn.one_hot(cell, count), jax.nn.one_hot(goal, count)])

    def reset(key):
        cell, goal = pairs[jax.random.randint(key, (), 0, len(PAIRS))]
        return (cell, goal, jnp.int32(0)), seen(cell, goal)

    def step(key, state, action):
        cell, goal, steps = state
        cell, steps = following[cell, action], steps + 1
        there = cell == goal
        reward = STEP_REWARD + GOAL_REWARD * there.astype(jnp.float32)
        # The end of the day is part of the world: nothing would follow it.
        over = there | (steps >= MAX_STEPS)
        return (cell, goal, steps), Step(seen(cell, goal), reward, over, jnp.bool_(False))

    return Environment('grid_world', reset, step, Box.of((2 * count,), 0, 1), Discrete(len(ACTIONS)))


def _records(count, seed):
    rng = np.random.default_rng([seed, 2])
    records = []
    for start, goal in PAIRS[rng.integers(len(PAIRS), size=count)].tolist():
        records.append({'prompt': _told(start, goal), 'start': start, 'goal': goal})
    return records


def _told(cell, goal):
    place = lambda number: ','.join(map(str, CELLS[number]))  # noqa: E731
    return [{'role': 'user', 'content': f'at {place(cell)} to {place(goal)}'}]


def _reset(record):
    return (record['start'], record['goal'], 0), record['prompt']


def _step(state, text):
    cell, goal, steps = state
    said = text.strip().casefold()
    cell = int(NEXT[cell, ACTIONS.index(said)]) if said in ACTIONS else cell
    there = cell == goal
    reward = STEP_REWARD + GOAL_REWARD * there
    return TextStep((cell, goal, steps + 1), _told(cell, goal), reward, there or steps + 1 >= MAX_STEPS)


def _demonstrate(record, rng):
    """A walk that takes the shortest way with every second step, and any with the others."""
    (state, _), messages, done = _reset(record), [], False
    while not done:
        cell, goal, _ = state
        away = [distance(int(NEXT[cell, a]), goal) for a in range(len(ACTIONS))]
        action = int(np.argmin(away)) if rng.random() < 0.5 else int(rng.integers(len(ACTIONS)))
        state, told, _, done = _step(state, ACTIONS[action])
        messages += [{'role': 'assistant', 'content': ACTIONS[action]}, *([] if done else told)]
    return messages


def _optimum(records):
    """The mean over the records of what the shortest ways give."""
    return float(np.mean([GOAL_REWARD + STEP_REWARD * distance(r['start'], r['goal']) for r in records]))


GRID_WORDS = TextEnvironment(
    'grid_words', _reset, _step, MAX_STEPS, records=_records, demonstrate=_demonstrate, optimum=_optimum
)
