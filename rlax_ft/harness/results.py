"""RESULTS.md: one section for each benchmark, each with the command that made it, the hardware, versions and date.

A benchmark replaces its own section and leaves the others; --record has it do so.
"""

import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import jax
from absl import flags

RECORD = flags.DEFINE_bool('record', False, 'Write the section of RESULTS.md.')


def record(title: str, body: str, file: Path | None = None) -> None:
    """Writes the section `## title`; the command is the one that is running.

    Args:
      title: of the section.
      body: Markdown.
      file: to write; RESULTS.md beside the script that is running, when absent.
    """
    file = file or Path(sys.argv[0]).parent / 'RESULTS.md'
    command = ' '.join(['python', _relative(sys.argv[0]), *(_shortened(a) for a in sys.argv[1:])])
    section = f'## {title}\n\n`{command}`, {datetime.date.today()}: {hardware()}.\n\n{body.strip()}\n'
    head, *sections = file.read_text().split('\n## ') if file.exists() else ['# Results\n']
    kept = {part.split('\n', 1)[0]: '## ' + part.strip() + '\n' for part in sections}
    kept[title] = section
    file.write_text('\n'.join([head.strip() + '\n', *kept.values()]))


def hardware() -> str:
    """Devices, Python and versions in one line."""
    device = jax.devices()[0]
    cpu = f'{os.cpu_count()} CPU cores ({_cpu_name()})'
    what = cpu if device.platform == 'cpu' else f'{jax.device_count()} x {device.device_kind}'
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('jax', 'flax', 'optax'))
    return f'{what}, Python {platform.python_version()}, {versions}'


def _cpu_name():
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), platform.machine())


def _relative(path):
    root = Path(__file__).parents[2]
    path = Path(path).absolute()
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def _shortened(argument):
    # Where this machine keeps its environments and data is of no use to a reader.
    name, equals, value = argument.partition('=')
    return f'{name}={Path(value).name}' if equals and '/' in value else argument
