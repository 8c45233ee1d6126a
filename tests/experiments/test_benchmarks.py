"""The benchmarks' toy forms: both sides of a race compute the same, and the records have their fields. Never times."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlax_ft.harness.benchmark import SHAPES
from rlax_ft.harness.loading import load_script
from rlax_ft.harness.race import race, table
from rlax_ft.harness.results import record

WORKERS = Path(__file__).parents[2] / 'experiments/benchmarks/workers'


TOY = SHAPES['toy'] | dict(prompt=32, response=8)
step, generation = (load_script(WORKERS / f'ours_{name}.py') for name in ('step', 'generate'))


def test_shared_and_repeated_prompts_score_alike():
    shared, repeated = (step.scorer(stage, TOY)()['loss'] for stage in ('score', 'score_plain'))
    assert shared == pytest.approx(repeated, rel=1e-5)


@pytest.mark.slow
def test_every_stage_steps_and_cached_references_change_no_loss():
    sft, ppo, dpo, cached, kto = (
        step.stepper(stage, TOY)()['loss'] for stage in ('sft', 'ppo', 'dpo', 'dpo_cached', 'kto')
    )
    assert kto == pytest.approx(0.5, abs=0.01)
    assert step.grid(TOY)()['loss'] == pytest.approx(0.693, abs=0.01)
    assert 0 < sft < 10 and abs(ppo) < 100
    assert dpo == pytest.approx(cached, rel=1e-5)


@pytest.mark.slow
def test_the_engine_draws_what_static_batches_draw_on_average():
    kinds = ('plain', 'engine', 'static')
    plain, engine, static = (generation.sampling(kind, 4, 8, 32, TOY)()['tokens'] for kind in kinds)
    assert plain == 4 * 32
    # 32 completions of geometric length, at most 32 tokens, on average about 4.
    assert 32 < engine < 32 * 12 and 32 < static < 32 * 12


@pytest.mark.slow
def test_a_grpo_step_is_told_in_two_halves(tmp_path):
    out = tmp_path / 'records.json'
    sizes = ['--prompts=16', '--group_size=2', '--prompt=8', '--new=8', '--rows=16', '--rounds=1', '--shape=toy']
    command = [sys.executable, WORKERS.parent / 'grpo_step.py', '--against=none', *sizes, f'--json={out}']
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    whole, sampling, update = (r['ours'] for r in json.loads(out.read_text()))
    assert whole >= sampling + update and min(sampling, update) > 0


@pytest.mark.slow
def test_records_and_table(tmp_path):
    out = tmp_path / 'records.json'
    arguments = ['--against=none', '--shape=toy', '--rounds=1', '--stages=sft,score', f'--json={out}']
    shown = subprocess.run(
        [sys.executable, WORKERS.parent / 'train_step.py', *arguments], capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    sft, score = json.loads(out.read_text())
    assert set(sft) == set(score) == {'name', 'ours', 'peer', 'unit', 'ratio'}
    assert sft['peer'] is None and score['ratio'] == pytest.approx(score['peer'] / score['ours'])
    assert table([sft, score]) in shown.stdout


def test_a_worker_that_dies_is_named():
    with pytest.raises(RuntimeError, match=r'exit code 3'):
        race([[sys.executable, '-c', 'import sys; sys.exit(3)']], rounds=1)


def test_a_worker_sees_the_package_and_nothing_beside_it(tmp_path, monkeypatch):
    # Without site-packages an interpreter has the standard library only, as one of a peer lacks what we depend on.
    monkeypatch.delenv('PYTHONPATH', raising=False)
    code = f'import os, importlib.util as u; os.chdir({str(tmp_path)!r}); from rlax_ft.harness.race import serve; '
    code += 'serve(lambda: {"beside": [n for n in ("tests", "experiments", "jax") if u.find_spec(n)]})'
    [answer] = race([[sys.executable, '-S', '-c', code]], rounds=2)
    assert answer['beside'] == [] and 0 <= answer['fastest'] <= answer['seconds']


def test_a_section_is_replaced_and_the_others_stay(tmp_path):
    file = tmp_path / 'RESULTS.md'
    for title, body in (('one', '1.0'), ('two', '2.0'), ('one', '3.0')):
        record(title, body, file)
    text = file.read_text()
    assert text.count('## one') == text.count('## two') == 1
    assert text.count('\n\n3.0\n') == text.count('\n\n2.0\n') == 1 and '\n\n1.0\n' not in text
