"""Runs of scripts are measured on fewer prompts of an embedded task: what is measured matters, and not how exactly."""

import pytest

from rlax_ft.harness import evaluator


@pytest.fixture(scope='session', autouse=True)
def few_prompts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, 'TASK_PROMPTS', evaluator.SHOWN)
        yield
