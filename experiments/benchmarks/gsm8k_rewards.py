"""Holds a reward for GSM8K against the graded solutions that its authors published, and lists each disagreement.

    python experiments/benchmarks/gsm8k_rewards.py --data=../shared/data/gsm8k/example_model_solutions.jsonl

The file (github.com/openai/grade-school-math) has four models' solutions of 1,319 problems, each with the label
`is_correct`. Exit code 1 where fewer than --at_least agree.
"""

import sys

from absl import app, flags

from rlax_ft.data.sources import read_raw
from rlax_ft.errors import InputError
from rlax_ft.rewards.named import NAMED, named_reward

_DATA = flags.DEFINE_string('data', '', 'The file example_model_solutions.jsonl.')
_REWARD = flags.DEFINE_string('reward', 'maths', 'maths, last_number, symbolic, ... with options in brackets.')
_AT_LEAST = flags.DEFINE_float('at_least', 0.995, 'Share of the labels that must agree.')


def graded(path: str) -> tuple[list[dict], list[str], list[bool]]:
    """(records with their right answer, solutions, labels)."""
    records, solutions, labels = [], [], []
    for raw, where in read_raw(path):
        for model, graded in raw.items():
            if isinstance(graded, dict):
                records.append({'answer': raw['ground_truth'], 'where': f'{where}, {model}'})
                solutions.append(graded['solution'])
                labels.append(graded['is_correct'])
    return records, solutions, labels


def main(_):
    """Prints each disagreement, and how many there are."""
    try:
        reward = named_reward(_REWARD.value)
        if reward is None:
            raise InputError(f'--reward={_REWARD.value}: one of {", ".join(NAMED)}')
        records, solutions, labels = graded(_DATA.value)
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    wrong = 0
    for record, solution, label, score in zip(records, solutions, labels, reward(records, solutions)):
        if (score == 1.0) != label:
            wrong += 1
            answer, end = record['answer'].splitlines()[-1], solution.splitlines()[-1:]
            print(f'{record["where"]}: label {label}, reward {score:g}; right {answer!r}, the solution ends {end}')
    agree = 1 - wrong / len(labels)
    print(f'{_REWARD.value}: {len(labels) - wrong} of {len(labels)} labels agree ({agree:.2%})')
    if agree < _AT_LEAST.value:
        sys.exit(1)


if __name__ == '__main__':
    app.run(main)
