"""Renders chat templates: our own here, those of other people in a process that is ended when one takes too long.

The process is started when it is first needed, and serves all that follows. Leaves out what is rendered (rendering.py).
"""

import atexit
import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time

from rlax_ft.data import render_worker
from rlax_ft.data.known_templates import TEMPLATES
from rlax_ft.errors import InputError

_WALL_SECONDS = 8.0  # For one rendering, on a machine that has other work to do.
_START_SECONDS = 120.0
_TRUSTED = frozenset(TEMPLATES.values())


def rendered(request: dict) -> dict:
    """{"text", "spans"}, or {"error"} and perhaps {"line"}: what `render_worker.render` gives for a request.

    Args:
      request: arguments of transformers' `render_jinja_template`, with one conversation.

    Raises:
      InputError: there can be no other process.
    """
    template = request['chat_template']
    if template in _TRUSTED:
        return render_worker.render(request)
    with _lock:
        if template in _ended:
            return {'error': _ended[template]}
        answer = _worker().ask(request)
        if 'ended' in answer:
            # It would be so again: it is not asked a second time.
            _ended[template] = answer['error'] = answer.pop('ended')
        return answer


class _Worker:
    """The other process."""

    def __init__(self):
        self.pid = os.getpid()
        # -P: the modules beside the file are none of its own.
        command = [sys.executable, '-P', render_worker.__file__]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise InputError(
                f'a chat template is rendered in a process of its own, which cannot start ({error})'
            ) from error
        if self._answer(_START_SECONDS) != b'ready':
            self.end()
            raise InputError('a chat template is rendered in a process of its own, which did not start')

    def ask(self, request):
        """The answer; {"ended"} with the reason where the process did not outlive the request."""
        try:
            message = pickle.dumps(request)
        except (RecursionError, TypeError, AttributeError, pickle.PicklingError) as error:
            return {'error': f'a conversation that cannot be handed on ({error})'}
        try:
            self.process.stdin.write(render_worker.pack(message))
            self.process.stdin.flush()
            answer = self._answer(_WALL_SECONDS)
        except BrokenPipeError:
            answer = None
        if answer is not None:
            return json.loads(answer.decode('utf-8', 'surrogatepass'))
        slow = self.process.poll() in (None, -signal.SIGPROF)
        self.end()
        limit = f'it takes more than {render_worker.SECONDS:g} seconds' if slow else 'it takes too much memory'
        return {'ended': limit}

    def end(self):
        """Kills the process."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def alive(self):
        """Whether it can be asked, by this process."""
        return self.pid == os.getpid() and self.process.poll() is None

    def _answer(self, seconds):
        """One message; None where it does not come in time, or never will."""
        deadline = time.monotonic() + seconds
        head = self._read(8, deadline)
        return head and self._read(struct.unpack('<Q', head)[0], deadline)

    def _read(self, count, deadline):
        fd, parts = self.process.stdout.fileno(), []
        ready = select.poll()
        ready.register(fd, select.POLLIN)
        while count:
            if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            part = os.read(fd, min(count, 2**20))
            if not part:
                # The pipe is closed: so will the process be in a moment.
                self.process.wait()
                return None
            parts.append(part)
            count -= len(part)
        return b''.join(parts)


_lock = threading.Lock()
_ended: dict[str, str] = {}
_workers: list[_Worker] = []


def _worker():
    while _workers and not _workers[-1].alive():
        _workers.pop()
    if not _workers:
        _workers.append(_Worker())
    return _workers[-1]


@atexit.register
def _end_all():
    for worker in _workers:
        if worker.alive():
            worker.end()
