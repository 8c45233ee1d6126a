"""Tables and panels of evaluate.py: policies, and judges of answers, side by side.

A record is one model's numbers by name, with intervals as NAME_low and NAME_high. Leaves out every number in it.
"""

from collections.abc import Sequence

# Name, title in a table, how it is written.
_POLICY = (
    ('gold', 'gold reward', '.3g'),
    ('reward', 'reward', '.3g'),
    ('kl', 'KL (nats)', '.2f'),
    ('win_rate', 'win rate', '.1%'),
    ('lc_win_rate', 'at equal length', '.1%'),
    ('tied', 'ties', '.1%'),
    ('consistency', 'same in both orders', '.1%'),
    ('position_bias', 'bias for the first', '+.1%'),
    ('length', 'tokens', '.1f'),
    ('ended', 'ended', '.1%'),
    ('ungrammatical', 'ungrammatical', '.1%'),
    ('distinct_1', 'distinct-1', '.3f'),
    ('distinct_2', 'distinct-2', '.3f'),
    ('distinct_texts', 'distinct texts', '.1%'),
)
_JUDGE = (
    ('kind', 'kind', ''),
    ('pairs', 'pairs', ','),
    ('accuracy', 'accuracy', '.1%'),
    ('accuracy_longer', 'where the longer is right', '.1%'),
    ('accuracy_shorter', 'where the shorter is', '.1%'),
    ('prefers_longer', 'prefers the longer', '.1%'),
    ('chosen_is_longer', 'people prefer it', '.1%'),
    ('consistency', 'same in both orders', '.1%'),
    ('position_bias', 'bias for the first', '+.1%'),
    ('ece', 'calibration error', '.3f'),
    ('nll', 'NLL', '.3f'),
    ('temperature', 'temperature', '.3g'),
    ('ece_fitted', 'error with it', '.3f'),
    ('nll_fitted', 'NLL with it', '.3f'),
)
_IN_FIGURE = ('gold', 'reward', 'kl', 'win_rate', 'lc_win_rate', 'length', 'distinct_2')
_SIDES = ('_low', '_high')


def policy_report(records: Sequence[dict]) -> str:
    """report.md of policies, or of the harness's tasks."""
    first = records[0]['name']
    notes = ['Intervals are of 95 %, by bootstrap over prompts.'] if any('samples' in r for r in records) else []
    if any('win_rate' in r for r in records):
        notes.append(
            f'Win rates are against {first} on the same prompts, a tie being half a win; at equal length: what they '
            'would be if both wrote equally long (arXiv 2404.04475, without its term for how hard a prompt is).'
        )
    return '\n\n'.join(
        ['# Models side by side', _table(records, _policy_columns(records)), *notes, '![models](models.png)']
    )


def judge_report(records: Sequence[dict]) -> str:
    """report.md of judges on comparisons."""
    parts = ['# Judges of answers side by side', _table(records, _JUDGE)]
    subsets = list(dict.fromkeys(row['subset'] for record in records for row in record['subsets']))
    if len(subsets) > 1:
        parts += ['## Accuracy by subset', _subset_table(records, subsets)]
    parts += [
        'Accuracies with 95 % Wilson intervals; a tie is half right. The longer answer is that of more words.',
        '![accuracy](models.png)',
    ]
    if any('ece' in record for record in records):
        parts += [
            'Calibration is that of σ(margin); its temperature is fitted on one half of the pairs and measured on the '
            'other, both ways.',
            '![calibration](reliability.png)',
        ]
    return '\n\n'.join(parts)


def policy_panels(records: Sequence[dict]) -> dict[str, list[tuple]]:
    """What `plots.plot_bars` draws of policies."""
    columns = [
        c for c in _policy_columns(records) if c[0] in _IN_FIGURE or c[0] not in [name for name, _, _ in _POLICY]
    ]
    return {
        title: [(r['name'], r[name], *(r.get(name + side) for side in _SIDES)) for r in records if name in r]
        for name, title, _ in columns
    }


def judge_panels(records: Sequence[dict]) -> dict[str, list[tuple]]:
    """What `plots.plot_bars` draws of judges: the accuracy on each subset."""
    subsets = list(dict.fromkeys(r['subset'] for record in records for r in record['subsets'] if 'low' in r))
    return {
        f'accuracy, {subset}': [
            (record['name'], row['accuracy'], row.get('low'), row.get('high'))
            for record in records
            for row in record['subsets']
            if row['subset'] == subset
        ]
        for subset in subsets
    }


def _policy_columns(records):
    """Those that some record has: the known ones, then pass@k and whatever else has a name of its own."""
    known = {name for name, _, _ in _POLICY} | {'name', 'prompts', 'samples', 'won', 'lost'}
    further = [n for record in records for n in record if n not in known and not n.endswith((*_SIDES, '_stderr'))]
    columns = [*_POLICY, *((name, name, '.1%' if name.startswith('pass@') else '.3g') for name in further)]
    return [c for c in dict.fromkeys(columns) if any(c[0] in record for record in records)]


def _table(records, columns):
    columns = [column for column in columns if any(column[0] in record for record in records)]
    lines = ['| | ' + ' | '.join(title for _, title, _ in columns) + ' |', '|---' * (1 + len(columns)) + '|']
    for record in records:
        lines.append(
            f'| {record["name"]} | ' + ' | '.join(_cell(record, name, form) for name, _, form in columns) + ' |'
        )
    return '\n'.join(lines)


def _subset_table(records, subsets):
    lines = ['| subset | pairs | ' + ' | '.join(record['name'] for record in records) + ' |']
    lines.append('|---' * (2 + len(records)) + '|')
    for subset in subsets:
        rows = [next((row for row in record['subsets'] if row['subset'] == subset), {}) for record in records]
        pairs = max(row.get('pairs', 0) for row in rows)
        cells = [
            _cell({'x': row.get('accuracy'), 'x_low': row.get('low'), 'x_high': row.get('high')}, 'x', '.1%')
            for row in rows
        ]
        lines.append(f'| {subset} | {pairs:,} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _cell(record, name, form):
    value, low, high = (record.get(name + side) for side in ('', *_SIDES))
    if value is None:
        return ''
    return _number(value, form) + ('' if low is None else f' ({_number(low, form)} to {_number(high, form)})')


def _number(value, form):
    text = f'{value:{form}}'
    # What is rounded to 0 has no sign.
    return text.lstrip('+-') if not any(digit in text for digit in '123456789') and form else text
