"""Rows as a person can read them: what the model sees, coloured by what it is for, and counts of tokens.

Leaves out making rows (rows.py).
"""

import os

import numpy as np

from rlax_ft.data.templates import Dialogue

# What a span is called, its ANSI colour, and its brackets where there is no colour.
STYLES = {
    'prompt': ('\x1b[36m', '[', ']'),
    'learned': ('\x1b[1;32m', '{', '}'),
    'masked': ('\x1b[33m', '(', ')'),
}
_RESET = '\x1b[0m'


def wants_colour(stream) -> bool:
    """Whether to write colours there: a terminal, and no NO_COLOR in the environment."""
    return stream.isatty() and not os.environ.get('NO_COLOR')


def legend(colour: bool) -> str:
    """One line that says what is what."""
    words = {'prompt': 'prompt', 'learned': 'response, learned', 'masked': 'response, masked'}
    return '  '.join(_paint(name, words[name], colour) for name in STYLES)


def row_text(tokenizer, row: Dialogue, colour: bool) -> str:
    """A row's text, special tokens written out, in spans of prompt, learned and masked tokens.

    Args:
      tokenizer: of the model.
      row: prompt and response as tokens.
      colour: mark spans by colour; by brackets otherwise.
    """
    ids = row.prompt + row.response
    names = ['prompt'] * len(row.prompt) + ['learned' if own else 'masked' for own in row.learned]
    ends = [i for i in range(1, len(ids) + 1) if i == len(ids) or names[i] != names[i - 1]]
    parts, start = [], 0
    for end in ends:
        # The difference of two whole decodings keeps the blank that a span of its own would lose.
        before, upto = (tokenizer.decode(ids[:n], skip_special_tokens=False) for n in (start, end))
        parts.append(_paint(names[start], upto[len(before) :], colour))
        start = end
    return ''.join(parts)


def count_table(counts: dict[str, list[int]]) -> str:
    """Smallest, median, 95th percentile and largest of each named list of token counts, and their sum."""
    lines = [f'{"tokens":<12}' + ''.join(f'{name:>10}' for name in ('min', 'median', '95 %', 'max', 'sum'))]
    for name, values in counts.items():
        numbers = [*np.percentile(values, [0, 50, 95, 100], method='higher'), np.sum(values)]
        lines.append(f'{name:<12}' + ''.join(f'{int(number):>10,}' for number in numbers))
    return '\n'.join(lines)


def _paint(name, text, colour):
    code, before, after = STYLES[name]
    return f'{code}{text}{_RESET}' if colour else f'{before}{text}{after}'
