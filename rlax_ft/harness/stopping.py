"""SIGINT and SIGTERM: asked to stop, a training loop ends after its step, with a checkpoint.

A second signal, or one outside a loop, interrupts at once: KeyboardInterrupt with the signal's number.
"""

import os
import signal
import threading

import jax

from rlax_ft.parallel.hosts import stop_asked

_asked = {'signal': 0, 'looping': False}


class Stopped(Exception):
    """A run that was asked to stop and has saved what it had; `signal` is what asked."""

    def __init__(self, message: str, number: int):
        """Takes the line to print and the signal's number."""
        super().__init__(message)
        self.signal = number


def listen() -> None:
    """Listens for both signals from now on; only a program's main thread can.

    In a run of several processes jax listens for SIGTERM, so that all stop after the same step; SIGINT becomes that.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if jax.process_count() > 1:
        signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _hear)


def looping(now: bool) -> None:
    """Says whether a loop is under way that looks at `asked` after every step.

    Raises:
      KeyboardInterrupt: the loop has ended, and a signal came that it did not look at any more.
    """
    unheard = 0 if now else _asked['signal']
    _asked.update(looping=now, signal=0)
    if unheard:
        raise KeyboardInterrupt(unheard)


def asked() -> int:
    """The signal that has asked to stop, on this host or another; 0 where none has. To be called once a step."""
    if stop_asked():
        _asked['signal'] = signal.SIGTERM
    return _asked['signal']


def stop(message: str) -> None:
    """Ends the run that was asked to stop.

    Raises:
      Stopped: always.
    """
    number, _asked['signal'] = _asked['signal'], 0
    raise Stopped(message, number)


def _hear(number, _):
    if not _asked['looping'] or _asked['signal']:
        _asked['signal'] = 0
        raise KeyboardInterrupt(number)
    _asked['signal'] = number
