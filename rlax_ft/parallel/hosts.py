"""A run of several processes: how it starts, what process 0 does for all, and how all stop together.

All of it is jax.distributed. Leaves out where arrays live (placement.py).
"""

import glob
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlax_ft.errors import InputError

_VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
_FLAGS = ('--coordinator', '--num_processes', '--process_id')
# What srun sets for each task, and a shell within an allocation does not.
_SLURM_STEP = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID')
_BUFFER = 1 << 16

_steps = itertools.count()


def start_distributed(coordinator: str = '', num_processes: int = 0, process_id: int = -1) -> None:
    """Joins a run of several processes where flags, variables or the launcher say that there is one.

    In this order: the arguments; JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; SLURM's srun; Open
    MPI; the variables and the metadata of TPU slices.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: of the run.
      process_id: of this one, from 0.

    Raises:
      InputError: some of what is needed is there and the rest is not, or the others cannot be reached.
    """
    start = _start(coordinator, num_processes, process_id, os.environ)
    if start is None or jax.distributed.is_initialized():
        return
    if (os.environ.get('JAX_PLATFORMS') or 'cpu') == 'cpu':
        jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    try:
        jax.distributed.initialize(**start)
    except (RuntimeError, ValueError) as error:
        raise InputError(f'the processes of the run do not find each other ({str(error).splitlines()[0]})') from error
    count = jax.process_count()
    if count > 1:
        print(f'process {jax.process_index()} of {count}', file=sys.stderr)
    else:
        print('warning: a launcher has started this process, and it is the only one', file=sys.stderr)


def _start(coordinator: str, num_processes: int, process_id: int, variables: Mapping[str, str]) -> dict | None:
    """Arguments for jax.distributed.initialize; None where one process runs alone."""
    flags = (coordinator, num_processes or '', process_id if process_id >= 0 else '')
    if any(part != '' for part in flags):
        return _explicit(_FLAGS, flags)
    given = tuple(variables.get(name, '') for name in _VARIABLES)
    if any(given):
        if not all(given[1:]) and given[0] and _srun(variables):
            # srun knows the rest.
            given = (given[0], variables['SLURM_NTASKS'], variables['SLURM_PROCID'])
        return _explicit(_VARIABLES, given)
    tasks = variables.get('SLURM_NTASKS', '')
    if _srun(variables) and tasks:
        return {}
    if tasks.isdigit() and int(tasks) > 1:
        missing = ', '.join(name for name in _SLURM_STEP if name not in variables)
        raise InputError(
            f'SLURM_NTASKS={tasks}, without {missing}: this process is no task of srun; start it with srun, or unset '
            'SLURM_NTASKS to run alone'
        )
    if 'OMPI_MCA_orte_hnp_uri' in variables:
        return {}
    hosts = variables.get('TPU_WORKER_HOSTNAMES', '')
    if hosts.count(',') and not variables.get('TPU_WORKER_ID'):
        raise InputError(f"TPU_WORKER_HOSTNAMES={hosts}, without TPU_WORKER_ID: set it to this host's place, from 0")
    return {} if hosts.count(',') or _on_tpu_vm(variables) else None


def _srun(variables):
    return all(name in variables for name in (*_SLURM_STEP, 'SLURM_NTASKS'))


def _on_tpu_vm(variables):
    if variables.get('JAX_PLATFORMS', 'tpu') not in ('', 'tpu') or importlib.util.find_spec('libtpu') is None:
        return False
    return bool(glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*'))


def _explicit(names, given):
    missing = [name for name, value in zip(names, given) if value == '']
    if missing:
        there = ', '.join(f'{name}={value}' for name, value in zip(names, given) if value != '')
        raise InputError(f'{there}, without {" and ".join(missing)}: a run of several processes needs all three')
    address, count, index = given
    if not (str(count).isdigit() and str(index).isdigit() and int(index) < int(count)):
        raise InputError(f'{names[1]}={count}, {names[2]}={index}: give a count, and a number from 0 to one below it')
    host, colon, port = address.rpartition(':')
    if not (host and colon and port.isdigit()):
        raise InputError(f'{names[0]}={address}: give HOST:PORT')
    return dict(coordinator_address=address, num_processes=int(count), process_id=int(index))


def is_first() -> bool:
    """Whether this process writes files, logs and bars: it is process 0."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes are here; at once in a run of one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def from_first(function: Callable):
    """What `function()` gives on process 0, as JSON has it, on every process; others do not call it.

    Raises:
      InputError: on every process, where it is raised on process 0.
    """
    if jax.process_count() == 1:
        return function()
    text = b''
    if is_first():
        try:
            text = json.dumps({'value': function()}).encode()
        except InputError as error:
            text = json.dumps({'error': str(error)}).encode()
    buffer = np.zeros(_BUFFER, np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    said = json.loads(multihost_utils.broadcast_one_to_all(buffer).tobytes().rstrip(b'\0'))
    if 'error' in said:
        raise InputError(said['error'])
    return said['value']


def on_first(function: Callable, name: str) -> None:
    """Calls `function()` on process 0, and lets no process go on before that has ended."""
    if is_first():
        function()
    barrier(name)


def everywhere(fine: bool) -> list[bool]:
    """What each process says, in their order."""
    if jax.process_count() == 1:
        return [fine]
    return [bool(one) for one in multihost_utils.process_allgather(np.asarray(fine))]


def share_rows(function: Callable, count: int) -> np.ndarray:
    """`function(part of the rows) -> numbers`, each process on its own part; all numbers, float32[count], everywhere.

    Args:
      function: takes a slice of range(count) and gives a number for each row in it.
      count: rows.

    Raises:
      InputError: on every process, where one of them raises it.
    """
    processes, index = jax.process_count(), jax.process_index()
    if processes == 1:
        return np.asarray(function(slice(0, count)), np.float32)
    bounds = [count * i // processes for i in range(processes + 1)]
    own, error = np.zeros(-(-count // processes), np.float32), None
    try:
        part = np.asarray(function(slice(bounds[index], bounds[index + 1])), np.float32)
        own[: len(part)] = part
    except InputError as raised:
        error = raised
    fine = everywhere(error is None)
    if not all(fine):
        raise error or InputError(f'process {fine.index(False)} has stopped; its own line says why')
    every = multihost_utils.process_allgather(own)
    return np.concatenate([every[i, : bounds[i + 1] - bounds[i]] for i in range(processes)])


def stop_asked() -> bool:
    """Whether all processes are to stop after this very step, because one of them got SIGTERM; asked once a step.

    The processes agree on the step through jax's preemption service, which listens for the signal.
    """
    if jax.process_count() == 1:
        return False
    return multihost_utils.reached_preemption_sync_point(next(_steps))
