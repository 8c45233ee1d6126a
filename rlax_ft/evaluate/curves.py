"""Learning curves of several runs: read from their folders, put together over seeds, and as a Markdown table.

A run folder has metrics.jsonl, a record {"step", NAME: number, ...} a line, and flags.txt, its flags a line each.
plots.py draws them.
"""

import dataclasses
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlax_ft.errors import InputError

# Flags in which runs of one curve may differ.
_SEEDS = ('seed', 'out', 'resume')


@dataclasses.dataclass(frozen=True)
class RunRecords:
    """What a run folder says.

    Attributes:
      name: of the folder, as it was given.
      flags: by name; empty where there is no flags.txt.
      records: of metrics.jsonl.
    """

    name: str
    flags: dict[str, str]
    records: list[dict]


@dataclasses.dataclass(frozen=True)
class Curve:
    """One metric of runs that differ in nothing but their seed.

    Attributes:
      label: of the runs.
      steps: float[S].
      values: float[R, S], each seed's value at those steps, smoothed; NaN beyond what it has.
      last: float[R], each seed's mean over the last tenth of its steps, not smoothed.
      dropped: how many values were not finite and are left out.
    """

    label: str
    steps: np.ndarray
    values: np.ndarray
    last: np.ndarray
    dropped: int

    def centre(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(mean, lowest, highest) over seeds, float[S] each, where every seed has a value; NaN elsewhere."""
        return self.values.mean(axis=0), self.values.min(axis=0), self.values.max(axis=0)


def read_run(folder: str | Path) -> RunRecords:
    """The flags and metrics of a run folder; a last line that is being written is left for the next time.

    Raises:
      InputError: no metrics, or a line that is no record.
    """
    file = Path(folder) / 'metrics.jsonl'
    try:
        lines = file.read_text(encoding='utf-8').split('\n')
        flag_file = Path(folder) / 'flags.txt'
        flag_lines = flag_file.read_text(encoding='utf-8').splitlines() if flag_file.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{file}: cannot be read ({error}); give the folder of a run that has begun') from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                continue
            raise InputError(f'{file}:{number}: not JSON ({error}); give one object a line') from error
        if not isinstance(record, dict) or not _is_number(record.get('step'), 2.0**63):
            raise InputError(f'{file}:{number}: a record is an object with a number "step"')
        records.append(record)
    if not records:
        raise InputError(f'{file}: holds no record yet; give a run that has taken steps')
    flags = dict(line[2:].split('=', 1) for line in flag_lines if line.startswith('--') and '=' in line)
    return RunRecords(str(folder), flags, records)


def group_runs(runs: Sequence[RunRecords], group_by: Sequence[str] = ()) -> dict[str, list[RunRecords]]:
    """Runs by the label of their curve: those of equal flags but the seed, or of equal `group_by` flags.

    A label says what differs: the flags in which the groups do, or the folder where none says so.

    Raises:
      InputError: no run has a flag of that name.
    """
    names = sorted({name for run in runs for name in run.flags} - set(_SEEDS))
    for name in group_by:
        if name not in names and name not in _SEEDS:
            raise InputError(f'--group_by={name}: no run has that flag{_close(name, names)}')
    keys: dict[tuple, list] = {}
    for run in runs:
        own = [run.flags.get(name, '') for name in (group_by or names)]
        keys.setdefault(tuple(own) if run.flags else (run.name,), []).append(run)
    differing = group_by or [n for n in names if len({members[0].flags.get(n) for members in keys.values()}) > 1]
    labelled = {}
    for members in keys.values():
        label = ', '.join(f'{name}={members[0].flags.get(name, "")}' for name in differing) if members[0].flags else ''
        label = label or members[0].name
        # Two runs without flags may have folders of one name.
        labelled[label if label not in labelled else f'{label} ({members[0].name})'] = members
    return labelled


def mixed_flags(runs: Sequence[RunRecords]) -> list[str]:
    """The flags but seeds in which runs of one curve differ."""
    names = sorted({name for run in runs for name in run.flags} - set(_SEEDS))
    return [name for name in names if len({run.flags.get(name) for run in runs}) > 1]


def make_curve(label: str, runs: Sequence[RunRecords], metric: str, *, smooth: float = 0.0) -> Curve | None:
    """The curve of a metric; None where no run has it.

    A run that trained several seeds together has `metric/0`, `metric/1`, ...: each is a seed of the curve.

    Args:
      label: of the curve.
      runs: that differ in their seed.
      metric: such as `loss`.
      smooth: in [0, 1), the share of the running mean that a new value leaves; 0 does not smooth.
    """
    found = [_series(run.records, name) for run in runs for name in _seed_names(run, metric)]
    seeds, dropped = [s for s, _ in found if s], sum(count for _, count in found)
    if not seeds:
        return None
    steps = np.unique(np.concatenate([[step for step, _ in seed] for seed in seeds]))
    rows = []
    for seed in seeds:
        own, values = np.asarray(seed, np.float64).T
        rows.append(np.interp(steps, own, smoothed(values, smooth), left=np.nan, right=np.nan))
    last = [np.mean([v for step, v in seed if step > 0.9 * seed[-1][0]] or [seed[-1][1]]) for seed in seeds]
    return Curve(label, steps, np.asarray(rows), np.asarray(last), dropped)


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Running mean m_t = (1 - w) sum_k w^k x_{t-k} / (1 - w^{t+1}), float[S]: the first value counts no more."""
    total, scale, means = 0.0, 0.0, []
    for value in values:
        total, scale = weight * total + (1.0 - weight) * value, weight * scale + (1.0 - weight)
        means.append(total / scale)
    return np.asarray(means)


def curve_table(curves: dict[str, list[Curve]]) -> str:
    """A row a curve, a column a metric: the mean over seeds at the end, with the lowest and the highest seed.

    Args:
      curves: by metric.
    """
    labels = list(dict.fromkeys(curve.label for row in curves.values() for curve in row))
    lines = ['| | seeds | ' + ' | '.join(curves) + ' |', '|---|---|' + '---|' * len(curves)]
    for label in labels:
        cells = {metric: next((c for c in row if c.label == label), None) for metric, row in curves.items()}
        seeds = max(len(curve.last) for curve in cells.values() if curve is not None)
        lines.append(f'| {label} | {seeds} | ' + ' | '.join(_cell(curve) for curve in cells.values()) + ' |')
    return '\n'.join(lines)


def check_metric(metric: str, runs: Sequence[RunRecords]) -> None:
    """Refuses a metric that no run has.

    Raises:
      InputError: naming those that are close.
    """
    if not any(_series(run.records, name)[0] for run in runs for name in _seed_names(run, metric)):
        known = sorted({name for run in runs for record in run.records for name in record} - {'step'})
        raise InputError(f'--metrics={metric}: no run has a number of that name{_close(metric, known)}')


def _seed_names(run, metric):
    names = {name for record in run.records for name in record}
    numbered = [f'{metric}/{i}' for i in range(len(names)) if f'{metric}/{i}' in names]
    return numbered or [metric]


def _is_number(value, most):
    """Whether it is one that float64 holds: Python's integers, and so JSON's, have no largest."""
    return isinstance(value, int | float) and abs(value) <= most


def _series(records, name):
    """([(step, value)] by step, how many values were not finite)."""
    given = {record['step']: record[name] for record in records if name in record}
    finite = {step: v for step, v in given.items() if _is_number(v, sys.float_info.max)}
    return sorted(finite.items()), len(given) - len(finite)


def _cell(curve):
    if curve is None:
        return ''
    spread = f' ({curve.last.min():.4g} to {curve.last.max():.4g})' if len(curve.last) > 1 else ''
    return f'{curve.last.mean():.4g}{spread}'


def _close(name, known):
    close = difflib.get_close_matches(name, known, n=3) or known[:12]
    return f'; there are {", ".join(close)}' if close else ''
