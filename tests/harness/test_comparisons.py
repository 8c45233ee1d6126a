"""What is held out of comparisons: whole prompts of a user's data, and whole rankings of a task's."""

import types

import pytest

from rlax_ft.data.records import write_records
from rlax_ft.harness.comparisons import comparisons


@pytest.mark.parametrize('task', ['', 'reviews'])
@pytest.mark.parametrize('rankings', [False, True])
def test_no_ranking_stands_on_both_sides(tmp_path, task, rankings):
    # Few prompts, many rankings; each answer names the ranking that it belongs to.
    records = [
        {'prompt': f'p{i % 4}', 'completions': [f'{i} a', f'{i} b', f'{i} c'], 'ranks': [0, 1, 2]} for i in range(40)
    ]
    write_records(tmp_path / 'judgements.jsonl', records)
    data = str(tmp_path / 'judgements.jsonl')
    settings = types.SimpleNamespace(data=data, task=task, eval_data='', seed=0)
    sides = comparisons(settings, None, rankings=rankings)

    def numbers(side):
        return {(record['completions'][0] if rankings else record['chosen']).split()[0] for record in side}

    assert not numbers(sides[0]) & numbers(sides[1]) and len(numbers(sides[0]) | numbers(sides[1])) == 40
    assert sum(map(len, sides)) == (40 if rankings else 120)
    prompts = [{record['prompt'] for record in side} for side in sides]
    assert bool(prompts[0] & prompts[1]) == bool(task)
