"""Runs a model's program against its tests, with limits: a program of its own, which code.py starts.

It reads a job as JSON from standard input, and writes a line for each test passed. Limits are the kernel's: resource
limits for time and memory, a seccomp filter that refuses sockets, other programs, new processes and signals to others.
It imports nothing of the package.
"""

import ctypes
import io
import json
import os
import platform
import resource
import signal
import sys
import threading

NO_BARRIER = 97  # The exit status that says: the network cannot be shut off.

# Machine -> (audit architecture, system calls that are refused, clone). In order: socket, execve, execveat, kill,
# tkill, ptrace, process_vm_writev, io_uring_setup (which makes sockets), pidfd_send_signal, pidfd_getfd; x86-64 has
# fork and vfork besides.
_CALLS = {
    'x86_64': (0xC000003E, (41, 59, 322, 62, 200, 101, 311, 425, 424, 438, 57, 58), 56),
    'aarch64': (0xC00000B7, (198, 221, 281, 129, 130, 117, 271, 425, 424, 438), 220),
}
_CLONE3, _CLONE_THREAD = 435, 0x10000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026


class _Filter(ctypes.Structure):
    _fields_ = (('code', ctypes.c_uint16), ('yes', ctypes.c_uint8), ('no', ctypes.c_uint8), ('k', ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (('length', ctypes.c_uint16), ('filters', ctypes.POINTER(_Filter)))


def shut_off() -> bool:
    """Refuses this process sockets and other processes from here on; False where the system has no way to."""
    if sys.platform != 'linux' or platform.machine() not in _CALLS or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    architecture, refused, clone = _CALLS[platform.machine()]
    # Each line: operation, how many lines to skip if so, and if not, the number compared or returned.
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    lines += [(_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    for call in refused:
        lines += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, _EPERM)]
    # Flags of clone3 cannot be read here; without it the C library makes threads by clone, whose flags can.
    lines += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ENOSYS)]
    lines += [(_EQUAL, 0, 3, clone), (_LOAD, 0, 0, 16), (_ANY_BIT, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, _EPERM)]
    lines += [(_RETURN, 0, 0, _ALLOW)]
    filters = (_Filter * len(lines))(*(_Filter(*line) for line in lines))
    program = _Program(len(lines), ctypes.cast(filters, ctypes.POINTER(_Filter)))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges = libc.prctl(38, 1, 0, 0, 0) == 0
    return no_new_privileges and libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0


def main() -> None:
    """Runs the job that standard input describes."""
    job = json.loads(sys.stdin.buffer.read().decode('utf-8', 'surrogatepass'))
    verdicts, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    memory = int(job['memory_mb']) << 20
    cpu = int(job['seconds']) + 1
    for limit, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_FSIZE, 16 << 20),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    threading.stack_size(64 << 20)
    if not job['network'] and not shut_off():
        os._exit(NO_BARRIER)
    signal.setitimer(signal.ITIMER_REAL, float(job['seconds']))  # Unhandled, the alarm ends the process.
    for index in passed(job['program'], job['tests'], job['entry_point']):
        os.write(verdicts, f'{job["token"]} {index}\n'.encode())
    os._exit(0)


def passed(program: str, tests: list[list], entry_point: str):
    """Yields the number of each test that the program passes."""
    runs = [test for test in tests if test[0] != 'print']
    namespace = _run(program, {}) if runs else None
    for index, test in enumerate(tests):
        if test[0] == 'print':
            ok = _prints(program, test[1], test[2])
        elif namespace is None:
            ok = False
        elif test[0] == 'run':
            ok = _holds(test[1], namespace, entry_point)
        else:
            ok = _returns(namespace, entry_point, test[1], test[2])
        if ok:
            yield index


def _run(source, namespace):
    """The namespace after the source has run in it; None where it raised or left."""
    namespace['__name__'] = '__main__'
    try:
        exec(compile(source, 'program', 'exec'), namespace)
    except BaseException:
        return None
    return namespace


def _holds(test, namespace, entry_point):
    checks = 'def check(' in test and entry_point
    if checks and entry_point not in namespace:
        return False
    source = f'{test}\ncheck({entry_point})' if checks else test
    return _run(source, namespace) is not None


def _returns(namespace, entry_point, arguments, result):
    function = namespace.get(entry_point)
    if function is None and 'Solution' in namespace:
        try:
            function = getattr(namespace['Solution'](), entry_point, None)
        except BaseException:
            return False
    try:
        found = function(*arguments)
        return bool(found == result or json.loads(json.dumps(found)) == result)
    except BaseException:
        return False


def _prints(program, given, expected):
    """Whether the program prints what is expected, line ends and blanks at the ends of lines apart."""
    text = '\n'.join(map(str, given)) if isinstance(given, list) else str(given)
    expected = '\n'.join(map(str, expected)) if isinstance(expected, list) else str(expected)
    before = sys.stdin, sys.stdout
    sys.stdin, sys.stdout = io.TextIOWrapper(io.BytesIO(text.encode())), io.StringIO()
    try:
        exec(compile(program, 'program', 'exec'), {'__name__': '__main__'})
    except SystemExit as stop:
        if stop.code not in (None, 0):
            return False
    except BaseException:
        return False
    finally:
        printed = sys.stdout.getvalue() if isinstance(sys.stdout, io.StringIO) else ''
        sys.stdin, sys.stdout = before
    lines = lambda text: [line.rstrip() for line in text.rstrip().splitlines()]  # noqa: E731
    return lines(printed) == lines(expected)


if __name__ == '__main__':
    main()
