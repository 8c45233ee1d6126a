"""The embedded tasks: the gold reward by hand, demonstrations that fit their limits, seeds that repeat."""

import numpy as np
import pytest

from rlax_ft.errors import InputError
from rlax_ft.tasks import TASKS, exact, get_task, reviews, sort


@pytest.mark.parametrize(
    ('completion', 'gold'),
    [
        ('was charming .', 1.0),
        ('was not charming .', -0.5),
        ('was very wooden but the plot was charming .', -0.5),
        ('was not very awful .', 1.5),
        ('was superb and the acting was superb .', 2.0),  # a repeated subject counts once
        ('was superb and the plot was superb and the music was slightly dull .', 3.5),
        ('was superb', -3.0),  # no end
        ('was superb . .', -3.0),
        ('was very not superb .', -3.0),
        ('superb .', -3.0),
        ('was superb and .', -3.0),
        ('', -3.0),
    ],
)
def test_reviews_are_parsed(completion, gold):
    assert reviews.reward('the acting', completion) == gold


def test_sort_by_hand():
    assert sort.reward('3 1 4 1 5 =', '1 1 3 4 5') == 1.0
    assert sort.reward('3 1 4 1 5 =', '1 1 3 5 4') == 0.0
    assert sort.reward('3 1 4 1 5 =', '1 1 3 4 5 5') == 0.0


def test_exact_is_enumerable():
    assert len(exact.completions()) == 6**4 == len(set(exact.completions()))
    assert exact.reward('north', 'a b c') == -3.0
    # The reward is places plus neighbours: a swap of the second prompt's table changes nothing but its own share.
    total = exact.reward('north', 'a b c d') - exact.reward('east', 'a b c d')
    places = sum(exact._BY_PLACE[0, t, t] - exact._BY_PLACE[1, t, t] for t in range(4))
    assert total == pytest.approx(places)


@pytest.mark.parametrize('task', TASKS.values(), ids=list(TASKS))
def test_demonstrations_fit_and_repeat(task):
    records = task.demonstrations(500, seed=3)
    assert records == task.demonstrations(500, seed=3) != task.demonstrations(500, seed=4)
    for record in records:
        words = record['completion'].split()
        assert set(words) <= set(task.words) and set(record['prompt'].split()) <= set(task.words)
        assert len(words) + task.ends <= task.max_new_tokens
        assert len(record['prompt'].split()) + 1 <= task.max_prompt_tokens
        assert task.grammatical(record['prompt'], record['completion'])


def test_authors_are_a_little_displeased_and_half_of_the_sorting_is_right():
    gold = {
        name: np.mean([task.reward(r['prompt'], r['completion']) for r in task.demonstrations(4000, 0)])
        for name, task in TASKS.items()
    }
    assert -0.35 < gold['reviews'] < -0.05
    assert 0.46 < gold['sort'] < 0.54


def test_an_unknown_task_is_named():
    with pytest.raises(InputError, match=r'--task=poems: no such task; use one of reviews, exact, sort'):
        get_task('poems')
