"""What a collection of judgements says of itself: agreement, position bias, consistency, times, policies.

Works on rows (rlax_ft/data/feedback.py), of which only the columns named here are needed. Leaves out drawing
(report.py) and the formulas (agreement.py, bradley_terry.py).
"""

import itertools
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from rlax_ft.data.feedback import check_rows, is_row, is_store, live, preference, said
from rlax_ft.data.forms import convert
from rlax_ft.data.sources import read_raw
from rlax_ft.errors import InputError
from rlax_ft.evaluate.win_rate import accuracy_interval
from rlax_ft.feedback import agreement
from rlax_ft.feedback.bradley_terry import Strengths, fit_strengths
from rlax_ft.feedback.dawid_skene import annotator_weights
from rlax_ft.feedback.judgements import judgement
from rlax_ft.feedback.store import readable_rows

# Nobody reads faster: a judgement that took less time than its text needs at 100 characters a second (about
# 1,000 words a minute), or less than a second, is too fast.
_CHARACTERS_A_SECOND, _LEAST_SECONDS = 100.0, 1.0
# Shares from which on an annotator is flagged.
_MANY_TOO_FAST, _LOW_GOLD, _LOW_SELF = 0.2, 0.7, 0.7


def read_judgements(path: str | Path) -> tuple[list[dict], str]:
    """(rows, a warning or '') of a store, a judgements JSONL, or a PandaLM file, whose annotators are taken apart.

    Raises:
      InputError: there is not one judgement in it.
    """
    fault = ''
    if is_store(path):
        rows, fault = readable_rows(path)
        if fault:
            fault = f'{path}: {fault}; {len(rows)} judgements could be read'
    else:
        read = enumerate(read_raw(path))
        rows = check_rows([(row, where) for n, (raw, where) in read for row in _rows_of(raw, where, n)])
    if not rows:
        raise InputError(fault or f'{path}: holds no judgement; give a store, a judgements JSONL or a PandaLM file')
    return rows, fault


def _rows_of(raw, where, number):
    if is_row(raw):
        return [raw]
    record = convert(raw, where)
    names = [name for name in ('annotator1', 'annotator2', 'annotator3') if raw.get(name) is not None]
    if 'response1' in raw and names:
        policies = str(raw.get('cmp_key', '')).split('_', 1)
        policies = policies if len(policies) == 2 else None
        vote = {0: [0, 0], 1: [0, 1], 2: [1, 0]}
        given = dict(item=str(raw.get('idx', number)), policies=policies)
        texts = record['prompt'], record['completions']
        return [judgement(*texts, vote[raw[name]], name, **given) | {'shown': None} for name in names]
    if isinstance(record.get('completions'), list) and isinstance(record.get('ranks'), list):
        texts, who = (record['prompt'], record['completions']), str(record.get('annotator', 'annotator'))
        return [judgement(*texts, record['ranks'], who, policies=raw.get('policies')) | {'shown': None}]
    raise InputError(f'{where}: no judgement; rows of feedback, rankings with an "annotator", or PandaLM were expected')


def summary(rows: list[dict], *, seed: int = 0, resamples: int = 1000, gold: dict | None = None) -> dict:
    """All numbers of a report, flat where they are single; NaN where something cannot be said.

    Args:
      rows: as they stand in the file.
      seed: of the bootstrap.
      resamples: of the bootstrap; 0 makes no intervals.
      gold: ranks that gold and training items should have, by item.
    """
    standing = live(rows)
    own = [row for row in standing if (row.get('purpose') or 'item') == 'item']
    judged = [row for row in own if row.get('ranks')]
    choices = Counter(row['choice'] for row in own)
    undone = sum(row['choice'] == 'undo' for row in rows)
    return {
        'judgements': len(judged),
        'items': len({row['item'] for row in judged}),
        'annotators': len({row['annotator'] for row in standing}),
        'skipped': choices['skip'],
        'both_bad': choices['both_bad'],
        'undone': undone,
        'agreement': agreement_of(judged, seed=seed, resamples=resamples),
        'criteria': criteria_of(own, seed=seed, resamples=resamples),
        'position': position_of(judged),
        'by_annotator': by_annotator(standing, gold or {}),
        'strengths': strengths_of(judged),
    }


