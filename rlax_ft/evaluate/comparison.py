"""Methods on one task over betas and seeds: their curves of gold reward against KL, and what they reach at equal KL.

A record is one trained policy: {"method", "size", "beta", "seed", "kl", "gold", "score", "samples", "seconds", ...},
where `size` is the number of comparisons that the reward model (or the method itself) learned from, and `score` the
reward model's. Leaves out training and figures.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from rlax_ft.evaluate.frontier import Point, between, gain_share, peak, reward_at
from rlax_ft.evaluate.intervals import seed_interval


@dataclasses.dataclass(frozen=True)
class MethodCurve:
    """One method over betas.

    Attributes:
      label: of the method.
      seeds: for each seed its (KL, value) by growing KL; one point each with a `box`.
      betas: the weight of the KL term of each point of the mean, and those points.
      trace: (KL, value) of the first seed during training, where that is shown.
      box: (kl_low, kl_high, low, high), the interval of the mean of a method that is one point a seed.
    """

    label: str
    seeds: list[list[Point]]
    betas: list[tuple[float, Point]] = dataclasses.field(default_factory=list)
    trace: list[Point] = dataclasses.field(default_factory=list)
    box: tuple[float, float, float, float] | None = None

    def band(self, start: Point, points: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(KL, mean, lowest, highest) over seeds from the reference on, as far as every seed reaches, by `between`.

        Args:
          start: (0, value) of the reference.
          points: on the KL axis.
        """
        seeds = [sorted([start, *seed]) for seed in self.seeds]
        grid = np.linspace(0.0, min(seed[-1][0] for seed in seeds), points)
        values = np.asarray([between(seed, grid) for seed in seeds])
        return grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def method_curves(records: Sequence[dict], value: str = 'gold') -> dict[tuple[str, int], MethodCurve]:
    """The curve of every method and size, in the order in which they stand in the records.

    A run of one beta that was evaluated in training is followed along its training; otherwise the betas are the points.

    Args:
      records: of trained policies.
      value: which number stands on the y axis, `gold` or `score`.
    """
    groups: dict[tuple[str, int], list[dict]] = {}
    for record in records:
        if record.get(value) is not None:
            groups.setdefault((record['method'], record['size']), []).append(record)
    several = len({size for _, size in groups}) > 1
    curves = {}
    for (method, size), members in groups.items():
        runs = [[r for r in members if r['seed'] == seed] for seed in _values(members, 'seed')]
        seeds = [_points(_with_training(own, value), value) for own in runs]
        betas = []
        for beta in _values(members, 'beta'):
            own = [r for r in members if r['beta'] == beta]
            betas.append((beta, (_mean(own, 'kl'), _mean(own, value))))
        label = f'{method}, {size:,} comparisons' if several else method
        curves[method, size] = MethodCurve(label, seeds, betas)
    return curves


def at_equal_kl(
    records: Sequence[dict], kl: float, start: Point, optimum: Sequence[Point] = ()
) -> dict[tuple[str, int], tuple]:
    """((mean, low, high) of gold, share of the optimum's gain) of each method at a KL, between its betas.

    Args:
      records: of trained policies.
      kl: in nats.
      start: (0, gold) of the reference, from which every curve begins.
      optimum: of `frontier.optimum_curve`.

    Returns:
      By (method, size); (None, None) where a seed does not come so far. The share is of the mean.
    """
    found: dict[tuple, tuple] = {}
    for key, curve in method_curves(records).items():
        values = [reward_at([start, *seed], kl) for seed in curve.seeds]
        if any(value is None for value in values):
            found[key] = None, None
        else:
            interval = seed_interval(np.asarray(values))
            found[key] = interval, gain_share((kl, interval[0]), optimum) if optimum else None
    return found


def best_of_n_points(best_of_n: dict[tuple[str, int], list]) -> dict[str, dict[int, Point]]:
    """(KL, gold) of best of n by n, the mean over seeds, by the name that a figure gives it.

    Args:
      best_of_n: by (reward model, size) the rows [n, KL, gold, score] of every seed.
    """
    sizes = len({size for _, size in best_of_n}) > 1
    found = {}
    for (name, size), seeds in best_of_n.items():
        label = f'{name}, {size:,} comparisons' if sizes else name
        mean = np.mean(np.asarray(seeds, np.float64), axis=0)
        found[label] = {int(n): (float(kl), float(gold)) for n, kl, gold, _ in mean}
    return found


Panel = dict[str, tuple[list[list[Point]], list[list[Point]]]]


