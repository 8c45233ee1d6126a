"""Which item an annotator is asked next: overlap, repeats for consistency, gold items, and the order by strategy.

Everything here is in memory and takes a fraction of a millisecond with 100,000 items; it is made anew from the store
when a server starts. Leaves out what is shown of an item (app.py).
"""

import dataclasses
import hashlib
import time
from collections import defaultdict

import numpy as np

STRATEGIES = ('random', 'uncertain', 'disagree')
LEASE_SECONDS = 1800.0  # After which an item that was given out and not judged is given to others.
_REPEAT_AFTER = 3  # Judgements that lie between an item and its repetition at least.


@dataclasses.dataclass(frozen=True)
class Task:
    """What one annotator is asked.

    Attributes:
      item: its id.
      purpose: `item`, `duplicate`, `gold` or `training`.
      repeat: 0 the first time, 1 for the repetition.
    """

    item: str
    purpose: str
    repeat: int = 0


def chance(*parts) -> float:
    """A number in [0, 1) that these parts always give."""
    digest = hashlib.blake2b('\x1f'.join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'big') / 2**64


def priority(scores: list | None, strategy: str) -> float:
    """How late an item is asked under a strategy; lower is earlier, NaN where its scores do not say.

    Args:
      scores: of each response a list with one number a model, or None.
      strategy: `uncertain`: the smallest difference between neighbours in mean score; `disagree`: minus the standard
        deviation, over the models, of the difference between the first two responses (largest over pairs).
    """
    if strategy == 'random' or not scores or any(not some for some in scores):
        return float('nan')
    values = np.asarray([some for some in scores], float) if len({len(s) for s in scores}) == 1 else None
    if values is None:
        return float('nan')
    if strategy == 'uncertain':
        return float(np.min(np.diff(np.sort(values.mean(axis=1)))))
    if values.shape[1] < 2:
        return float('nan')
    return -float((values[:, None] - values[None]).std(axis=-1).max())


