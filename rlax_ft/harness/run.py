"""The run folder: opened, gone on with, and finished.

Leaves out what is trained, and the metrics within (training/metrics.py).
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path

from rlax_ft.errors import InputError
from rlax_ft.harness import settings as flags_of
from rlax_ft.harness.settings import RunSettings, Settings
from rlax_ft.training.checkpoint import Checkpoints
from rlax_ft.training.metrics import MetricsWriter
from rlax_ft.training.performance import Performance


@dataclasses.dataclass(frozen=True)
class Run:
    """An open run folder.

    Attributes:
      folder: of the run.
      checkpoints: under it.
      summary: what the run ended with, or None where it has not ended.
    """

    folder: Path
    checkpoints: Checkpoints
    summary: dict | None

    def finish(self, summary: dict) -> dict:
        """Writes summary.json, the last thing that a run does, and prints it."""
        self.checkpoints.close()
        write_json(self.folder / 'summary.json', summary)
        print(f'{self.folder}: ' + ', '.join(f'{k} {v:.4g}' for k, v in summary.items() if isinstance(v, int | float)))
        return summary


def open_run(settings: RunSettings, name: str) -> Run:
    """Opens the run folder, new or to be gone on with, and writes its flags.txt.

    Raises:
      InputError: the folder holds a run of other settings.
    """
    folder = Path(settings.out or f'runs/{name}')
    flags_file = folder / 'flags.txt'
    if flags_file.exists() and not settings.resume:
        number = next(n for n in range(1, 10_000) if not folder.with_name(f'{folder.name}.{n}').exists())
        folder.rename(folder.with_name(f'{folder.name}.{number}'))
    if folder.exists() and not folder.is_dir():
        raise InputError(f'--out={folder}: is a file; give a folder')
    checkpoints, summary_file = Checkpoints(folder / 'checkpoints'), folder / 'summary.json'
    saved = flags_file.read_text().splitlines() if flags_file.exists() else []
    summary = None
    if saved and (summary_file.exists() or checkpoints.latest_step() is not None):
        flags_of.check_same(settings, saved, folder)
        if summary_file.exists() and f'--{settings.length}={getattr(settings, settings.length)}' in saved:
            summary = json.loads(summary_file.read_text())
    elif saved and saved != flags_of.flag_lines(settings):
        # The run stopped before its first step, perhaps over a flag: what it had prepared goes.
        (folder / 'judgements.jsonl').unlink(missing_ok=True)
        shutil.rmtree(folder / 'tokenizer', ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(flags_file, '\n'.join(flags_of.flag_lines(settings)) + '\n')
    return Run(folder, checkpoints, summary)


def open_metrics(settings: Settings, run: Run, config, start: int, *, title: str, show: tuple, passes: float = 3.0):
    """The run's MetricsWriter from step `start` on; `passes` is what a step costs in forward passes over its batch."""
    first, _, last = settings.profile_steps.partition(':')
    if settings.profile_steps and not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise InputError(f'--profile_steps={settings.profile_steps}: give FIRST:LAST, such as 11:15')
    return MetricsWriter(
        run.folder,
        start=start,
        total=settings.max_steps,
        title=title,
        show=show,
        performance=Performance(config, passes=passes),
        profile=(int(first), int(last)) if first else None,
    )


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, value) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + '\n')
