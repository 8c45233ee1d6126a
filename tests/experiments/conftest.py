"""What tests of scripts share."""

import pytest

from rlax_ft.harness import evaluator


@pytest.fixture(scope='module')
def few_prompts():
    """Runs are measured on fewer prompts of an embedded task: that they are matters, and not how exactly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, 'TASK_PROMPTS', evaluator.SHOWN)
        yield