class Queue:
    """The state of a collection: who has judged what, and what is given out."""

    def __init__(
        self,
        *,
        seed: int = 0,
        overlap: int = 1,
        duplicate_rate: float = 0.0,
        gold_rate: float = 0.0,
        training: int = 10,
        now=time.monotonic,
    ):
        """Takes the settings.

        Args:
          seed: of the order and of who gets what again.
          overlap: how many annotators judge each item.
          duplicate_rate: share of an annotator's items that are asked again.
          gold_rate: share of gold items among those asked.
          training: how many training items come before an annotator's first real one.
          now: the clock of leases, in seconds.
        """
        self._seed, self.overlap, self._now = seed, overlap, now
        self._duplicate_rate, self._gold_rate, self._training = duplicate_rate, gold_rate, training
        self.names: list[str] = []
        self._row: dict[str, int] = {}
        self._special: dict[str, list[str]] = {'gold': [], 'training': []}
        self._purpose: dict[str, str] = {}
        self._priority = np.zeros(0)
        self._shuffle = np.zeros(0)
        self._places: np.ndarray | None = None  # Of each row in the order of asking; made when it is needed.
        self.counts = np.zeros(0, np.int32)
        self._taken = np.zeros(0, np.int32)  # Judged, and given out to be judged.
        self._leases: dict[tuple[str, str], float] = {}
        self._seen: dict[str, np.ndarray] = {}
        # By annotator: (item, repeat) -> id of the judgement that stands, in the order of judging.
        self.standing: dict[str, dict[tuple[str, int], str]] = defaultdict(dict)
        self._history: dict[str, list[str]] = defaultdict(list)  # Items of his own, for repeats.
        self._current: dict[str, list[Task]] = defaultdict(list)

    def add(self, items: list[tuple[str, str, float]]) -> None:
        """Adds (id, purpose, priority); those that are known already get the new priority."""
        self._places = None
        fresh = []
        for name, purpose, value in items:
            if name in self._row:
                self._priority[self._row[name]] = value
            elif name not in self._purpose:
                self._purpose[name] = purpose
                if purpose in self._special:
                    self._special[purpose].append(name)
                else:
                    self._row[name] = len(self.names)
                    self.names.append(name)
                    fresh.append((value, chance(self._seed, name)))
        if fresh:
            values, shuffle = map(np.asarray, zip(*fresh))
            grown = lambda old, new: np.concatenate([old, new])  # noqa: E731
            self._priority, self._shuffle = grown(self._priority, values), grown(self._shuffle, shuffle)
            zeros = np.zeros(len(fresh), np.int32)
            self.counts, self._taken = grown(self.counts, zeros), grown(self._taken, zeros)
            for name, seen in self._seen.items():
                self._seen[name] = grown(seen, zeros.astype(bool))

    def record(self, name: str, task: Task, annotator: str, choice: str, supersedes: str | None) -> None:
        """Takes a judgement in, new or from the store: `name` is its id; of an undo, `task` is what is undone."""
        key = (task.item, task.repeat)
        row = self._row.get(task.item)
        if choice == 'undo':
            self.standing[annotator].pop(key, None)
            if row is not None and task.repeat == 0:
                self._seen_by(annotator)[row] = False
                if task.item in self._history[annotator]:
                    self._history[annotator].remove(task.item)
                    self.counts[row] -= 1
                    self._taken[row] -= 1
            return
        self.standing[annotator][key] = name
        self._current[annotator] = [t for t in self._current[annotator] if (t.item, t.repeat) != key]
        self._release(annotator, task.item)
        if row is not None and task.repeat == 0:
            self._seen_by(annotator)[row] = True
            if choice != 'skip':
                self.counts[row] += 1
                self._taken[row] += 1
                self._history[annotator].append(task.item)

    def next(self, annotator: str) -> Task | None:
        """What this annotator is asked now, the same until it is judged; None where nothing is left for him."""
        if not self._current[annotator]:
            task = self._choose(annotator)
            if task is None:
                return None
            self._current[annotator].append(task)
        task = self._current[annotator][-1]
        self._lease(annotator, task)
        return task

    def resume(self, annotator: str, task: Task) -> None:
        """Takes up again what an annotator was asked before the server was restarted."""
        if self.may_judge(annotator, task) and task not in self._current[annotator]:
            self._current[annotator].append(task)

    def may_judge(self, annotator: str, task: Task) -> bool:
        """Whether the item exists, and no judgement of his on it stands."""
        return task.item in self._purpose and (task.item, task.repeat) not in self.standing[annotator]

    def last(self, annotator: str) -> tuple[Task, str] | None:
        """(what he judged last and may undo, id of that judgement); not what told him the right answer."""
        for (item, repeat), name in reversed(self.standing[annotator].items()):
            if self._purpose.get(item) == 'training':
                return None
            return Task(item, self._purpose_of(item, repeat), repeat), name
        return None

    def reopen(self, annotator: str, task: Task) -> None:
        """Asks an item again that has just been undone."""
        self._current[annotator].append(task)

    def purposes(self) -> dict[str, str]:
        """The purpose of every item by its id."""
        return self._purpose

    def progress(self, annotator: str) -> dict:
        """Numbers for the page: what he has done, what is left for him, and for all."""
        trained = self._trained(annotator)
        open_rows = self.counts < self.overlap
        return {
            'done': len(self.standing[annotator]) - trained,
            'left': int(np.count_nonzero(open_rows & ~self._seen_by(annotator))),
            'items': len(self.names),
            'complete': len(self.names) - int(np.count_nonzero(open_rows)),
            'training': [trained, self._training_size()],
        }

    def _training_size(self):
        return min(self._training, len(self._special['training']))

    def _trained(self, annotator):
        done = self.standing[annotator]
        return sum((name, 0) in done for name in self._special['training'][: self._training_size()])

    def _choose(self, annotator):
        done = self.standing[annotator]
        for name in self._special['training'][: self._training_size()]:
            if (name, 0) not in done:
                return Task(name, 'training')
        turn = len(done)
        if chance(self._seed, annotator, 'gold', turn) < self._gold_rate:
            gold = [name for name in self._special['gold'] if (name, 0) not in done]
            if gold:
                return Task(min(gold, key=lambda name: chance(self._seed, annotator, name)), 'gold')
        if chance(self._seed, annotator, 'duplicate', turn) < self._duplicate_rate:
            again = [name for name in self._history[annotator][:-_REPEAT_AFTER] if (name, 1) not in done]
            if again:
                name = min(again, key=lambda name: chance(self._seed, annotator, 'again', name))
                return Task(name, 'duplicate', 1)
        row = self._best_row(annotator)
        return None if row is None else Task(self.names[row], 'item')

    def _best_row(self, annotator):
        if not self.names:
            return None
        self._expire()
        free = (self._taken < self.overlap) & ~self._seen_by(annotator)
        # What others have begun comes first, so that items become complete; then the strategy; then chance.
        begun = free & (self._taken > 0)
        if begun.any():
            free = begun
        if self._places is None:
            order = np.lexsort((self._shuffle, self._priority))  # NaN comes last.
            self._places = np.empty(len(order), np.int32)
            self._places[order] = np.arange(len(order))
        row = int(np.where(free, self._places, len(free)).argmin())
        return row if free[row] else None

    def waiting(self, annotator: str) -> bool:
        """Whether something may be left for him once others have given up what they hold."""
        return bool((~self._seen_by(annotator) & (self.counts < self.overlap)).any())

    def _purpose_of(self, item, repeat):
        return 'duplicate' if repeat else self._purpose[item]

    def _seen_by(self, annotator):
        if annotator not in self._seen:
            self._seen[annotator] = np.zeros(len(self.names), bool)
        return self._seen[annotator]

    def _lease(self, annotator, task):
        row = self._row.get(task.item)
        if row is None or task.repeat:
            return
        if (annotator, task.item) not in self._leases:
            self._taken[row] += 1
        self._leases[annotator, task.item] = self._now() + LEASE_SECONDS

    def _release(self, annotator, item):
        if self._leases.pop((annotator, item), None) is not None:
            self._taken[self._row[item]] -= 1

    def _expire(self):
        now = self._now()
        for annotator, item in [key for key, end in self._leases.items() if end < now]:
            self._release(annotator, item)
            # Unless he comes back first, it is no longer his.
            self._current[annotator] = [task for task in self._current[annotator] if task.item != item]
