"""One sample, or two side by side, as lines of coloured text for a terminal, or as plain text.

A line is a list of (text, style) pieces; a style is a code of ANSI's (`48;5;224`), or empty. What the samples are is
samples.py's.
"""

import math
import unicodedata
from collections.abc import Sequence

from rlax_ft.evaluate.samples import PER_TOKEN, numbers, prompt_text

Line = list[tuple[str, str]]
# What tokens are coloured by.
VIEWS = ('logp', 'kl', 'advantage')
# Backgrounds of the 256 colours with black text, stronger from left to right; Wong's blue and orange for the signs.
_UNLIKELY = ('', '38;5;16;48;5;230', '38;5;16;48;5;222', '38;5;16;48;5;215', '38;5;16;48;5;208')
_NEGATIVE = ('', '38;5;16;48;5;195', '38;5;16;48;5;153', '38;5;16;48;5;111', '38;5;16;48;5;69')
_POSITIVE = ('', '38;5;16;48;5;224', '38;5;16;48;5;217', '38;5;16;48;5;210', '38;5;16;48;5;203')
_LEGENDS = {
    'logp': 'log-probability: stronger orange is less likely, the strongest below -4 nats',
    'kl': 'KL, log pi - log pi_ref: red is likelier than under the reference, blue less; strongest at {:.2g} nats',
    'advantage': 'advantage: red above 0, blue below; strongest at {:.2g}',
}
_BOLD, _DIM = '1', '2'


def token_values(record: dict, view: str) -> list[float] | None:
    """The number of each token in one of `VIEWS`; None where the sample does not have it."""
    logps, ref_logps, advantages = (record.get(name) for name in PER_TOKEN)
    if view == 'logp':
        return logps
    if view == 'advantage':
        return advantages
    if view == 'kl' and logps and ref_logps:
        return [a - b for a, b in zip(logps, ref_logps)]
    return None


def views_of(records: Sequence[dict]) -> list[str]:
    """The views that any of the samples has numbers for."""
    return [view for view in VIEWS if any(token_values(record, view) for record in records)]


def render(record: dict | None, *, view: str = 'logp', width: int = 100) -> list[Line]:
    """A sample as lines of at most `width` columns: numbers, prompt, completion by token in colour, and a legend."""
    if record is None:
        return [[('(no sample for this prompt)', _DIM)]]
    lines: list[Line] = []
    for name, value in numbers(record).items():
        text = f'{" ".join(printable(name).split())} {value:.4g}'
        if lines and len(plain(lines[-1])) + len(text) + 3 <= width:
            lines[-1].append((f' · {text}', ''))
        else:
            lines.append([(text[:width], '')])
    lines += [
        [],
        [('prompt', _BOLD)],
        *wrap([(prompt_text(record['prompt']), _DIM)], width),
        [],
        [('completion', _BOLD)],
    ]
    values = token_values(record, view)
    if values is None:
        return [*lines, *wrap([(record['completion'], '')], width)]
    most = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    pieces = [(token, _shade(value, view, most)) for token, value in zip(record['tokens'], values)]
    return [*lines, *wrap(pieces, width), [], *wrap([(_LEGENDS[view].format(most), _DIM)], width)]


def token_table(record: dict) -> list[str]:
    """The tokens with their numbers, a line each; none where the sample has no numbers."""
    by_view = {view: token_values(record, view) for view in views_of([record])}
    if not by_view:
        return []
    rows = [f'{"token":<16} ' + ' '.join(f'{view:>10}' for view in by_view)]
    for i, token in enumerate(record['tokens']):
        rows.append(f'{printable(repr(token)):<16} ' + ' '.join(f'{values[i]:>10.3f}' for values in by_view.values()))
    return rows


def columns(left: list[Line], right: list[Line], width: int) -> list[Line]:
    """Two renderings beside each other, each `width` columns wide."""
    height = max(len(left), len(right))
    left, right = (lines + [[]] * (height - len(lines)) for lines in (left, right))
    return [
        [*a, (' ' * (width - sum(text_width(text) for text, _ in a)), ''), (' │ ', _DIM), *b]
        for a, b in zip(left, right)
    ]


def wrap(pieces: Line, width: int) -> list[Line]:
    """Pieces cut into lines of at most `width` columns, at blanks where there is one; newlines are shown as ⏎."""
    lines: list[Line] = []
    line: Line = []
    used, blank = 0, None
    for text, style in pieces:
        for character in printable(text):
            if character == '\n':
                lines.append([*line, ('⏎', _DIM)] if used < width else line)
                line, used, blank = [], 0, None
                continue
            if used + text_width(character) > width:
                cut = len(line) if blank is None else blank
                lines.append(line[:cut])
                line = line[cut:]
                used, blank = sum(text_width(c) for c, _ in line), None
            line.append((character, style))
            used += text_width(character)
            if character == ' ':
                blank = len(line)
    return [_joined(line) for line in (*lines, line)]


def printable(text: str) -> str:
    """The text with control characters as symbols, so that a sample cannot steer the terminal."""
    shown = []
    for character in text.expandtabs(4):
        if character == '\n':
            shown.append(character)
        elif ord(character) < 32:
            shown.append(chr(0x2400 + ord(character)))
        else:
            # Surrogates, direction marks and the like: nothing that prints.
            shown.append(character if unicodedata.category(character)[0] != 'C' else '\N{REPLACEMENT CHARACTER}')
    return ''.join(shown)


def text_width(text: str) -> int:
    """Columns of a terminal that the text takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in 'WF' else 1 for c in text)


def ansi(line: Line) -> str:
    """A line with its styles as escape sequences."""
    return ''.join(f'\x1b[{style}m{text}\x1b[0m' if style else text for text, style in line)


def plain(line: Line) -> str:
    """A line without its styles."""
    return ''.join(text for text, _ in line)


def _shade(value, view, most):
    if not math.isfinite(value):
        return '7'  # Reversed: no number.
    if view == 'logp':
        return _UNLIKELY[min(int(-value), len(_UNLIKELY) - 1) if value < 0 else 0]
    strength = 0 if most == 0 else min(round(abs(value) / most * (len(_POSITIVE) - 1)), len(_POSITIVE) - 1)
    return (_POSITIVE if value > 0 else _NEGATIVE)[strength]


def _joined(line):
    """Neighbours of one style as one piece."""
    pieces: Line = []
    for text, style in line:
        if pieces and pieces[-1][1] == style:
            pieces[-1] = (pieces[-1][0] + text, style)
        else:
            pieces.append((text, style))
    return pieces
