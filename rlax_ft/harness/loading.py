"""What a user names on the command line: a loss of ours, a function of his own, a script.

A function is tried on shapes before the first step. Leaves out what is done with it.
"""

import importlib
import importlib.util
import inspect
import json
import os
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from rlax_ft.errors import InputError
from rlax_ft.ops.reduce import MODES
from rlax_ft.parallel.compile import PMAP_AXIS
from rlax_ft.types import PairLogps

_ROWS, _TOKENS = 3, 5  # Shapes that a loss is tried on; unlike each other, so that none is taken for another.


def load_loss(settings, name: str, module: str, arguments: str = '', **given) -> Callable:
    """The loss that --loss names, with the hyperparameters that it takes bound.

    Args:
      settings: of the script; a loss that takes `axis_name` reads the whole batch, over all devices.
      name: of a function in `module`, without its `_loss`; or `MODULE:FUNCTION`, as `find_function` takes it.
      module: such as rlax_ft.losses.preference.
      arguments: further hyperparameters as text, `label_smoothing=0.1,gamma=0.5`.
      **given: hyperparameters from flags; those that the loss does not take are left out.

    Raises:
      InputError: no such loss, an argument that it does not take, or a batch that is split where it may not be.
    """
    if ':' in name:
        loss = find_function(name, 'loss')
    else:
        home = importlib.import_module(module)
        known = [n[:-5] for n, _ in inspect.getmembers(home, inspect.isfunction) if n.endswith('_loss')]
        if name not in known:
            raise InputError(f'--loss={name}: no such loss; use MODULE:FUNCTION or one of {", ".join(known)}')
        loss = getattr(home, f'{name}_loss')
    takes = _parameters(loss, name)
    bound = {key: value for key, value in given.items() if key in takes}
    if 'axis_name' in takes:
        if settings.micro_batches > 1:
            raise InputError(f'--micro_batches={settings.micro_batches}: --loss={name} reads the whole batch; give 1')
        bound['axis_name'] = PMAP_AXIS if settings.backend == 'pmap' else None
    for part in filter(None, arguments.split(',')):
        key, equals, value = part.partition('=')
        if key not in list(takes)[1:] or not equals:
            hyper = ', '.join(key for key in list(takes)[1:] if key != 'axis_name') or 'none'
            raise InputError(
                f'--loss_args={arguments}: {part!r} is no KEY=VALUE of {name}; its hyperparameters: {hyper}'
            )
        bound[key] = _parse_value(value, takes[key].default, f'--loss_args={arguments}: {key}')
    return partial(loss, **bound)


def aggregation(settings, loss: Callable) -> str:
    """The mode of `ops.reduce.aggregate` for a loss that `load_loss` gave: --aggregate, or what the loss itself says.

    Raises:
      InputError: a loss says a mode that there is not.
    """
    mode = settings.aggregate or getattr(getattr(loss, 'func', loss), 'aggregate', 'token_mean')
    if mode not in MODES:
        raise InputError(f'--loss={settings.loss}: says aggregate {mode!r}; use one of {", ".join(MODES)}')
    return mode


def reads_whole_batch(loss: Callable) -> bool:
    """Whether a loss that `load_loss` gave compares the rows of a batch with each other: it takes `axis_name`."""
    return 'axis_name' in inspect.signature(loss).parameters


def check_pair_loss(loss: Callable, name: str) -> frozenset[str]:
    """Tries a preference loss on shapes; returns the fields of PairLogps that it reads.

    Raises:
      InputError: it is no `f(pair: PairLogps) -> float[B]`.
    """
    fields = ('chosen', 'rejected', 'ref_chosen', 'ref_rejected', 'chosen_len', 'rejected_len')
    shapes: dict[str, Any] = {field: jax.ShapeDtypeStruct((_ROWS,), jnp.float32) for field in fields}
    pair = PairLogps(**shapes)
    traced = _tried(
        _one_device(loss), (pair,), (_ROWS,), name, '(pair: PairLogps) -> float[B], one number for each pair'
    )
    used = {id(variable) for equation in traced.eqns for variable in equation.invars}
    used |= {id(variable) for variable in traced.outvars}
    # The order of a struct's leaves is that of its fields.
    read = frozenset(field for field, variable in zip(fields, traced.invars) if id(variable) in used)
    if not read:
        raise InputError(f'--loss={name}: reads nothing of the pair, so nothing is learned; use its log-probabilities')
    return read


