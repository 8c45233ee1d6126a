"""Devices of their own for sampling: --rollout_devices=N takes the last N, and training has the others.

The policy's parameters are copied to them before each batch is sampled; with --ahead=1 sampling and the update then go
on at the same time. Leaves out what is sampled (groups.py).
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from rlax_ft.errors import InputError
from rlax_ft.harness.settings import flag
from rlax_ft.parallel.mesh import compiling_for, make_mesh
from rlax_ft.parallel.placement import fetch


@dataclasses.dataclass(frozen=True)
class RolloutDeviceSettings:
    """Flags of scripts that can sample on devices of their own."""

    group: ClassVar[str] = 'devices'

    rollout_devices: int = flag(
        0,
        'Devices that sample and do not train, the last ones; --mesh is then of the others. 0: all do both.',
        at_least=0,
    )


def check_rollout_devices(settings) -> None:
    """Refuses more devices for sampling than there are beside training.

    Raises:
      InputError: naming the flag.
    """
    count, wanted = jax.device_count(), settings.rollout_devices
    if not wanted:
        return
    where = f'--rollout_devices={wanted}'
    if wanted >= count:
        raise InputError(f'{where}: there are {count} devices, and one at least has to train; give at most {count - 1}')
    if settings.backend != 'jit':
        raise InputError(f'{where}: has no effect with --backend={settings.backend}; give --backend=jit')
    if jax.process_count() > 1:
        raise InputError(f'{where}: is for a run of one process; leave it out')


@contextlib.contextmanager
def training_devices(settings):
    """Within, meshes are made of the devices that train."""
    count = getattr(settings, 'rollout_devices', 0)
    devices = jax.devices()
    with compiling_for(devices[: len(devices) - count]) if count else contextlib.nullcontext():
        yield


def on_rollout_devices(settings, sample: Callable) -> Callable:
    """`sample(params, prompts, mask, key)` on those devices, sent off and not waited for; as it is without any."""
    if not settings.rollout_devices:
        return sample
    mesh = make_mesh(devices=jax.devices()[-settings.rollout_devices :])
    whole = NamedSharding(mesh, PartitionSpec())

    def sample_there(params, prompts, mask, key):
        params, key = jax.device_put((params, key), whole)
        with jax.set_mesh(mesh):
            return sample(params, prompts, mask, key)

    return sample_there


def arrived(settings, pending, place: Callable):
    """`pending` with its `rollout` done, and where training reads it."""
    rollout = jax.block_until_ready(pending.rollout)
    return dataclasses.replace(pending, rollout=place(fetch(rollout))) if settings.rollout_devices else pending
