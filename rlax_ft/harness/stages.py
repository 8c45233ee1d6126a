"""Scripts as stages of a larger run: their settings and main function found, their recipes, what a run used.

Leaves out the order of stages, which the calling script says.
"""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path

from rlax_ft.errors import InputError
from rlax_ft.harness.command_line import parse
from rlax_ft.harness.loading import load_script
from rlax_ft.harness.settings import FeedbackSettings, RunSettings
from rlax_ft.training.metrics import read_records


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of a script.

    Attributes:
      name: of its folder.
      script: its file.
      arguments: of its command line.
    """

    name: str
    script: Path
    arguments: tuple[str, ...]

    def settings(self) -> RunSettings:
        """The settings that the arguments say."""
        return parse(script_parts(self.script)[1], self.arguments)

    def with_flags(self, **given) -> 'Stage':
        """The same with further flags, which override what it has."""
        return dataclasses.replace(self, arguments=(*self.arguments, *(f'--{k}={v}' for k, v in given.items())))

    def run(self) -> dict:
        """Runs the stage, or resumes it; returns its summary. A stage that has ended is not run again."""
        print(f'python {self.script} ' + ' '.join(self.arguments))
        return script_parts(self.script)[0](self.settings())


def script_parts(script: Path) -> tuple[Callable, type[RunSettings]]:
    """(main function, settings class) of a script: its `train` or `collect`, and the settings that it defines.

    Raises:
      InputError: no such script, or one without them.
    """
    module = load_script(script)
    main = getattr(module, 'train', None) or getattr(module, 'collect', None)
    own = [
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if value.__module__ == module.__name__ and issubclass(value, RunSettings)
    ]
    if main is None or not own:
        raise InputError(f'{script}: no script that trains: it has no settings, or no function `train`')
    return main, own[0]


def make_stage(name: str, script: Path, recipe: Path | None = None, **given) -> Stage:
    """A stage with the flags of a recipe, which the given ones override."""
    return Stage(name, script, (f'--flagfile={recipe}',) if recipe else ()).with_flags(**given)


def task_recipe(folder: Path, task: str, stage: str) -> Path | None:
    """The file TASK_STAGE.flags of a folder of recipes, or that of reviews; None where there is neither."""
    paths = [folder / f'{name}_{stage}.flags' for name in (task, 'reviews')]
    return next((path for path in paths if path.exists()), None)


def takes(settings_class: type, name: str) -> bool:
    """Whether a script has a flag."""
    return name in {field.name for field in dataclasses.fields(settings_class)}


def samples_per_step(settings) -> int:
    """Completions that one step learns from, each as often as it goes through them.

    Both of a pair count, all of a ranking, and what is sampled for each pass over it; elsewhere a row is one.
    """
    if not isinstance(settings, FeedbackSettings):
        return settings.batch_size * getattr(settings, 'update_epochs', 1)
    return settings.batch_size * (settings.candidates if getattr(settings, 'loss', '') == 'plackett_luce' else 2)


def seconds_used(folder: Path) -> float:
    """Seconds that a run's steps took, evaluations in training and the first step's compilation included."""
    return float(sum(record.get('perf/step_seconds', 0.0) for record in read_records(folder / 'metrics.jsonl')))
