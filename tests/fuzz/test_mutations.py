"""A small share of the mutations of this folder: each is fine or one line."""

import importlib.util
from pathlib import Path

import pytest

COUNTS = {'records': 60, 'templates': 8, 'folders': 25, 'tokenizer_files': 25, 'adapters': 40}
COUNTS |= {'feedback_files': 40, 'written_files': 40, 'evaluations': 12}


def mutate():
    spec = importlib.util.spec_from_file_location('fuzz_mutate', Path(__file__).with_name('mutate.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('kind', COUNTS)
def test_mutations_are_fine_or_one_line(kind, tmp_path):
    attempt = mutate().attempt
    outcomes = [attempt(kind, 0, number, tmp_path) for number in range(COUNTS[kind])]
    bad = [(number, outcome) for number, outcome in enumerate(outcomes) if outcome not in ('fine', 'one line')]
    assert not bad, bad
    assert 'one line' in outcomes and (kind == 'templates' or 'fine' in outcomes)


def test_the_watch_sees_what_goes_wrong(tmp_path):
    """Otherwise no mutation could fail."""
    module = mutate()
    mutations = {
        'raises': 'raise KeyError("a\\nb")',
        'two_lines': 'import rlax_ft.errors as e; raise type("", (e.InputError,), {"__str__": lambda _: "a\\nb"})',
        'writes': '(workdir.parent / "outside" / "x").write_text("x")',
        'grows': 'x = bytearray(1100 * 2**20); x[::4096] = b"x" * len(x[::4096])',
        'says': 'return "wrong: five"',
    }
    module.HERE = tmp_path
    for name, body in mutations.items():
        (tmp_path / f'{name}.py').write_text(f'def mutation(rng, workdir):\n    {body}\n')
    wanted = {
        'raises': 'traceback',
        'two_lines': 'several lines',
        'writes': 'outside',
        'grows': 'memory',
        'says': 'wrong',
    }
    assert {name: module.attempt(name, 0, 0, tmp_path / 'w').partition(':')[0] for name in mutations} == wanted
    assert module.kinds() == sorted(mutations)