def flat_summary(numbers: dict) -> dict:
    """The numbers of `summary` under flat names, for summary.json."""
    key = lambda name: name.lower().replace("'", '').replace(',', '').replace(' ', '_')  # noqa: E731
    flat: dict[str, float] = {name: value for name, value in numbers.items() if isinstance(value, int)}
    for name, (value, low, high, units) in numbers['agreement'].items():
        flat |= {key(name): value, f'{key(name)}_low': low, f'{key(name)}_high': high, 'shared_items': units}
    for name, (alpha, *_, mean) in numbers['criteria'].items():
        flat |= {f'alpha/{name}': alpha, f'rating/{name}': mean}
    flat |= dict(zip(('first_side', 'first_side_low', 'first_side_high'), numbers['position']))
    fitted = numbers['strengths']
    if fitted is not None:
        for i, name in enumerate(fitted.names):
            flat |= {f'strength/{name}': float(fitted.values[i])}
            flat |= {f'strength_low/{name}': float(fitted.low[i]), f'strength_high/{name}': float(fitted.high[i])}
        flat['more_comparisons_needed'] = fitted.more_needed()
    return flat


def pair_values(rows: list[dict]) -> tuple[np.ndarray, list[str], list[str]]:
    """(float[N, A] of 1, 0.5 or 0 for every pair of responses, NaN where not judged; annotators; item of each row).

    A ranking of more than two counts as all its pairs.
    """
    columns = {name: i for i, name in enumerate(dict.fromkeys(row['annotator'] for row in rows))}
    units: dict[tuple, dict] = defaultdict(dict)
    for row in rows:
        for i, j in itertools.combinations(range(len(row['ranks'])), 2):
            units[row['item'], i, j][columns[row['annotator']]] = preference(row['ranks'], i, j)
    values = np.full((len(units), len(columns)), np.nan)
    for n, said_of in enumerate(units.values()):
        for column, value in said_of.items():
            values[n, column] = value
    return values, list(columns), [unit[0] for unit in units]


_MEASURES = {
    'raw agreement': lambda values: agreement.raw_agreement(agreement.counts_of(values)),
    "Fleiss' kappa": lambda values: agreement.fleiss_kappa(agreement.counts_of(values)),
    "Cohen's kappa, mean of pairs": agreement.mean_cohen_kappa,
    "Krippendorff's alpha, nominal": agreement.krippendorff_alpha,
    "Krippendorff's alpha, ordinal": lambda values: agreement.krippendorff_alpha(values, 'ordinal'),
}


def agreement_of(rows: list[dict], *, seed: int, resamples: int) -> dict[str, tuple]:
    """(value, low, high, units) of each measure on the items that two or more have judged."""
    values, _, items = pair_values(rows)
    shared = (~np.isnan(values)).sum(axis=1) > 1
    values, groups = values[shared], np.asarray(items, object)[shared]
    found = {}
    for name, measure in _MEASURES.items():
        low, high = _interval(measure, values, groups, seed, resamples)
        found[name] = (measure(values) if len(values) else math.nan, low, high, len(set(groups)))
    return found


def criteria_of(rows: list[dict], *, seed: int, resamples: int) -> dict[str, tuple]:
    """(ordinal alpha, low, high, responses rated by two or more, mean rating) by criterion."""
    units: dict[str, dict] = defaultdict(lambda: defaultdict(dict))
    names = {name: i for i, name in enumerate(dict.fromkeys(row['annotator'] for row in rows))}
    for row in rows:
        for i, given in enumerate(row.get('ratings') or ()):
            for criterion, value in (given or {}).items():
                units[criterion][row['item'], i][names[row['annotator']]] = value
    found = {}
    for criterion, by_response in units.items():
        values = np.full((len(by_response), len(names)), np.nan)
        for n, given in enumerate(by_response.values()):
            for column, value in given.items():
                values[n, column] = value
        shared = (~np.isnan(values)).sum(axis=1) > 1
        groups = np.asarray([item for item, _ in by_response], object)[shared]
        measure = lambda values: agreement.krippendorff_alpha(values, 'ordinal')  # noqa: E731
        alpha = measure(values[shared]) if shared.any() else math.nan
        low, high = _interval(measure, values[shared], groups, seed, resamples)
        found[criterion] = (alpha, low, high, int(shared.sum()), float(np.nanmean(values)))
    return found


def position_of(rows: list[dict]) -> tuple[float, float, float, int]:
    """(share of decided pairs won by what was shown first, low, high, decided pairs); 0.5 is no bias."""
    won = total = 0
    for row in rows:
        # In files of others the order is not drawn at random, so that a side and a policy cannot be told apart.
        for i, j in itertools.combinations(row.get('shown') or (), 2):
            vote = preference(row['ranks'], i, j)
            won, total = won + (vote == 1.0), total + (vote != 0.5)
    return (*accuracy_interval(won, total), total) if total else (math.nan, math.nan, math.nan, 0)


