"""What mkdocs adds to the pages: tables of flags, read from the source, and the figures that benchmarks drew.

Leaves out imports of the package: the site is built where jax is not installed.
"""

import ast
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]


def on_files(files, config):
    """Puts the figures, which lie beside RESULTS.md, at the root of the site."""
    for figure in sorted(ROOT.glob('experiments/benchmarks/*.png')):
        files.append(File.generated(config, figure.name, abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown, **_):
    """Replaces `<!-- flags -->` by a table for each settings class of the package and the scripts."""
    return markdown.replace('<!-- flags -->', flag_tables()) if '<!-- flags -->' in markdown else markdown


def flag_tables() -> str:
    """The flags of every settings class as Markdown, those that all scripts share first.

    Raises:
      ValueError: there is none; flags are then defined in another way than `name: type = flag(default, help)`.
    """
    shared = ROOT / 'rlax_ft/harness/settings.py'
    tables = []
    for path in dict.fromkeys([shared, *sorted(ROOT.glob('experiments/*.py')), *sorted(ROOT.glob('rlax_ft/**/*.py'))]):
        for item in ast.parse(path.read_text()).body:
            rows = [row for field in getattr(item, 'body', []) if (row := _row(field))]
            if isinstance(item, ast.ClassDef) and rows:
                what = (ast.get_docstring(item) or '').partition('\n')[0]
                head = f'### {item.name}\n\n`{path.relative_to(ROOT)}`. {what}'
                tables.append('\n'.join([head, '', '| flag | default | |', '|---|---|---|', *rows]))
    if not tables:
        raise ValueError('no settings class with a field `name: type = flag(default, help)`')
    return '\n\n'.join(tables)


def _row(field):
    """A row for `name: type = flag(default, help, ...)`; None for any other statement."""
    call = getattr(field, 'value', None)
    if not isinstance(field, ast.AnnAssign) or not isinstance(call, ast.Call) or len(call.args) < 2:
        return None
    if getattr(call.func, 'id', '') != 'flag':
        return None
    default, text = (_value(argument) for argument in call.args[:2])
    return f'| `--{field.target.id}` | {f"`{default}`" if default != "" else ""} | {text.replace("|", chr(92) + "|")} |'


def _value(node):
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
