"""What XLA must be told before jax starts, for small programs on a CPU; import it before jax.

- jaxlib 0.10.2 can deadlock on two cores in vmapped programs under its concurrency-optimised scheduler: it goes off.
- Every core becomes a device, so that runs side by side have a core each.

A flag that the user has set already stays, and one that this jaxlib does not know is left out, since XLA would abort.
"""

import importlib.util
import mmap
import os
from pathlib import Path

_WANTED = {
    '--xla_cpu_enable_concurrency_optimized_scheduler': 'false',
    '--xla_force_host_platform_device_count': str(
        len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1
    ),
}


def _known(name: str) -> bool:
    found = importlib.util.find_spec('jaxlib')
    for library in Path(found.origin).parent.glob('libjax_common*') if found else ():
        with open(library, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(name.removeprefix('--').encode()) >= 0
    return False


given = os.environ.get('XLA_FLAGS', '')
added = [f'{name}={value}' for name, value in _WANTED.items() if name not in given and _known(name)]
os.environ['XLA_FLAGS'] = ' '.join([given, *added]).strip()
