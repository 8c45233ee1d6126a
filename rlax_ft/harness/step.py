"""The compiled step of a script, and where states and batches live, as --mesh and --backend say.

Leaves out what is minimised (objectives/).
"""

from functools import partial

import jax

from rlax_ft.harness.run import Run
from rlax_ft.harness.settings import Settings
from rlax_ft.models.lora import adapter_objective
from rlax_ft.parallel.compile import PMAP_AXIS, compile_step
from rlax_ft.parallel.mesh import make_mesh, shard_batch, shard_state
from rlax_ft.training.optimizer import make_optimizer
from rlax_ft.training.step import make_train_step


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
