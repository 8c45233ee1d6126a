"""RLHF and DPO end to end on an embedded task: from demonstrations and comparisons to gold reward against KL.

    python experiments/rlhf.py

SFT -> four completions a prompt, compared by an annotator -> a Bradley-Terry reward model -> PPO against it, and DPO
on the same comparisons, each from three seeds -> summary.json, report.md and frontier.png. Each stage runs a script of
this folder with its recipe (recipes/TASK_STAGE.flags, or that of reviews), in a run folder under --out. compare.py has
more methods, betas and seeds. Leaves out formulas.
"""

import dataclasses
import time
from pathlib import Path

from rlax_ft.errors import InputError
from rlax_ft.evaluate.comparison import MethodCurve
from rlax_ft.evaluate.frontier import best_of_n_curve, best_of_n_kl, gain_share, optimum_curve
from rlax_ft.evaluate.plots import plot_frontier
from rlax_ft.evaluate.report import TITLES, policy_table, rlhf_report, small_task
from rlax_ft.evaluate.win_rate import correlation
from rlax_ft.harness.annotators import check_annotator
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.policies import Policies, measured, nearest_optimum, over_seeds, read_trace
from rlax_ft.harness.run import open_run, write_text
from rlax_ft.harness.settings import DeviceSettings, RunSettings, flag
from rlax_ft.harness.stages import make_stage, task_recipe
from rlax_ft.hf.folder import load_pretrained
from rlax_ft.rewards.learned import load_reward_model

HERE = Path(__file__).resolve().parent
METHODS = ('ppo', 'dpo', 'dpo_guided', 'dpo_ranking')


@dataclasses.dataclass(frozen=True)
class RLHFSettings(DeviceSettings, RunSettings):
    """Flags of rlhf.py; the settings of a stage that are not here are those of its recipe."""

    task: str = flag('reviews', 'Embedded task: reviews, exact or sort.', ('reviews', 'exact', 'sort'))
    model: str = flag('small', 'tiny, small, medium or large.', ('tiny', 'small', 'medium', 'large'))
    max_steps: int = flag(0, 'Cap on the steps of every stage, for a quick look; 0: no cap.', at_least=0)
    sft_steps: int = flag(600, 'Steps of supervised fine-tuning.', at_least=1)
    comparisons: int = flag(2048, 'Prompts whose completions are compared.', at_least=2)
    annotator: str = flag('simulated', 'simulated, human, a judge, MODULE:FUNCTION or a reward model: as collect.py.')
    enough: int = flag(
        0, 'Items that people judge before it goes on; 0: all.', at_least=0, may_change=True, needs='annotator=human'
    )
    annotator_noise: float = flag(
        1.0, 'Temperature of the simulated annotator; 0 never errs.', at_least=0, needs='annotator=simulated'
    )
    methods: str = flag(
        'ppo,dpo',
        'What is trained on the comparisons: ppo, dpo, dpo_guided (with soft labels of the reward model), dpo_ranking.',
    )
    num_seeds: int = flag(3, 'Seeds of each method, beginning with --seed; all that goes before has one.', at_least=1)
    reward_steps: int = flag(200, 'Steps of the reward model.', at_least=1)
    ppo_steps: int = flag(20, 'Updates of PPO.', at_least=1)
    ppo_beta: float = flag(0.4, "PPO's weight of the KL to the SFT model.", at_least=0)
    dpo_steps: int = flag(60, 'Steps of each DPO run.', at_least=1)
    beta: float = flag(0.4, "DPO's weight of the KL to the SFT model.", above=0)
    lora_rank: int = flag(0, 'Train adapters of this rank in every stage after SFT; 0 trains whole models.', at_least=0)
    best_of: int = flag(16, 'n of the best-of-n policy in the table.', at_least=1)
    eval_prompts: int = flag(1000, 'Prompts on which each policy is measured at the end.', at_least=1)
    pool: int = flag(256, 'SFT samples of each of 20 prompts, for the best-of-n and optimum curves.', at_least=1)


def train(settings: RLHFSettings) -> dict:
    """Runs all stages, or resumes them; returns the summary."""
    methods = chosen_methods(settings)
    check_annotator(settings.annotator)
    began = time.time()
    run = open_run(settings, 'rlhf')
    if run.summary:
        print(f'see {run.folder / "report.md"}')
        return run.summary
    seconds, stages = {}, {}
    for stage in stage_list(settings, methods, run.folder):
        started = time.time()
        stages[stage.name] = stage.run()
        seconds[stage.name] = round(time.time() - started, 1)
        if not stages[stage.name]:
            return {}  # People are to judge first; collect.py has said what to open.
    started = time.time()
    summary, shown, figure = evaluate(settings, methods, run.folder)
    plot_frontier(run.folder / 'frontier.png', title=small_task(settings.task, settings.num_seeds), **figure)
    seconds['evaluation'] = round(time.time() - started, 1)
    summary |= {
        'reward_model_accuracy': stages['reward_model']['eval_accuracy'],
        'seconds': round(time.time() - began, 1),
        'seconds_by_stage': seconds,
    }
    text = rlhf_report(settings.task, summary, shown, optimum=figure['optimum'], seeds=settings.num_seeds)
    write_text(run.folder / 'report.md', text)
    print(policy_table(summary['policies']))
    print(f'{run.folder}: report.md, frontier.png')
    return run.finish(summary)


