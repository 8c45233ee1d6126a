"""The embedded tasks, generated from a seed with nothing to download: reviews, exact and sort."""

from rlax_ft.errors import InputError
from rlax_ft.tasks import exact, reviews, sort
from rlax_ft.tasks.task import Task

TASKS: dict[str, Task] = {'reviews': reviews.TASK, 'exact': exact.TASK, 'sort': sort.TASK}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
      InputError: there is none.
    """
    if name not in TASKS:
        raise InputError(f'--task={name}: no such task; use one of {", ".join(TASKS)}')
    return TASKS[name]
