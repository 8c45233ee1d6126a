"""The package's floors, read from its imports: arrows point down, losses can be copied out, scripts stand alone."""

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'rlax_ft'
# From the top down: a module imports from its own folder and from those further down this list.
ORDER = (
    'harness',
    'feedback',
    'evaluate',
    'envs',
    'objectives',
    'training',
    'rewards',
    'sampling',
    'tasks',
    'hf',
    'models',
    'data',
    'losses',
    'ops',
    'parallel',
    'types',
    'errors',
)
# Environments share these with language, and nothing else.
ENVS_IMPORT = {'envs', 'losses', 'ops', 'parallel', 'training', 'types', 'errors'}
ENVS_STAND_ALONE = True
# What is copied out with a loss: no other package, and of ours only its neighbours and the structs that it takes.
COPIED_OUT = {'jax', 'chex', 'flax', 'numpy', *sys.stdlib_module_names}


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    names = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        parts = path.relative_to(ROOT).with_suffix('').parts
        names['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return names


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, at its top or within functions; of `from a import b` a.b where that may be."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: a relative import; name the package'
            for alias in node.names:
                whole = f'{node.module}.{alias.name}'
                names.add(whole if whole in modules() or not node.module.startswith('rlax_ft') else node.module)
    return names


def folder(module: str) -> str:
    """`losses` of rlax_ft.losses.preference; empty for the package itself."""
    return module.split('.')[1] if '.' in module else ''


@functools.cache
def edges() -> tuple[tuple[str, str], ...]:
    """(importing module, imported module) within the package."""
    return tuple(
        (name, other) for name, path in modules().items() for other in sorted(imported(path)) if other in modules()
    )


def test_no_circle():
    below = {name: {b for a, b in edges() if a == name} for name in modules()}
    while free := [name for name, others in below.items() if not others]:
        for name in free:
            del below[name]
        below = {name: others - set(free) for name, others in below.items()}
    assert not below, f'modules that import each other in a circle, or stand above one: {sorted(below)}'


def test_every_folder_has_a_floor():
    assert {folder(name) for name in modules()} - {''} == set(ORDER)


def test_arrows_point_down():
    def up(a, b):
        """Whether an import points up; the package itself, which imports nothing, is the ground."""
        return not folder(a) or (folder(b) and ORDER.index(folder(a)) > ORDER.index(folder(b)))

    known = set() if ENVS_STAND_ALONE else {('envs', 'harness')}
    assert not [(a, b) for a, b in edges() if up(a, b) and (folder(a), folder(b)) not in known]


@pytest.mark.skipif(not ENVS_STAND_ALONE, reason='envs/ still imports harness/')
def test_environments_import_what_they_share_with_language_only():
    assert not [(a, b) for a, b in edges() if folder(a) == 'envs' and folder(b) not in ENVS_IMPORT]


@pytest.mark.parametrize('name', ['losses', 'ops'])
def test_losses_and_ops_can_be_copied_out(name):
    ours = {'losses', 'ops', 'types'} if name == 'losses' else {'ops'}
    for module, path in modules().items():
        for other in imported(path) if folder(module) == name else ():
            top = other.split('.')[0]
            assert folder(other) in ours if top == 'rlax_ft' else top in COPIED_OUT, f'{path} imports {other}'
            assert top != 'flax' or other.startswith('flax.struct'), f'{path} imports {other}'
    # The structs that losses take can be copied with them.
    assert {other.split('.')[0] for other in imported(PACKAGE / 'types.py')} <= COPIED_OUT


SCRIPTS = sorted((ROOT / 'experiments').rglob('*.py'))


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: str(path.relative_to(ROOT / 'experiments')))
def test_scripts_import_no_script_and_are_read_in_one_sitting(path):
    scripts = {other.stem for other in SCRIPTS} | {'experiments', 'recipes', 'workers', 'benchmarks', 'minimal'}
    assert not {other for other in imported(path) if other.split('.')[0] in scripts}
    most = 120 if path.parent.name == 'minimal' else 200
    assert len(path.read_text().splitlines()) <= most


def test_files_are_short():
    for path in modules().values():
        lines = len(path.read_text().splitlines())
        assert lines < 400, f'{path}: {lines} lines'
