"""What a user names on the command line: a loss of ours, a function of his own, a script.

Leaves out what is done with it.
"""

import importlib
import importlib.util
import inspect
import json
import os
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

from rlax_ft.errors import InputError
from rlax_ft.harness.settings import Settings
from rlax_ft.parallel.compile import PMAP_AXIS


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


def load_script(path: str | Path) -> ModuleType:
    """A script as a module, from its file; the same module whenever it is asked for again.

    Raises:
      InputError: there is no such file.
    """
    path = Path(path).resolve()
    name = f'rlax_ft_script_{path.stem}_{abs(hash(path))}'
    if name not in sys.modules:
        if not path.is_file():
            raise InputError(f'{path}: no such script')
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def _parse_value(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