def overoptimisation_panels(records: Sequence[dict], best_of_n: dict[tuple[str, int], list]) -> dict[str, Panel]:
    """For best of n and each method, by the size of the reward model's data, ((KL, gold), (KL, score)) of every seed.

    The points are those of `method_curves`.

    Args:
      records: of trained policies, with a `trace`.
      best_of_n: as `best_of_n_points` takes it.
    """
    several = len({name for name, _ in best_of_n}) > 1
    panels: dict[str, Panel] = {}
    starts = {key: [(rows[0][2], rows[0][3]) for rows in seeds] for key, seeds in best_of_n.items()}
    for (name, size), seeds in best_of_n.items():
        panel = panels.setdefault(f'best of n by {name}' if several else 'best of n', {})
        scores, golds = ([[(row[1], row[i]) for row in rows] for rows in seeds] for i in (2, 3))
        panel[_size_label(size)] = scores, golds
    order = _values(records, 'seed')
    for key in dict.fromkeys((r['method'], r['size']) for r in records):
        members = [r for r in records if (r['method'], r['size']) == key]
        name = members[0]['reward_model']
        golds, scores = [], []
        for seed, (gold, score) in zip(order, starts[name, key[1]]):
            runs = [r for r in members if r['seed'] == seed]
            points = _with_training(runs, 'score')
            golds.append([(0.0, gold), *_points(points, 'gold')])
            scores.append([(0.0, score), *_points(points, 'score')])
        panels.setdefault(key[0], {})[_size_label(key[1])] = golds, scores
    return panels


def _size_label(size):
    return f'{size:,} comparisons'


def comparison_table(records: Sequence[dict], optimum: Sequence[Point]) -> str:
    """A row for each method, size and beta: means over seeds, with 95 % intervals where there are several."""
    several = len({record['size'] for record in records}) > 1
    head = ['method', *(['comparisons'] if several else []), 'β', 'seeds', 'KL (nats)', 'gold reward', 'reward model']
    head += ['share of π\\*', 'win rate', 'tokens', 'completions', 'seconds']
    lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault((record['method'], record['size'], record['beta']), []).append(record)
    for (method, size, beta), members in groups.items():
        shares = [share for r in members if (share := gain_share((r['kl'], r['gold']), optimum)) is not None]
        cells = [method, *([f'{size:,}'] if several else []), f'{beta:g}', str(len(members))]
        cells += [_interval([r[name] for r in members]) for name in ('kl', 'gold')]
        scores = [r['score'] for r in members if r.get('score') is not None]
        cells.append(_interval(scores) if scores else '')
        cells.append(f'{np.mean(shares):.0%}' if len(shares) == len(members) else '')
        cells += [f'{_mean(members, "win_rate"):.1%}', f'{_mean(members, "length"):.1f}']
        cells += [f'{_mean(members, "samples"):,.0f}', f'{_mean(members, "seconds"):.0f}']
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def equal_kl_table(
    records: Sequence[dict],
    targets: Sequence[float],
    start: Point,
    optimum: Sequence[Point],
    best_of_n: Mapping[str, Sequence[Point]],
) -> str:
    """Gold reward at each KL of `targets`: a row a method, then best of n by each reward model, then the optimum."""
    several = len({record['size'] for record in records}) > 1
    lines = ['| method | ' + ' | '.join(f'gold at {kl:g} nats | of π\\*' for kl in targets) + ' |']
    lines.append('|---' * (1 + 2 * len(targets)) + '|')
    found = [at_equal_kl(records, kl, start, optimum) for kl in targets]
    for method, size in found[0] if found else ():
        cells = [f'{method}, {size:,} comparisons' if several else method]
        for column in found:
            interval, share = column[method, size]
            cells.append('not reached' if interval is None else _written(interval))
            cells.append('' if share is None else f'{share:.0%}')
        lines.append('| ' + ' | '.join(cells) + ' |')
    for name, points in [*best_of_n.items(), ('optimum π\\*', optimum)]:
        cells = [name]
        for kl in targets:
            value = reward_at(points, kl)
            share = gain_share((kl, value), optimum) if value is not None and len(optimum) > 1 else None
            cells += ['not reached' if value is None else f'{value:.2f}', '' if share is None else f'{share:.0%}']
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def peak_table(curves: dict[str, list[list[Point]]]) -> str:
    """KL at which gold is highest, and the gold there: where over-optimisation begins, means over seeds with intervals.

    Args:
      curves: for each label the seeds' (KL, gold), the reference first.
    """
    lines = [
        '| | seeds | KL at the peak | gold at the peak | gold at the end | the end is lower in |',
        '|---' * 6 + '|',
    ]
    for label, seeds in curves.items():
        peaks = [peak(points) for points in seeds]
        last = [max(points)[1] for points in seeds]
        lower = sum(end < top for end, (_, top) in zip(last, peaks))
        cells = [label, str(len(seeds)), *(_interval([p[i] for p in peaks]) for i in (0, 1)), _interval(last)]
        lines.append('| ' + ' | '.join([*cells, f'{lower} of {len(seeds)} seeds']) + ' |')
    return '\n'.join(lines)


def _with_training(runs, value):
    along = runs[0].get('trace', []) if len(runs) == 1 else []
    return [*(point for point in along if value in point), *runs]


def _points(records, value):
    return sorted((max(float(r['kl']), 0.0), float(r[value])) for r in records)


def _values(records, name):
    return list(dict.fromkeys(record[name] for record in records))


def _mean(records, name):
    return float(np.mean([record[name] for record in records]))


def _interval(values):
    return _written(seed_interval(np.asarray(values, np.float64)))


def _written(interval):
    mean, low, high = interval
    return f'{mean:.2f}' if np.isnan(low) else f'{mean:.2f} ({low:.2f} to {high:.2f})'
