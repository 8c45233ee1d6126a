"""compare.py: what a grid consists of, and one tiny comparison that goes on where it stopped and grows."""

import json
from pathlib import Path

import pytest

from rlax_ft.errors import InputError
from rlax_ft.harness.grid import budgeted, job_stage, make_jobs, parse_methods, parse_numbers, parse_rewards
from rlax_ft.harness.loading import load_script
from rlax_ft.harness.stages import make_stage, script_parts

SCRIPTS = Path(__file__).parents[2] / 'experiments'
script = load_script(SCRIPTS / 'compare.py')


def methods(text, betas=(0.1, 0.4)):
    return parse_methods(text, SCRIPTS, betas)


def test_methods():
    ppo, dpo = methods('PPO=ppo:reviews_ppo, dpo:reviews_dpo.flags@0.05+2')
    assert (ppo.label, ppo.betas, ppo.script) == ('PPO', (0.1, 0.4), SCRIPTS / 'ppo.py')
    assert (dpo.label, dpo.betas, dpo.recipe.name) == ('reviews_dpo', (0.05, 2.0), 'reviews_dpo.flags')
    assert ppo.uses_reward() and not ppo.learns_from_comparisons()
    assert dpo.learns_from_comparisons() and not dpo.uses_reward()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('ppo', r"'ppo' is no \[LABEL=\]SCRIPT:RECIPE"),
        ('pop:reviews_ppo', r'no script .*pop.py'),
        ('ppo:nowhere', r'no flag file nowhere'),
        ('sft:reviews_sft', r'sft.py has no --beta'),
        ('ppo:reviews_ppo,ppo:reviews_ppo', r"'reviews_ppo' stands there twice"),
        ('ppo:reviews_ppo@a', r"'a' is no number"),
        ('ppo:reviews_ppo@0', r'0 must be a finite number above 0'),
        (' , ', r'give at least one'),
    ],
)
def test_methods_that_are_none(text, message):
    with pytest.raises(InputError, match=f'^--methods.*{message}'):
        methods(text)


def test_numbers():
    assert parse_numbers('64, 2048', 'sizes', above=1, whole=True) == (64, 2048)
    for text, message in (('1', 'above 1'), ('64,64', 'twice'), ('2.5', 'no whole number'), ('', 'at least one')):
        with pytest.raises(InputError, match=f'--sizes.*{message}'):
            parse_numbers(text, 'sizes', above=1, whole=True)


def test_a_method_that_asks_a_reward_runs_with_each(tmp_path):
    rewards = parse_rewards('one=reviews_reward_model,reviews_reward_model:min', SCRIPTS)
    jobs = make_jobs(methods('ppo:reviews_ppo,dpo:reviews_dpo'), rewards, (64,), range(2))
    assert len(jobs) == 2 * 2 * 2 + 2 * 2 and len({job.place for job in jobs}) == len(jobs)
    assert {job.label for job in jobs} == {'reviews_ppo, one', 'reviews_ppo, reviews_reward_model min', 'reviews_dpo'}
    stage = job_stage(jobs[4], tmp_path, Path('start'), {'task': 'reviews'})
    home = tmp_path / 'comparisons_64/seed_0'
    settings = stage.settings()
    # Of one recipe there is one model, whose members are reduced in two ways.
    assert settings.reward == f'{home}/reviews_reward_model:min' and settings.beta == 0.1 and settings.seed == 0
    assert job_stage(jobs[-1], tmp_path, Path('start'), {}).settings().data == str(
        tmp_path / 'comparisons_64/seed_1/feedback/judgements.jsonl'
    )


