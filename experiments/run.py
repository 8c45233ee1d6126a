"""What every script sets up before its loop: the run folder, the compiled step, the loss, where arrays go.

Leaves out the loops, and the codec and model (model_setup.py).
"""

import dataclasses
import importlib
import inspect
import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import jax
import settings as flags_of
from settings import RunSettings, Settings

from rlax_ft.errors import InputError
from rlax_ft.models.lora import adapter_objective
from rlax_ft.parallel.compile import PMAP_AXIS, compile_step
from rlax_ft.parallel.mesh import make_mesh, shard_batch, shard_state
from rlax_ft.training.checkpoint import Checkpoints
from rlax_ft.training.metrics import MetricsWriter
from rlax_ft.training.optimizer import make_optimizer
from rlax_ft.training.performance import Performance
from rlax_ft.training.step import make_train_step


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


def train_setup(settings: Settings, objective, base=None, *, max_updates: int | None = None, eps: float = 1e-8):
    """(optimizer, compiled step) for an objective, as the flags say.

    Args:
      settings: of the script.
      objective: `loss_fn(params, batch, key)`.
      base: what adapters in `params` share and no step changes; the objective then takes what `lora.attach` gives.
      max_updates: length of the learning rate's schedule; --max_steps when absent.
      eps: Adam's epsilon.
    """
    optimizer = make_optimizer(
        settings.learning_rate,
        max_steps=max_updates or settings.max_steps,
        schedule=settings.schedule,
        warmup_steps=settings.warmup_steps,
        clip_norm=settings.clip_norm,
        eps=eps,
        weight_decay=settings.weight_decay,
    )
    if base is not None:
        objective = adapter_objective(objective, dropout=settings.lora_dropout > 0)
    pmap = settings.backend == 'pmap'
    step = make_train_step(
        objective, optimizer, micro_batches=settings.micro_batches, axis_name=PMAP_AXIS if pmap else None
    )
    mesh = None if pmap else make_mesh(settings.mesh)
    compiled = compile_step(step, mesh=mesh, backend=settings.backend)
    return optimizer, compiled if base is None else lambda state, batch: compiled(state, batch, base)


def place_state(settings: Settings, state):
    """A state where the compiled step wants it: by path rules on the mesh, or whole on every device under pmap."""
    if settings.backend == 'pmap':
        return shard_state(state, make_mesh(), rules=())
    return shard_state(state, make_mesh(settings.mesh))


def resume(settings: Settings, run: Run, state):
    """(state, steps already done): as the newest checkpoint has it, or as given where there is none."""
    start = run.checkpoints.latest_step() or 0
    if start:
        state, _ = run.checkpoints.restore(state)
    return place_state(settings, state), start


def placement(settings: Settings):
    """How a batch that is sampled or scored goes to the devices: split over the mesh, under jit."""
    return partial(shard_batch, mesh=make_mesh(settings.mesh)) if settings.backend == 'jit' else lambda batch: batch


def within_mesh(settings: Settings, function):
    """A compiled function that scores batches on the mesh, called so that the chunked LM head keeps rows in place.

    Without it each chunk's hidden states are gathered on every device.
    """
    if settings.backend != 'jit':
        return function
    mesh = make_mesh(settings.mesh)

    def run(*arguments):
        with jax.set_mesh(mesh):
            return function(*arguments)

    return run


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


def load_loss(settings: Settings, name: str, module: str, arguments: str = '', **given):
    """The loss that --loss names, with the hyperparameters that it takes bound.

    Args:
      settings: of the script; a loss that takes `axis_name` reads the whole batch, over all devices.
      name: of a function in `module`, without its `_loss`; or `my_module:my_loss`, found from the working directory.
      module: such as rlax_ft.losses.preference.
      arguments: further hyperparameters as text, `label_smoothing=0.1,gamma=0.5`.
      **given: hyperparameters from flags; those that the loss does not take are left out.

    Raises:
      InputError: no such loss, or an argument that it does not take.
    """
    if ':' in name:
        loss = find_function(name, 'loss')
    else:
        home = importlib.import_module(module)
        known = [n[:-5] for n, _ in inspect.getmembers(home, inspect.isfunction) if n.endswith('_loss')]
        if name not in known:
            raise InputError(f'--loss={name}: no such loss; use MODULE:FUNCTION or one of {", ".join(known)}')
        loss = getattr(home, f'{name}_loss')
    takes = inspect.signature(loss).parameters
    bound = {key: value for key, value in given.items() if key in takes}
    if 'axis_name' in takes:
        if settings.micro_batches > 1:
            raise InputError(f'--micro_batches={settings.micro_batches}: --loss={name} reads the whole batch; give 1')
        bound['axis_name'] = PMAP_AXIS if settings.backend == 'pmap' else None
    for part in filter(None, arguments.split(',')):
        key, _, value = part.partition('=')
        if key not in takes:
            raise InputError(f'--loss_args={arguments}: {name} takes no {key!r}; it takes {", ".join(list(takes)[1:])}')
        bound[key] = _parse_value(value)
    return partial(loss, **bound)


def find_function(name: str, flag: str):
    """The function that MODULE:FUNCTION names; modules are looked up in the working directory, too.

    Raises:
      InputError: there is none.
    """
    module, _, attribute = name.rpartition(':')
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f'--{flag}={name}: {error}; give MODULE:FUNCTION') from error


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, value) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + '\n')


def _parse_value(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
