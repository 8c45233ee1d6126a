"""Rewards that fail: one that raises, takes too long, or gives no finite number costs its group alone, up to a share.

A batch is scored in one call. Where that fails, each group of completions of one prompt is scored by itself; those that
fail again get no score (NaN), are counted, and logged with the first text concerned.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Sequence

import numpy as np

from rlax_ft.errors import InputError
from rlax_ft.rewards.rules import reward_scores
from rlax_ft.types import RewardFn


class _TooLong(BaseException):
    """The time is over; a reward's own `except Exception` does not catch it."""


def guarded_scores(
    reward: RewardFn,
    records: Sequence[dict],
    completions: Sequence[str],
    *,
    name: str = 'reward',
    share: float = 0.0,
    seconds: float = 0.0,
    **info,
) -> np.ndarray:
    """The reward of each completion, float32[B]; NaN for all of a group that failed.

    Args:
      reward: `f(records, completions, **info)`.
      records: B records; a group is the adjacent rows of one record, the very same object.
      completions: B texts.
      name: of the reward, for messages.
      share: of the groups of a batch that may fail; 0 stops at the first failure.
      seconds: a call that takes longer has failed; 0 sets no limit.
      **info: what else the reward may ask for.

    Raises:
      InputError: more than the share failed; the first failure, with its text, is named.
    """

    def scores(part: slice) -> np.ndarray:
        given = records[part], completions[part]
        with time_limit(seconds, f'{name}: took more than {seconds:g} s on completions such as {given[1][0]!r}'):
            try:
                return reward_scores(reward, *given, name=name, **info)
            except InputError as error:
                told = str(error)  # A rule says what it misses in a record, and not which rule it is.
                raise InputError(told if told.startswith(name) else f'{name}: {told}') from error

    try:
        return scores(slice(None))
    except InputError:
        if not share:
            raise
    result, failures = np.full(len(completions), np.nan, np.float32), []
    starts = [i for i, record in enumerate(records) if i == 0 or record is not records[i - 1]]
    groups = len(starts)
    for group, part in enumerate(map(slice, starts, [*starts[1:], None])):
        try:
            result[part] = scores(part)
        except InputError as error:
            failures.append(str(error))
            if len(failures) > share * groups:
                raise InputError(
                    f'{failures[0]}; {len(failures)} of {group + 1} groups failed, more than '
                    f'--reward_failures={share:g} of {groups} allows'
                ) from error
    if failures:
        logging.warning('%d of %d groups have no reward and teach nothing: %s', len(failures), groups, failures[0])
    return result


@contextlib.contextmanager
def time_limit(seconds: float, message: str):
    """Raises InputError with the message where the block takes longer; 0 sets no limit.

    The limit is an alarm of the process, which ends loops, waits and regular expressions, but no call of a library that
    never comes back to Python. Only the main thread can set it; in another there is no limit.

    Args:
      seconds: of wall-clock time.
      message: what to say.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again: a reward that catches everything must not outlive the first alarm.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    except _TooLong as error:
        raise InputError(message) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
