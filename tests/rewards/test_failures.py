"""Rewards that raise, hang, or give nonsense: counted, costly to their group alone, and an end past the share."""

import contextlib
import logging
import re
import time

import numpy as np
import pytest

from rlax_ft.errors import InputError
from rlax_ft.rewards.failures import guarded_scores

RECORDS = [record for i in range(4) for record in [{'prompt': str(i)}] * 2]
TEXTS = [f'text {i}' for i in range(8)]


def raises(records, completions):
    if any('5' in text for text in completions):
        raise KeyError('five')
    return [1.0] * len(completions)


def hangs(records, completions):
    if any('5' in text for text in completions):
        while True:
            with contextlib.suppress(Exception):
                time.sleep(0.01)
    return [1.0] * len(completions)


def hangs_in_a_pattern(records, completions):
    return [float(bool(re.match(r'(a+)+$', 'a' * 40 + 'b'))) if '5' in text else 1.0 for text in completions]


def not_a_number(records, completions):
    return [float('nan') if '5' in text else 1.0 for text in completions]


def wrong_count(records, completions):
    return [1.0] * (len(completions) - ('text 5' in completions))


@pytest.mark.parametrize('reward', [raises, hangs, hangs_in_a_pattern, not_a_number, wrong_count])
def test_a_failure_costs_its_group_alone(reward, caplog):
    how = dict(name='--reward=mine', seconds=0.3)
    with caplog.at_level(logging.WARNING):
        scores = guarded_scores(reward, RECORDS, TEXTS, share=0.25, **how)
    np.testing.assert_array_equal(np.isnan(scores), [False] * 4 + [True] * 2 + [False] * 2)
    assert ('1 of 4 groups have no reward' in caplog.text and "'text " in caplog.text) or 'values' in caplog.text
    # Past the share it stops, with one line; without a share at once.
    for share in (0.2, 0.0):
        with pytest.raises(InputError, match='--reward=mine: ') as caught:
            guarded_scores(reward, RECORDS, TEXTS, share=share, **how)
        assert '\n' not in str(caught.value)


def test_what_does_not_fail_is_scored_in_one_call():
    calls = []
    reward = lambda records, completions: calls.append(len(completions)) or range(len(completions))  # noqa: E731
    scores = guarded_scores(reward, RECORDS, TEXTS, share=0.5, seconds=5.0)
    np.testing.assert_array_equal(scores, np.arange(8.0))
    assert calls == [8]
