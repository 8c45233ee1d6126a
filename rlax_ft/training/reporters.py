"""Services that chart a run's metrics: TensorBoard's files in the run folder, Weights & Biases, Trackio.

Each is told the finite numbers of a step. Leaves out metrics.jsonl, which is always written (metrics.py).
"""

import importlib
import secrets
from pathlib import Path
from typing import Protocol

from rlax_ft.errors import InputError


class Reporter(Protocol):
    """Takes the numbers of one step after another."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Takes the finite metrics of a step, by name."""

    def close(self) -> None:
        """Sends what is left."""


class _TensorBoard:
    def __init__(self, folder, start):
        board = _library('tensorboardX', 'tensorboard')
        self._board = board.SummaryWriter(str(folder / 'tensorboard'), purge_step=start + 1, max_queue=200)

    def write(self, step, values):
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self):
        self._board.close()


class _Logged:
    """Libraries with wandb's interface; a run that resumes goes on under its name."""

    def __init__(self, library, **given):
        self._library = _library(library, library)
        self._library.init(project='rlax_ft', resume='allow', **given)

    def write(self, step, values):
        self._library.log(values, step=step)

    def close(self):
        self._library.finish()


def _wandb(folder, start):
    return _Logged('wandb', name=folder.name, id=_own_name(folder), dir=str(folder))


def _trackio(folder, start):
    return _Logged('trackio', name=_own_name(folder))


def _own_name(folder: Path) -> str:
    """The folder's name with a number of its own, kept there: runs of one name elsewhere must not share a chart."""
    path = folder / 'reported_as.txt'
    name = path.read_text().strip() if path.exists() else ''
    if not name:  # None yet, or a kill came between making the file and writing it.
        name = f'{folder.name}-{secrets.token_hex(4)}'
        path.write_text(f'{name}\n')
    return name


REPORTERS = {'tensorboard': _TensorBoard, 'wandb': _wandb, 'trackio': _trackio}


def make_reporters(names: str, folder: Path, start: int) -> list[Reporter]:
    """The reporters that `names` lists, with commas between, for a run that goes on after step `start`.

    Raises:
      InputError: an unknown one, or one whose library is not installed.
    """
    wanted = [name.strip() for name in names.split(',') if name.strip()]
    for name in wanted:
        if name not in REPORTERS:
            raise InputError(f'--report_to={names}: {name!r} is none of {", ".join(REPORTERS)}')
    return [REPORTERS[name](folder, start) for name in wanted]


def _library(module, extra):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"--report_to={extra}: needs {module} ({error}); pip install 'rlax_ft[{extra}]'") from error
