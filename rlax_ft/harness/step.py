"""The compiled step of a script, and where states and batches live, as --mesh and --backend say.

Leaves out what is minimised (objectives/).
"""

import dataclasses
import logging
import math
from functools import partial

import jax

from rlax_ft.errors import InputError
from rlax_ft.harness.loading import find_function
from rlax_ft.harness.run import Run
from rlax_ft.harness.settings import Settings
from rlax_ft.models.lora import adapter_objective
from rlax_ft.parallel.compile import PMAP_AXIS, compile_step
from rlax_ft.parallel.mesh import make_mesh
from rlax_ft.parallel.placement import shard_state, split_rows
from rlax_ft.sampling.layout import release
from rlax_ft.training.optimizer import make_optimizer
from rlax_ft.training.step import make_train_step


def with_steps(settings: Settings, rows: int) -> Settings:
    """The settings with --max_steps as --epochs make it over so many rows; what looks like a mistake is logged.

    Args:
      settings: of the script.
      rows: of the data, as the loop counts them.
    """
    batch_size = settings.batch_size
    steps = settings.max_steps if settings.max_steps >= 0 else max(math.ceil(settings.epochs * rows / batch_size), 1)
    epochs = steps * batch_size / rows
    if batch_size > rows:
        logging.warning(
            '--batch_size=%d: more than the %d rows there are; some stand in a batch twice', batch_size, rows
        )
    if steps and not 0.1 <= epochs <= 20:
        logging.warning(
            '--max_steps=%d: with --batch_size=%d that is %s epochs of %d rows',
            steps,
            batch_size,
            f'{epochs:.2g}' if epochs < 10 else f'{epochs:,.0f}',
            rows,
        )
    return dataclasses.replace(settings, max_steps=steps, epochs=type(settings).epochs)


def compile_training(
    settings: Settings, objective, base=None, *, max_updates: int | None = None, eps: float = 1e-8, mesh=None
):
    """(optimizer, compiled step) for an objective, as the flags say.

    Args:
      settings: of the script.
      objective: `loss_fn(params, batch, key)`.
      base: what adapters in `params` share and no step changes; the objective then takes what `lora.attach` gives.
      max_updates: length of the learning rate's schedule; --max_steps when absent.
      eps: Adam's epsilon.
      mesh: in place of the one that --mesh names, over the devices that are there.
    """
    kind = settings.optimizer
    optimizer = make_optimizer(
        settings.learning_rate,
        max_steps=_schedule_updates(settings, max_updates or settings.max_steps),
        kind=find_function(kind, 'optimizer') if ':' in kind else kind,
        schedule=settings.schedule,
        warmup_steps=settings.warmup_steps,
        clip_norm=settings.clip_norm,
        eps=eps,
        weight_decay=settings.weight_decay,
        moment_dtype=None if settings.moment_dtype == 'float32' else settings.moment_dtype,
    )
    if base is not None:
        objective = adapter_objective(objective, dropout=settings.lora_dropout > 0)
    pmap = settings.backend == 'pmap'
    step = make_train_step(
        objective,
        optimizer,
        micro_batches=settings.micro_batches,
        axis_name=PMAP_AXIS if pmap else None,
        skip_bad=settings.skip_bad_steps > 0,
    )
    mesh = None if pmap else mesh or make_mesh(settings.mesh)
    compiled = compile_step(step, mesh=mesh, backend=settings.backend, offload=settings.offload_optimizer)
    return optimizer, _Update(compiled, () if base is None else (base,))


class _Update:
    """A compiled step whose parameters, as they were laid out for sampling, give up their memory first.

    Adapters get their base with each call: no parameter becomes part of the program.
    """

    def __init__(self, step, base):
        self._step, self._base = step, base

    def __call__(self, state, batch, *frozen):
        release(state.params)
        return self._step(state, batch, *self._base, *frozen)

    def lower(self, state, batch, *frozen):
        return self._step.lower(state, batch, *self._base, *frozen)


def place_state(settings: Settings, state):
    """A state where the compiled step wants it: by path rules on the mesh, or whole on every device under pmap."""
    if settings.backend == 'pmap':
        return shard_state(state, make_mesh(), rules=())
    return shard_state(state, make_mesh(settings.mesh))


def replicate(settings: Settings, tree):
    """What every process has alike, whole on every device, as a checkpoint of several processes takes it."""
    return shard_state(tree, make_mesh(settings.mesh if settings.backend == 'jit' else ''), rules=())


def resume(settings: Settings, run: Run, state):
    """(state, steps already done): as the newest checkpoint that can be read has it, or as given where there is none.

    Raises:
      InputError: the run has taken more steps than it now may, or none of its checkpoints can be read.
    """
    # Placed first: each process then reads what its own devices hold.
    state, start = run.checkpoints.newest(place_state(settings, state))
    run.check_length(settings, start)
    return place_state(settings, state), start


def _schedule_updates(settings, updates):
    """Optimiser updates over which the learning rate falls, of the run's `updates`: --schedule_steps, if given."""
    if not settings.schedule_steps:
        return updates
    if settings.schedule_steps < settings.max_steps:
        raise InputError(
            f'--schedule_steps={settings.schedule_steps}: fewer than the {settings.max_steps} steps of the run, which '
            'would end at a learning rate of 0; give at least these'
        )
    return settings.schedule_steps * (updates // max(settings.max_steps, 1))


def placement(settings: Settings):
    """How a batch that every process has whole goes to the devices: its rows split over the mesh, under jit."""
    return partial(split_rows, mesh=make_mesh(settings.mesh)) if settings.backend == 'jit' else lambda batch: batch


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
