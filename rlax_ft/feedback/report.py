"""The report of a collection of judgements: Markdown, the same as HTML, and figures. Leaves out every number in it."""

import html
import math
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from rlax_ft.feedback.bradley_terry import Strengths

_COLOUR, _OTHER = '#0072B2', '#D55E00'  # Of the palette of Okabe and Ito.
_STYLE = (
    'body{font:16px/1.55 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}'
    'body{color:#1b1f24;background:#fff}'
    'table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}'
    'th,td{border-bottom:1px solid #d3d8df;padding:.3rem .6rem;text-align:left;white-space:nowrap}'
    'th{white-space:normal;vertical-align:bottom}'
    'img{max-width:100%}'
    '@media(prefers-color-scheme:dark){body{background:#14171b;color:#e7eaee}img{background:#fff}}'
)


def write_report(folder: Path, source: str, numbers: dict) -> list[str]:
    """Writes report.md, report.html and the figures that the numbers allow; returns the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = []
    for name, draw in (
        ('agreement.png', _draw_agreement),
        ('policies.png', _draw_policies),
        ('times.png', _draw_times),
    ):
        (folder / name).unlink(missing_ok=True)
        if draw(folder / name, numbers):
            figures.append(name)
    parts = report_parts(source, numbers, figures)
    (folder / 'report.md').write_text(markdown(parts), encoding='utf-8')
    (folder / 'report.html').write_text(page(source, parts), encoding='utf-8')
    return ['report.md', 'report.html', *figures]


def report_parts(source: str, numbers: dict, figures: list[str]) -> list[tuple]:
    """The report as a list of ('title' | 'heading' | 'text' | 'figure', text) and ('table', heads, rows)."""
    n = numbers
    parts: list[tuple] = [
        ('title', f'Judgements of {source}'),
        (
            'text',
            f'{n["judgements"]} judgements of {n["items"]} items by {n["annotators"]} annotators, '
            f'{n["skipped"]} skips, {n["both_bad"]} with both bad, {n["undone"]} undone. '
            'Intervals are of 95 %, bootstrapped over items.',
        ),
        ('heading', 'Agreement'),
    ]
    rows = [[name, *_estimate(*value[:3]), str(value[3])] for name, value in n['agreement'].items()]
    parts.append(('table', ['', 'value', 'interval', 'items'], rows))
    parts += [('figure', name) for name in figures if name == 'agreement.png']
    if n['criteria']:
        rows = [[name, f'{v[4]:.2f}', *_estimate(*v[:3]), str(v[3])] for name, v in n['criteria'].items()]
        heads = ['criterion', 'mean rating', "Krippendorff's alpha, ordinal", 'interval', 'responses rated twice']
        parts += [('heading', 'By criterion'), ('table', heads, rows)]
    share, low, high, pairs = n['position']
    if pairs:
        bias = 'no bias is seen' if low <= 0.5 <= high else 'there is a bias'
        side = f'What was shown first won {share:.1%} ({low:.1%} to {high:.1%}) of {pairs} decided pairs: {bias}.'
        parts += [('heading', 'Position'), ('text', side)]
    parts += [('heading', 'Annotators'), ('table', *_annotators(n['by_annotator']))]
    parts += [('figure', name) for name in figures if name == 'times.png']
    parts += _policies(n['strengths'])
    return parts + [('figure', name) for name in figures if name == 'policies.png']


def _annotators(records):
    heads = [
        'annotator',
        'judgements',
        'skipped',
        'median seconds',
        'too fast',
        'first side',
        'same again',
        'gold found',
        'agrees with others',
        'weight',
        'flags',
    ]
    rows = []
    for r in records:
        again = f'{_share(r["consistency"])} of {r["repeated"]}' if r['repeated'] else '–'
        gold = f'{_share(r["gold"])} of {r["gold_items"]}' if r['gold_items'] else '–'
        rows.append(
            [
                r['name'],
                str(r['judgements']),
                str(r['skipped']),
                _number(r['median_seconds'], '.1f'),
                _share(r['too_fast']),
                _share(r['first_side']),
                again,
                gold,
                _share(r['agreement']),
                _number(r['weight'], '.2f'),
                ', '.join(r['flags']) or '–',
            ]
        )
    return heads, rows


def _policies(fitted: Strengths | None) -> list[tuple]:
    if fitted is None:
        return [('heading', 'Policies'), ('text', 'The judgements name no two policies that were compared.')]
    rows = []
    for i, name in enumerate(fitted.names):
        rate = 1 / (1 + math.exp(-(fitted.values[i] - fitted.values.mean())))
        rows.append([name, *_estimate(fitted.values[i], fitted.low[i], fitted.high[i]), f'{rate:.0%}'])
    parts = [
        ('heading', 'Policies'),
        ('table', ['policy', 'strength', 'interval', 'wins against the average, of the decided'], rows),
        (
            'text',
            f'Bradley-Terry with ties (Davidson), {fitted.comparisons} comparisons; a difference of 1 is odds of e.',
        ),
    ]
    if len(fitted.names) > 1:
        gap, error = fitted.difference(0, 1)
        first, second, more = *fitted.names[:2], fitted.more_needed()
        told = f'{first} and {second} differ by {gap:.2f} (standard error {error:.2f})'
        if more is None:
            told += '; they are as good as each other, and no number of judgements is in sight that would part them.'
        elif more:
            told += f'; about {more} more comparisons of the same kind would part them at 95 %.'
        else:
            told += ', which parts them at 95 %.'
        parts.append(('text', told))
    return parts


def markdown(parts: list[tuple]) -> str:
    """The parts as Markdown."""
    lines = []
    for kind, *rest in parts:
        if kind == 'table':
            heads, rows = rest
            lines.append(_line(heads) + '\n' + '|---' * len(heads) + '|\n' + '\n'.join(map(_line, rows)))
        else:
            words = _escaped(rest[0])
            lines.append(
                {'title': f'# {words}', 'heading': f'## {words}', 'figure': f'![{rest[0]}]({rest[0]})'}.get(kind, words)
            )
    return '\n\n'.join(lines) + '\n'


def page(title: str, parts: list[tuple]) -> str:
    """The parts as one HTML page without scripts."""
    body = []
    for kind, *rest in parts:
        if kind == 'table':
            heads, rows = rest
            head = ''.join(f'<th scope="col">{html.escape(cell)}</th>' for cell in heads)
            cells = [''.join(f'<td>{html.escape(cell)}</td>' for cell in row) for row in rows]
            body.append(
                f'<table><thead><tr>{head}</tr></thead><tbody>'
                + ''.join(f'<tr>{c}</tr>' for c in cells)
                + '</tbody></table>'
            )
        elif kind == 'figure':
            body.append(f'<p><img src="{html.escape(rest[0])}" alt="{html.escape(Path(rest[0]).stem)}"></p>')
        else:
            tag = {'title': 'h1', 'heading': 'h2'}.get(kind, 'p')
            body.append(f'<{tag}>{html.escape(rest[0])}</{tag}>')
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head><body>\n'
        + '\n'.join(body)
        + '\n</body></html>\n'
    )


def _line(cells):
    return '| ' + ' | '.join(_escaped(str(cell)) for cell in cells) + ' |'


def _escaped(text):
    """Names of annotators and policies come from outside: no markup, no further column."""
    return ' '.join(text.split()).replace('|', '\\|').replace('<', '&lt;')


def _estimate(value, low, high):
    return _number(value, '.3f'), '–' if math.isnan(low) else f'{low:.3f} to {high:.3f}'


def _number(value, form):
    return '–' if value is None or math.isnan(value) else format(value, form)


def _share(value):
    return '–' if math.isnan(value) else f'{value:.0%}'


def _draw_agreement(path, numbers):
    points = {name: v for name, v in numbers['agreement'].items() if not math.isnan(v[0])}
    return bool(points) and _draw_estimates(path, points, 'agreement (1: always; kappa, alpha 0: by chance)')


def _draw_policies(path, numbers):
    fitted = numbers['strengths']
    if fitted is None:
        return False
    points = {name: (fitted.values[i], fitted.low[i], fitted.high[i]) for i, name in enumerate(fitted.names)}
    return _draw_estimates(path, points, 'strength (log-odds of winning), 95 % interval')


def _draw_estimates(path, points, label):
    """Points with their intervals, one a line."""
    figure, axes = _axes(len(points))
    for y, (value, low, high) in enumerate((*v[:3],) for v in points.values()):
        if not math.isnan(low):
            axes.plot([low, high], [y, y], color=_COLOUR, lw=2)
        axes.plot(value, y, marker='o', color=_COLOUR)
    axes.set_yticks(range(len(points)), [_plain(name) for name in points])
    axes.invert_yaxis()
    axes.set_xlabel(label)
    return _saved(figure, path)


def _draw_times(path, numbers):
    records = [r for r in numbers['by_annotator'] if not math.isnan(r['median_seconds'])]
    if not records:
        return False
    figure, axes = _axes(len(records))
    colours = [_OTHER if r['flags'] else _COLOUR for r in records]
    axes.barh(range(len(records)), [r['median_seconds'] for r in records], color=colours, height=0.6)
    axes.set_yticks(range(len(records)), [_plain(r['name']) for r in records])
    axes.invert_yaxis()
    axes.set_xlabel('median seconds a judgement (orange: flagged)')
    return _saved(figure, path)


def _axes(lines):
    figure, axes = plt.subplots(figsize=(7.2, 1.2 + 0.38 * max(lines, 2)), layout='constrained')
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='x', alpha=0.3)
    return figure, axes


def _saved(figure, path):
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


def _plain(name):
    """A name as matplotlib draws it, which would read dollars as mathematics."""
    return (name if len(name) <= 40 else name[:39] + '…').replace('$', r'\$')