def by_annotator(rows: list[dict], gold: dict) -> list[dict]:
    """A record an annotator: counts, times, share of the first side, consistency, gold, agreement, weight, flags."""
    weights = annotator_weights([row for row in rows if (row.get('purpose') or 'item') == 'item'])
    own: dict[str, list] = defaultdict(list)
    for row in rows:
        own[row['annotator']].append(row)
    judged = [row for row in rows if row.get('ranks') and (row.get('purpose') or 'item') == 'item']
    values, names, _ = pair_values(judged)
    found = []
    for name, mine in own.items():
        timed = [row for row in mine if row.get('active_ms') is not None and row['choice'] != 'skip']
        seconds = [row['active_ms'] / 1000 for row in timed]
        fast = sum(map(too_fast, timed))
        right, golden = _gold(mine, gold)
        same, repeated = _consistency(mine)
        side = position_of([row for row in mine if row.get('ranks')])
        record = {
            'name': name,
            'judgements': sum(row['choice'] != 'skip' for row in mine),
            'skipped': sum(row['choice'] == 'skip' for row in mine),
            'median_seconds': float(np.median(seconds)) if seconds else math.nan,
            'too_fast': fast / len(timed) if timed else math.nan,
            'first_side': side[0],
            'consistency': same / repeated if repeated else math.nan,
            'repeated': repeated,
            'gold': right / golden if golden else math.nan,
            'gold_items': golden,
            'agreement': _with_others(values, names, name),
            'weight': weights.get(name, math.nan),
        }
        found.append(record | {'flags': _flags(record, side)})
    return sorted(found, key=lambda record: record['name'])


def too_fast(row: dict) -> bool:
    """Whether a judgement took less time than anybody needs to read it."""
    length = row.get('length')
    if length is None:
        prompt = row['prompt'] if isinstance(row['prompt'], str) else said(row['prompt'])
        length = len(prompt) + sum(len(said(text)) for text in row['completions'])
    return row['active_ms'] / 1000 < max(_LEAST_SECONDS, length / _CHARACTERS_A_SECOND)


def strengths_of(rows: list[dict]) -> Strengths | None:
    """Bradley-Terry with ties over all pairs of different policies; None where there are none."""
    first, second, outcome, items = [], [], [], []
    for row in rows:
        policies = row.get('policies') or []
        for i, j in itertools.combinations(range(len(row['ranks'])), 2):
            if len(policies) > j and policies[i] and policies[j] and policies[i] != policies[j]:
                first.append(policies[i])
                second.append(policies[j])
                outcome.append(preference(row['ranks'], i, j))
                items.append(row['item'])
    if not outcome:
        return None
    clustered = len(set(items)) < len(items)
    return fit_strengths(first, second, np.asarray(outcome), items if clustered else None)


def _interval(measure, values, groups, seed, resamples):
    if not resamples or not len(values):
        return math.nan, math.nan
    return agreement.interval(measure, values, groups=groups.astype(str), seed=seed, resamples=resamples)


def _gold(rows, gold):
    """(found, asked) of gold items: the best are those that should be."""
    asked = [row for row in rows if row.get('purpose') == 'gold' and row['item'] in gold and row['choice'] != 'skip']
    best = lambda ranks: [rank == 0 for rank in ranks or ()]  # noqa: E731
    return sum(best(row.get('ranks')) == best(gold[row['item']]) for row in asked), len(asked)


def _consistency(rows):
    """(pairs of responses judged the same the second time, pairs judged twice)."""
    first = {row['item']: row['ranks'] for row in rows if row.get('ranks') and (row.get('purpose') or 'item') == 'item'}
    same = total = 0
    for row in rows:
        if row.get('purpose') == 'duplicate' and row.get('ranks') and row['item'] in first:
            for i, j in itertools.combinations(range(len(row['ranks'])), 2):
                total += 1
                same += preference(row['ranks'], i, j) == preference(first[row['item']], i, j)
    return same, total


def _with_others(values, names, name):
    """Share of the others' votes on the same pairs that are the same as his."""
    if name not in names:
        return math.nan
    own = values[:, names.index(name)]
    others = np.delete(values, names.index(name), axis=1)
    both = ~np.isnan(own)[:, None] & ~np.isnan(others)
    return float((others == own[:, None])[both].mean()) if both.any() else math.nan


def _flags(record, side):
    """What a researcher should look at, in words."""
    flags = []
    if record['too_fast'] > _MANY_TOO_FAST:
        flags.append(f'{record["too_fast"]:.0%} too fast')
    if record['gold_items'] >= 5 and record['gold'] < _LOW_GOLD:
        flags.append('gold items missed')
    if record['repeated'] >= 5 and record['consistency'] < _LOW_SELF:
        flags.append('not consistent')
    if side[3] >= 20 and not side[1] <= 0.5 <= side[2]:
        flags.append('prefers one side')
    return flags