def check_token_loss(loss: Callable, name: str) -> None:
    """Tries a policy-gradient loss on shapes.

    Raises:
      InputError: it is no `f(logps, old_logps, advantages, mask) -> float[B, T]`.
    """
    shape = (_ROWS, _TOKENS)
    arrays = (jax.ShapeDtypeStruct(shape, jnp.float32),) * 4
    _tried(loss, arrays, shape, name, '(logps, old_logps, advantages, mask) -> float[B, T], one number for each token')


def find_function(name: str, flag: str) -> Callable:
    """The function that MODULE:FUNCTION or FILE.py:FUNCTION names; modules are looked up in the working directory, too.

    Raises:
      InputError: there is none.
    """
    module, _, attribute = name.rpartition(':')
    if not module or not attribute:
        raise InputError(f'--{flag}={name}: give MODULE:FUNCTION or FILE.py:FUNCTION')
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        home = load_script(module) if module.endswith('.py') else importlib.import_module(module)
        function = getattr(home, attribute)
    except InputError as error:
        raise InputError(f'--{flag}={name}: {error}') from error
    except (Exception, SystemExit) as error:  # A user's module may raise whatever it likes as it is imported.
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise InputError(f'--{flag}={name}: {reason}; give MODULE:FUNCTION or FILE.py:FUNCTION') from error
    if not callable(function):
        raise InputError(f'--{flag}={name}: {attribute} is a {type(function).__name__}, not a function')
    return function


def load_script(path: str | Path) -> ModuleType:
    """A script as a module, from its file; the same module whenever it is asked for again.

    Raises:
      InputError: there is no such file.
    """
    path = Path(path).resolve()
    name = f'script_{path.stem}_{zlib.crc32(str(path).encode()):08x}'
    if name not in sys.modules:
        if not path.is_file():
            raise InputError(f'{path}: no such file')
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _parameters(function, name):
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise InputError(f'--loss={name}: has no signature to look at ({error}); give a function of yours') from error


def _one_device(loss):
    return partial(loss, axis_name=None) if reads_whole_batch(loss) else loss


def _tried(loss, arrays, shape, name, expected):
    """The jaxpr of the loss on these shapes."""
    try:
        closed = jax.make_jaxpr(loss)(*arrays)
        found = [aval.shape for aval in closed.out_avals]
    except (Exception, SystemExit) as error:  # A user's function may raise whatever it likes.
        reason = ' '.join(str(error).split())[:200]
        raise InputError(f'--loss={name}: {type(error).__name__}: {reason}; a loss is {expected}') from error
    if found != [shape]:
        raise InputError(f'--loss={name}: gives shape {", ".join(map(str, found))} for {shape}; a loss is {expected}')
    if not jnp.issubdtype(closed.out_avals[0].dtype, jnp.floating):
        raise InputError(
            f'--loss={name}: gives {closed.out_avals[0].dtype}, which has no gradient; a loss is {expected}'
        )
    return closed.jaxpr


def _parse_value(text, default, where):
    """A hyperparameter's value, of the kind that its default has.

    Raises:
      InputError: it is of another kind, or not a number at all.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # Also a number of thousands of digits; lists in lists.
        value = text
    number = isinstance(default, int | float) and not isinstance(default, bool)
    if value != value or (number and (isinstance(value, bool) or not isinstance(value, int | float))):
        raise InputError(f'{where} is {text!r}; a number such as {default} was expected')
    if isinstance(default, bool) and not isinstance(value, bool):
        raise InputError(f'{where} is {text!r}; true or false was expected')
    return value