@pytest.mark.parametrize(('name', 'recipe', 'steps'), [('ppo', 'ppo', 1), ('dpo', 'dpo', 2), ('dpo', 'dpo_ranking', 4)])
def test_a_budget_of_samples_counts_what_a_step_learns_from(name, recipe, steps, tmp_path):
    # Four passes over 256 completions, one over 256 pairs, and over 64 rankings of four.
    stage = make_stage('s', SCRIPTS / f'{name}.py', SCRIPTS / f'recipes/reviews_{recipe}.flags')
    assert budgeted(stage, tmp_path, samples=1024).settings().max_steps == steps
    assert budgeted(stage, tmp_path, samples=1).settings().max_steps == 1
    assert budgeted(stage, tmp_path, cap=3).settings().max_steps == 3
    assert budgeted(stage, tmp_path) is stage


def test_budget_of_seconds_times_a_trial_once(tmp_path):
    steps = [{'step': i, 'perf/step_seconds': 60.0 if i < 4 else 0.5} for i in range(1, 9)]
    (tmp_path / 'trial').mkdir()
    (tmp_path / 'trial/metrics.jsonl').write_text('\n'.join(map(json.dumps, steps)) + '\n')
    ran = []

    class Stage(type(make_stage('s', SCRIPTS / 'dpo.py'))):
        def run(self):
            ran.append(self.settings().max_steps)

    stage = Stage('s', SCRIPTS / 'dpo.py', ('--task=reviews',))
    assert budgeted(stage, tmp_path / 'trial', seconds=10.0).settings().max_steps == 20 and ran == [8]
    (tmp_path / 'trial/summary.json').write_text('{}')
    # Of another beta or seed a step takes as long.
    other = stage.with_flags(beta=0.9, seed=3)
    assert budgeted(other, tmp_path / 'trial', seconds=5.0).settings().max_steps == 10 and ran == [8]


def test_settings_of_any_script_are_found():
    for name in ('sft', 'collect', 'reward_model', 'dpo', 'ppo'):
        main, settings_class = script_parts(SCRIPTS / f'{name}.py')
        assert main.__name__ in ('train', 'collect') and settings_class.__module__.startswith(f'script_{name}')
    with pytest.raises(InputError, match='no script that trains'):
        script_parts(SCRIPTS / 'plot_runs.py')


def settings(out, **given):
    tiny = dict(model='tiny', max_steps=2, sizes='24', samples=2, pool=8, num_seeds=1, methods='DPO=dpo:reviews_dpo')
    return script.CompareSettings(**{'out': str(out), 'betas': '0.4', **tiny, **given})


@pytest.mark.slow
def test_a_comparison_resumes_and_grows(tmp_path):
    out = tmp_path / 'compare'
    first = script.compare(settings(out))
    assert [(p['method'], p['beta'], p['seed'], p['steps']) for p in first['policies']] == [('DPO', 0.4, 0, 2)]
    # Both of every pair of the batch.
    assert first['policies'][0]['samples'] == 2 * 256 * 2 and first['policies'][0]['seconds'] > 0
    ended = {path: path.stat().st_mtime_ns for path in out.rglob('summary.json') if path.parent != out}
    measured = {path: path.stat().st_mtime_ns for path in out.rglob('measured.json')}
    assert len(ended) == 4 and len(measured) == 1
    assert script.compare(settings(out)) == json.loads((out / 'summary.json').read_text())
    more = script.compare(settings(out, betas='0.4,0.2'))
    assert [p['beta'] for p in more['policies']] == [0.4, 0.2] and more['policies'][0]['kl'] == first['policies'][0][
        'kl'
    ]
    assert all(path.stat().st_mtime_ns == written for path, written in {**ended, **measured}.items())
    assert {'kl_low', 'kl_high', 'gold_low', 'score', 'win_rate'} <= more['policies'][1].keys()
    report = (out / 'report.md').read_text()
    assert '| DPO | 0.2 | 1 |' in report and '## At equal KL' in report and '## Over-optimisation' in report
    for figure in ('frontier.png', 'overoptimisation.png'):
        assert (out / figure).read_bytes()[:4] == b'\x89PNG'
    with pytest.raises(InputError, match=r'--task=sort: the run in .* was begun with --task=reviews'):
        script.compare(settings(out, task='sort'))
