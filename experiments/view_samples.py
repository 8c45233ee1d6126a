"""A run's samples in the terminal: prompt, completion with its tokens in colour, reward and its parts; or two runs.

    python experiments/view_samples.py runs/ppo
    python experiments/view_samples.py runs/ppo --where='reward<0,step==20'    # or a text to be found
    python experiments/view_samples.py runs/ppo runs/dpo                       # the same prompts side by side
    python experiments/view_samples.py runs/ppo | less                         # plain text, every token's numbers

RUN is a run folder, whose samples.jsonl is read, or a .jsonl file; rlax_ft/evaluate/samples.py has the format. Keys:

    n, →, space: next     p, ←: previous     g, G: first, last     j, ↓, k, ↑: scroll
    c: colour by log-probability, KL to the reference or advantage     /: filter     q: quit
"""

import argparse
import os
import select
import shutil
import sys

from rlax_ft.errors import InputError
from rlax_ft.evaluate.samples import make_filter, read_samples, side_by_side
from rlax_ft.evaluate.viewer import VIEWS, ansi, columns, plain, printable, render, token_table, views_of

try:
    import termios
    import tty
except ImportError:  # No POSIX terminal: plain text it is.
    termios = None

# Arrows, Escape and end of input as the letters that do the same.
_KEYS = {'\x1b[C': 'n', '\x1b[D': 'p', '\x1b[A': 'k', '\x1b[B': 'j', ' ': 'n', '\x1b': 'q', '\x04': 'q', '': 'q'}


def main(runs: list[str], where: str, colour: str) -> None:
    """Shows the samples, interactively where there is a terminal."""
    samples = []
    for run in runs:
        records, cut = read_samples(run)
        if cut:
            print(f'warning: {run}: the last line was cut off in writing and is left out', file=sys.stderr)
        samples.append(records)
    shown = matching(samples, where)
    if not shown:
        raise InputError(f'--where={where}: none of {sum(map(len, samples))} samples; give a wider condition')
    if termios and sys.stdin.isatty() and sys.stdout.isatty():
        browse(runs, samples, shown, where, colour)
    else:
        for i, pair in enumerate(shown):
            print(f'=== {i + 1} of {len(shown)} ===')
            print('\n'.join(text_of(runs, pair)) + '\n')


def matching(samples: list[list[dict]], where: str) -> list[tuple[dict | None, ...]]:
    """What is shown at a time, one sample or one of each run, where any of them meets the condition."""
    every = [record for records in samples for record in records]
    keep = make_filter(where, every) if where else lambda record: True
    together = side_by_side(*samples) if len(samples) == 2 else [(record,) for record in samples[0]]
    return [pair for pair in together if any(record is not None and keep(record) for record in pair)]


def text_of(runs: list[str], pair: tuple[dict | None, ...]) -> list[str]:
    """Plain lines of what is shown at a time, with a table of the tokens."""
    lines = []
    for run, record in zip(runs, pair):
        lines += [f'--- {run} ---'] if len(pair) == 2 else []
        # Without a view the completion is not cut into tokens.
        lines += [plain(line) for line in render(record, view='', width=shutil.get_terminal_size((100, 24)).columns)]
        table = [] if record is None else token_table(record)
        lines += ['', *table] if table else []
    return lines


def screen(runs: list[str], pair: tuple[dict | None, ...], view: str, width: int) -> list[str]:
    """The lines of what is shown at a time, as a terminal of that width takes them."""
    if len(pair) == 1:
        return [ansi(line) for line in render(pair[0], view=view, width=width)]
    half = (width - 3) // 2
    left, right = ([[(run[-half:], '1')], *render(record, view=view, width=half)] for run, record in zip(runs, pair))
    return [ansi(line) for line in columns(left, right, half)]


def browse(runs: list[str], samples: list[list[dict]], shown: list, where: str, colour: str) -> None:
    """Steps through the samples by key until q."""
    at, top, message = 0, 0, ''
    before = termios.tcgetattr(sys.stdin)
    sys.stdout.write('\x1b[?1049h')  # A screen of its own: what was there before comes back at the end.
    try:
        tty.setcbreak(sys.stdin)
        while True:
            width, height = shutil.get_terminal_size()
            lines = screen(runs, shown[at], colour, width)
            top = max(0, min(top, len(lines) - (height - 2)))
            state = f'{at + 1}/{len(shown)}' + (f' where {where}' if where else '') + f'  [{colour}]  {message}'
            keys = 'n p: step  j k: scroll  c: colour  /: filter  q: quit'
            body = lines[top : top + height - 2]
            body += [''] * (height - 2 - len(body))
            foot = [f'\x1b[7m{printable(state)[:width]:<{width}}\x1b[0m', f'\x1b[2m{keys[:width]}\x1b[0m']
            sys.stdout.write('\x1b[H\x1b[2J' + '\r\n'.join(body + foot))
            sys.stdout.flush()
            key, message = read_key(), ''
            if key == 'q':
                return
            if key in 'np':
                at, top = max(0, min(at + (1 if key == 'n' else -1), len(shown) - 1)), 0
            elif key in 'gG':
                at, top = 0 if key == 'g' else len(shown) - 1, 0
            elif key in 'jk':
                top += 1 if key == 'j' else -1
            elif key == 'c':
                views = views_of([record for record in shown[at] if record is not None]) or [colour]
                message = '' if views != [colour] else 'the sample has no other numbers by token'
                colour = views[(views.index(colour) + 1) % len(views)] if colour in views else views[0]
            elif key == '/':
                where, shown, message = ask_filter(samples, shown, where, before, height)
                at, top = 0, 0
    finally:
        sys.stdout.write('\x1b[?1049l')
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def read_key() -> str:
    """The next key, its arrows as the letters that do the same."""
    terminal = sys.stdin.fileno()
    data = os.read(terminal, 1)
    if data == b'\x1b' and select.select([terminal], [], [], 0.05)[0]:
        data += os.read(terminal, 2)  # An arrow; Escape alone has nothing behind it.
    key = data.decode(errors='replace')
    return _KEYS.get(key, key[:1])


def ask_filter(samples, shown, where, before, height):
    """(condition, what it shows, message) after asking for it on the last line; as before where nothing meets it."""
    sys.stdout.write(f'\x1b[{height};1H\x1b[2Kfilter (reward<0, or a text; empty shows all): ')
    sys.stdout.flush()
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
    try:
        given = os.read(sys.stdin.fileno(), 4096).decode(errors='replace').strip()
        found = matching(samples, given)
    except InputError as error:
        return where, shown, str(error)
    finally:
        tty.setcbreak(sys.stdin)
    return (given, found, '') if found else (where, shown, f'nothing meets {given!r}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='one run, or two to compare')
    parser.add_argument('--where', default='', help='show only samples that meet conditions, or hold a text')
    parser.add_argument('--colour', default='logp', choices=VIEWS, help='what colours the tokens at first')
    arguments = parser.parse_args()
    try:
        if len(arguments.runs) > 2:
            raise InputError(f'{len(arguments.runs)} runs; one is shown, or two are compared')
        main(arguments.runs, arguments.where, arguments.colour)
    except InputError as error:
        parser.exit(2, f'error: {" ".join(str(error).split())}\n')
    except BrokenPipeError:  # The reader of the pipe, such as head, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        pass
