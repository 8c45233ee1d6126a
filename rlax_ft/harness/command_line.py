"""From the command line to settings, and from a script's end to an exit code.

Flag files are absl's own (`--flagfile=FILE`, one flag a line); a path in one that does not exist from the working
directory is looked for beside the file. A user's mistake is one line and exit code 2; SIGINT and SIGTERM end a training
loop after its step, with a checkpoint. Leaves out what the flags are (settings.py).
"""

import contextlib
import ctypes
import dataclasses
import errno
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import flags

from rlax_ft.errors import InputError
from rlax_ft.harness.rollout_devices import training_devices
from rlax_ft.harness.settings import ComputeSettings, RunSettings, flag_groups
from rlax_ft.harness.stopping import Stopped, listen
from rlax_ft.parallel.hosts import is_first, start_distributed
from rlax_ft.parallel.mesh import make_mesh

_DEFINE: dict[type, Callable] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    tuple: flags.DEFINE_multi_string,  # A flag that may be given several times.
}


def run_script(settings_class: type[RunSettings], main: Callable[[RunSettings], object]) -> None:
    """Parses the command line and calls `main`; a user's mistake is one line on standard error and exit code 2."""
    if {'--help', '-h', '-help', '--helpfull'} & set(sys.argv[1:]):
        print(help_text(settings_class, sys.modules['__main__'].__doc__ or ''))
        return
    _log_in_lines()
    warnings.filterwarnings('ignore', category=DeprecationWarning)
    # A cache that cannot be written, or was not written whole, costs time only.
    warnings.filterwarnings('ignore', message='Error (reading|writing) persistent compilation cache')
    sys.unraisablehook = _without_echoes(sys.unraisablehook)
    settings = None
    try:
        settings = parse(settings_class, sys.argv[1:])
        _keep_freed_memory()
        _cache_compilations()
        # Not every script has these flags.
        start_distributed(
            coordinator=getattr(settings, 'coordinator', ''),
            num_processes=getattr(settings, 'num_processes', 0),
            process_id=getattr(settings, 'process_id', -1),
        )
        listen()
        with _mesh_of(settings), _only_first_prints():
            main(settings)
    except InputError as error:
        print(f'error: {with_flag(" ".join(str(error).split()), settings)}', file=sys.stderr)
        leave(2)
    except Stopped as stopped:
        if is_first():
            print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except KeyboardInterrupt as interrupt:
        print('stopped; the same command resumes from what has been saved', file=sys.stderr)
        sys.exit(128 + (interrupt.args or (signal.SIGINT,))[0])
    except SystemExit as end:  # Nothing of ours calls it in there: the run would end half done, perhaps with code 0.
        called = f'sys.exit({"" if end.code is None else repr(end.code)[:80]})'
        print(f'error: {called} was called by what a flag names; take it out there', file=sys.stderr)
        leave(2)
    except Exception as error:
        reason = storage_failure(error)
        if reason is None:
            raise
        print(f'error: {reason}; with that mended the same command resumes from what has been saved', file=sys.stderr)
        sys.exit(2)


def with_flag(message: str, settings: Any) -> str:
    """A message that begins with what a flag was given, and is no file to be looked into, with that flag in front."""
    value = message.partition(': ')[0]
    if not value or value.startswith('--') or Path(value).is_file():
        return message
    for field in dataclasses.fields(settings) if settings is not None else ():
        given = getattr(settings, field.name)
        if isinstance(given, str) and value in re.split('[,=]', given):
            return f'--{field.name}={message}' if given == value else f'--{field.name}={given}: {message}'
    return message


def prepare_process() -> None:
    """Keeps freed memory and caches compilations on disk, for a program that calls scripts by another way."""
    _keep_freed_memory()
    _cache_compilations()


def storage_failure(error: BaseException) -> str | None:
    """What an error says of files that cannot be read or written, in one line; None where it is about something else.

    Libraries that write in threads, or in another language, keep no more of the system's error than its text.
    """
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.strerror:
            return ': '.join(str(part) for part in (error.filename, error.strerror) if part)
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
            if os.strerror(number) in str(error):
                paths = re.findall(r'"(/[^"]+)"', str(error))
                return ': '.join([*paths[:1], os.strerror(number)])
        error = error.__cause__ or error.__context__
    return None


def leave(code: int) -> None:
    """Ends the process; at once where others of the run may wait for it, so that the launcher sees that it is gone."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextlib.contextmanager
def _only_first_prints():
    """Prints and warnings of process 0 are those of the run; errors are everybody's."""
    if is_first():
        yield
        return
    logging.disable(logging.WARNING)
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def _mesh_of(settings):
    """The mesh that the flags name, for all that a script on language computes."""
    if not isinstance(settings, ComputeSettings) or settings.backend != 'jit' or jax.device_count() == 1:
        yield
        return
    with training_devices(settings), jax.set_mesh(make_mesh(settings.mesh)):
        yield


