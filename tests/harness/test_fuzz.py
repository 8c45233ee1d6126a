"""A small share of the mutated flags and run folders of tests/fuzz, and of the long run of benchmarks/leaks.py."""

import random
from collections import Counter
from pathlib import Path

import pytest

from rlax_ft.harness.loading import load_script

ROOT = Path(__file__).parents[2]
FUZZ = {name: load_script(ROOT / f'tests/fuzz/{name}.py') for name in ('flags', 'run_folders')}
kills = load_script(ROOT / 'tests/fuzz/kills.py')
leaks = load_script(ROOT / 'experiments/benchmarks/leaks.py')


@pytest.mark.parametrize(('name', 'count', 'least'), [('flags', 150, 10), ('run_folders', 25, 3)])
def test_no_mutation_is_a_fault(tmp_path, monkeypatch, name, count, least):
    monkeypatch.chdir(tmp_path)
    outcomes = Counter(FUZZ[name].mutation(random.Random(f'ci {i}'), tmp_path) for i in range(count))
    # Neither everything is taken nor everything refused: the mutations reach what is behind the first check.
    assert outcomes.keys() == {'fine', 'one line'} and min(outcomes.values()) >= least


@pytest.mark.slow
def test_a_long_run_keeps_its_memory_and_compiles_nothing_late(tmp_path):
    figures = leaks.measure(tmp_path, updates=24, settled=12)
    assert figures['grown_mb'] < 20 and figures['compiled_late'] == [] and figures['compiled_often'] == {}
    assert figures['settled_mb'] > 100  # it is measured at all


def test_the_cases_of_the_kills_are_all_training_scripts():
    scripts = {script for script, _ in kills.CASES.values()}
    trained = {path.stem for path in (ROOT / 'experiments').glob('*.py') if 'save_if_due' in path.read_text()}
    assert trained <= scripts
