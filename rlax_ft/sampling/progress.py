"""A bar for work over many rows, once it has taken a while. Leaves out the bar of training (training/metrics.py)."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

from rlax_ft.parallel.hosts import is_first

# Seconds after which somebody would ask whether anything is going on.
_AFTER = 10


def shown(parts: Iterable, title: str) -> Iterable:
    """The same parts, with a bar on standard error from the tenth second on; of several processes one shows it."""
    pace = 0.5 if sys.stderr.isatty() else 15.0
    how = dict(delay=_AFTER, mininterval=pace, dynamic_ncols=True, leave=False, disable=not is_first())
    return tqdm(parts, desc=title, **how)