_S = TypeVar('_S', bound=RunSettings)


def parse(settings_class: type[_S], arguments: Sequence[str]) -> _S:
    """The settings that command-line arguments say, flag files included.

    Raises:
      InputError: an unknown flag, a value of the wrong kind, or one that the settings refuse.
    """
    values = flags.FlagValues()
    for field in dataclasses.fields(settings_class):
        given = dict(name=field.name, default=field.default, help=field.metadata['help'], flag_values=values)
        if field.metadata['choices']:
            flags.DEFINE_enum(enum_values=list(field.metadata['choices']), **given)
        else:
            _DEFINE[type(field.default)](**given)
    try:
        rest = values(['', *_expanded(arguments)])
    except flags.Error as error:
        raise InputError(str(error)) from error
    if rest[1:]:
        raise InputError(f'found {rest[1]!r}, which is no flag; flags are --name=value')
    given = {field.name: values[field.name].value for field in dataclasses.fields(settings_class)}
    read: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in given.items()}
    return settings_class(**read)


def help_text(settings_class: type[RunSettings], about: str) -> str:
    """What --help prints: what the script says of itself, then its flags by group, with defaults."""
    groups = flag_groups(settings_class)
    order = ('algorithm', 'data', 'model', 'adapter', 'optimiser', 'evaluation', 'run', 'devices')
    parts = [about.strip(), 'Flags are --name=value; --flagfile=FILE reads them from a file, one a line.']
    for group in order:
        fields = [field for field in dataclasses.fields(settings_class) if groups[field.name] == group]
        if fields:
            parts.append(f'{group}:\n' + '\n'.join(map(_help_line, fields)))
    return '\n\n'.join(parts)


def _help_line(field):
    default = f"'{field.default}'" if isinstance(field.default, str) else '' if field.default == () else field.default
    choices = [choice for choice in field.metadata['choices'] if choice]
    extra = f' One of {", ".join(choices)}.' if choices else ''
    needs = f' Needs --{field.metadata["needs"]}.' if field.metadata['needs'] else ''
    return f'  --{field.name}={default}\n      {field.metadata["help"]}{extra}{needs}'


def _expanded(arguments, within=()):
    """The arguments with the lines of every --flagfile in its place; `within` are the files that these stand in."""
    for argument in arguments:
        match = re.fullmatch(r'--?flagfile=(.*)', argument)
        if match is None:
            yield argument
            continue
        path = Path(match.group(1))
        if path in within:
            raise InputError(f'{argument}: stands in itself; leave that line out')
        try:
            lines = path.read_text().splitlines()
        except (OSError, ValueError) as error:
            raise InputError(f'{argument}: cannot be read ({error}); give a file of --name=value lines') from error
        lines = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith(('#', '//'))]
        yield from _expanded([_beside(line, path.parent) for line in lines], (*within, path))


def _beside(line, folder):
    """A flag whose value is a path (before a colon) that exists beside the flag file, and not from here."""
    name, equals, value = line.partition('=')
    path = value.partition(':')[0]
    if equals and path and not os.path.exists(path) and os.path.isfile(folder / path):
        return f'{name}={folder / value}'
    return line


def _log_in_lines():
    """Warnings of everybody, and what this package tells besides, one line each."""

    class Line(logging.Formatter):
        def format(self, record):
            name = 'warning' if record.levelno >= logging.WARNING else 'note'
            return f'{name}: {record.getMessage()}'

    handler = logging.StreamHandler()
    handler.setFormatter(Line())
    # We log on the root logger; libraries have loggers of their own. What orbax could not write it also raises.
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name == 'root')
    handler.addFilter(lambda record: f'{os.sep}orbax{os.sep}' not in record.pathname)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _without_echoes(hook):
    """A hook for unraisable errors without those of orbax's readers and writers: who asked them raises."""

    def called(unraisable):
        code = getattr(unraisable.object, 'cr_code', None)
        of_orbax = code is not None and f'{os.sep}orbax{os.sep}' in code.co_filename
        if not of_orbax and str(unraisable.exc_value) != 'Event loop is closed':
            hook(unraisable)

    return called


def _cache_compilations():
    # A program that was compiled once is read from disk the next time, in this run or another.
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    jax.config.update('jax_compilation_cache_dir', os.path.join(home, 'rlax_ft', 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def _keep_freed_memory():
    """Tells glibc to keep large blocks that were freed, instead of giving them back to the kernel at every step.

    A step frees and takes the same blocks again; each time the kernel would hand out zeroed pages, one fault each. All
    threads share one arena, since the arenas of threads hold no block above 64 MB, and a step takes one of hundreds.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # Another C library.
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # M_TRIM_THRESHOLD and so on of malloc.h.
    mallopt(arena_max, 1)
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)