def chosen_methods(settings: RLHFSettings) -> list[str]:
    """The names in --methods.

    Raises:
      InputError: there is none of that name, or one twice, or a flag is of none of them.
    """
    names = settings.methods.split(',')
    for name in names:
        if name not in METHODS or names.count(name) > 1:
            problem = 'stands there twice' if name in METHODS else f'use some of {", ".join(METHODS)}'
            raise InputError(f'--methods={settings.methods}: {name!r}: {problem}')
    for field, of in {'ppo_steps': 'ppo', 'ppo_beta': 'ppo', 'dpo_steps': 'dpo', 'beta': 'dpo'}.items():
        given = getattr(settings, field)
        if given != getattr(RLHFSettings, field) and not any(name.startswith(of) for name in names):
            raise InputError(f'--{field}={given}: has no effect without {of} in --methods={settings.methods}')
    return names


def seed_folders(settings: RLHFSettings, method: str) -> list[str]:
    """Names of the folders of a method's runs, one for each seed."""
    return [f'{method}_{settings.seed + i}' for i in range(settings.num_seeds)]


def stage_list(s: RLHFSettings, methods: list[str], folder: Path):
    """The stages, in order."""

    def stage(name, script, recipe='', seed=s.seed, **given):
        given = dict(out=folder / name, task=s.task, seed=seed, mesh=s.mesh, backend=s.backend, **given)
        found = task_recipe(HERE / 'recipes', s.task, recipe) if recipe else None
        return make_stage(name, HERE / f'{script}.py', found, **given)

    def steps(count):
        return {'max_steps': min(count, s.max_steps) if s.max_steps else count}

    start, rm = folder / 'sft', folder / 'reward_model'
    judged = dict(init_from=start, data=folder / 'feedback/judgements.jsonl', lora_rank=s.lora_rank)
    on_pairs = dict(beta=s.beta, eval_every=20, **judged, **steps(s.dpo_steps))
    asked = dict(init_from=start, comparisons=s.comparisons, annotator_noise=s.annotator_noise, annotator=s.annotator)
    asked |= {'enough': s.enough} if s.enough else {}
    against = dict(init_from=start, reward=rm, beta=s.ppo_beta, lora_rank=s.lora_rank, eval_every=5, save_every=10)
    yield stage('sft', 'sft', 'sft', model=s.model, **steps(s.sft_steps))
    yield stage('feedback', 'collect', **asked)
    yield stage('reward_model', 'reward_model', 'reward_model', **judged, **steps(s.reward_steps))
    trained = {
        'ppo': dict(script='ppo', recipe='ppo', **against, **steps(s.ppo_steps)),
        'dpo': dict(script='dpo', recipe='dpo', **on_pairs),
        'dpo_guided': dict(script='dpo', recipe='dpo', labels='preference_model', reward=rm, **on_pairs),
        'dpo_ranking': dict(script='dpo', recipe='dpo_ranking', **on_pairs),
    }
    for method in methods:
        for i, name in enumerate(seed_folders(s, method)):
            # What the figure shows of the way there is the first seed's.
            unwatched = {'eval_every': 0} if i else {}
            yield stage(name, seed=s.seed + i, **trained[method] | unwatched)


def evaluate(settings: RLHFSettings, methods: list[str], folder: Path) -> tuple[dict, tuple, dict]:
    """(summary with a record of each policy, samples to be shown, what the figure draws)."""
    policies = Policies(settings.task, folder / 'sft/model', seed=settings.seed)
    model, _ = load_reward_model(folder / 'reward_model/model')
    each = -(-settings.eval_prompts // len(policies.prompts))
    pool, pool_rows = policies.samples(policies.reference, max(settings.pool, settings.best_of, each), 9)
    scores = policies.scores(model, pool_rows)
    groups = {'sft': policies.first_of_each(each, pool), 'best_of_n': policies.best_of_each(settings.best_of, scores)}
    baseline = pool.measures['gold'][groups['sft']]

    def record(name, samples, values):
        return {'name': name, **measured(samples, values, policies.alike(baseline, samples), seed=settings.seed)}

    records = [record(name, pool.rows(index), scores[index]) for name, index in groups.items()]
    records[1] |= {'n': settings.best_of, 'kl': float(best_of_n_kl(settings.best_of))}
    curves, shown, runs = [], {'sft': policies.one_of_each(pool)[:10]}, []
    for method in methods:
        seeds = []
        for name in seed_folders(settings, method):
            params = load_pretrained(folder / name / 'model')[1]
            samples, rows = policies.samples(params, each, METHODS.index(method))
            seeds.append(record(method, samples, policies.scores(model, rows)))
            shown.setdefault(method, policies.one_of_each(samples)[:10])
            runs.append(seeds[-1] | {'params': params})
        records.append(over_seeds(seeds))
        curves.append(method_point(records[-1], read_trace(folder / seed_folders(settings, method)[0])))
    best = nearest_optimum(runs, 1)[0]['params']
    further = best, *policies.samples(best, max(settings.pool // 2, each), 8)
    optimum = optimum_curve(*policies.mixture([(policies.reference, pool, pool_rows), further]))
    summary = {
        'policies': [r | {'gain_share': gain_share((r['kl'], r['gold']), optimum)} for r in records],
        'reward_model_correlation': correlation(scores[groups['sft']], baseline),
    }
    chosen = {'reward model': best_of_n_curve(policies.by_prompt(pool.measures['gold']), policies.by_prompt(scores))}
    return summary, shown, dict(methods=curves, best_of_n=chosen, optimum=optimum, start=optimum[0])


def method_point(record: dict, trace: list[dict]) -> MethodCurve:
    """A method as the figure draws it: where its seeds ended, their mean with intervals, how the first got there."""
    box = tuple(record[name] for name in ('kl_low', 'kl_high', 'gold_low', 'gold_high'))
    ends = [[tuple(end)] for end in record.get('seeds', [[record['kl'], record['gold']]])]
    return MethodCurve(TITLES[record['name']], ends, trace=[(point['kl'], point['gold']) for point in trace], box=box)


if __name__ == '__main__':
    run_script(RLHFSettings, train)
