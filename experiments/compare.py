"""Methods side by side on one embedded task: gold reward against KL over betas, seeds and amounts of comparisons.

    python experiments/compare.py --methods=PPO=ppo:reviews_ppo,DPO=dpo:reviews_dpo --betas=0.1,0.2,0.4 --num_seeds=3
    python experiments/compare.py --flagfile=experiments/recipes/overoptimisation_compare.flags
    python experiments/compare.py --methods=mine=my_script.py:my_recipe.flags@0.1+0.3 --budget_samples=8000

A method is a script of this folder, or your own .py file, with a flag file. All start from one SFT model; a seed has
its own comparisons, reward model and training. Every run stays under --out: one that has ended is not repeated, so the
same command resumes, and more methods, betas or seeds add to what is there. Writes report.md, frontier.png,
overoptimisation.png and summary.json. Leaves out formulas.
"""

import dataclasses
import itertools
import logging
from functools import partial
from pathlib import Path
from typing import ClassVar

from rlax_ft.errors import InputError
from rlax_ft.evaluate.comparison import best_of_n_points, method_curves, overoptimisation_panels
from rlax_ft.evaluate.frontier import optimum_curve
from rlax_ft.evaluate.plots import plot_frontier, plot_overoptimisation
from rlax_ft.evaluate.report import comparison_report, small_task
from rlax_ft.harness import grid
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.policies import Policies, measured, nearest_optimum, once, read_trace
from rlax_ft.harness.run import open_run, write_text
from rlax_ft.harness.settings import DeviceSettings, RunSettings, flag
from rlax_ft.harness.stages import make_stage, task_recipe
from rlax_ft.harness.starting_model import model_folder
from rlax_ft.hf.folder import load_pretrained

HERE = Path(__file__).resolve().parent
PPO_AND_DPO = 'PPO=ppo:reviews_ppo,DPO=dpo:reviews_dpo,DPO on rankings=dpo:reviews_dpo_ranking'


@dataclasses.dataclass(frozen=True)
class CompareSettings(DeviceSettings, RunSettings):
    """Flags of compare.py."""

    length: ClassVar[tuple[str, ...]] = ('methods', 'betas', 'num_seeds', 'sizes', 'reward_models', 'at_kl')

    task: str = flag('reviews', 'Embedded task: reviews, exact or sort.', ('reviews', 'exact', 'sort'))
    model: str = flag('small', 'tiny, small, medium or large.', ('tiny', 'small', 'medium', 'large'))
    init_from: str = flag('', 'Run folder of the SFT model that all methods start from; empty trains one first.')
    methods: str = flag(
        PPO_AND_DPO, '[LABEL=]SCRIPT:RECIPE[@BETA+BETA..], several with commas between.', may_change=True
    )
    betas: str = flag('0.1,0.2,0.4', 'Weights of the KL term, a run each, where a method names none.', may_change=True)
    num_seeds: int = flag(3, 'Seeds of each method, beginning with --seed.', at_least=1, may_change=True)
    sizes: str = flag('2048', 'Numbers of prompts whose completions are compared, a run each.', may_change=True)
    reward_models: str = flag(
        '',
        "[LABEL=]RECIPE of reward_model.py, several with commas: what uses a reward runs with each; empty: the task's.",
        may_change=True,
    )
    annotator_noise: float = flag(1.0, 'Temperature of the simulated annotator; 0 never errs.', at_least=0)
    budget_samples: int = flag(
        0, "Completions that a run learns from; 0: as many as its recipe's steps make.", at_least=0
    )
    budget_seconds: float = flag(0.0, 'Seconds that a run trains, by the speed of a short trial; 0: any.', at_least=0)
    max_steps: int = flag(0, 'Cap on the steps of every stage, for a quick look; 0: no cap.', at_least=0)
    eval_every: int = flag(0, 'Steps between evaluations in training, which then count, too; 0: none.', at_least=0)
    at_kl: str = flag('1,2', 'KLs in nats at which methods are put side by side.', may_change=True)
    samples: int = flag(50, 'Samples of each of 20 prompts on which a policy is measured.', at_least=1)
    pool: int = flag(512, 'SFT samples of each prompt, for the best-of-n and optimum curves.', at_least=2)


def compare(settings: CompareSettings) -> dict:
    """Runs the grid, or what is left of it, measures it, and draws it; returns the summary."""
    betas = grid.parse_numbers(settings.betas, 'betas', above=0.0)
    sizes = grid.parse_numbers(settings.sizes, 'sizes', above=1, whole=True)
    targets = grid.parse_numbers(settings.at_kl, 'at_kl', above=0.0)
    methods = grid.parse_methods(settings.methods, HERE, betas)
    usual = grid.RewardRecipe('reward model', task_recipe(HERE / 'recipes', settings.task, 'reward_model'))
    rewards = grid.parse_rewards(settings.reward_models, HERE) or [usual]
    if settings.init_from and settings.model != CompareSettings.model:
        raise InputError(f'--model={settings.model}: has no effect beside --init_from={settings.init_from}; give one')
    if settings.betas != CompareSettings.betas and not any(method.betas == betas for method in methods):
        logging.warning('--betas=%s: has no effect, as each of --methods names its own', settings.betas)
    run = open_run(settings, 'compare')
    if run.summary:
        return run.summary
    (run.folder / 'summary.json').unlink(missing_ok=True)  # It is of fewer runs than are asked for now.
    out, seeds = run.folder, range(settings.seed, settings.seed + settings.num_seeds)
    start = Path(settings.init_from or out / 'sft')
    for stage in first_stages(settings, out, start, rewards, sizes, seeds):
        stage.run()
    jobs = grid.make_jobs(methods, rewards, sizes, seeds)
    policies = Policies(settings.task, model_folder(str(start)), seed=settings.seed)
    baseline = policies.samples(policies.reference, settings.samples, 0)[0].measures['gold']
    records = []
    for number, job in enumerate(jobs, 1):
        print(f'{job.label}, beta {job.beta:g}, {job.size} comparisons, seed {job.seed}: run {number} of {len(jobs)}')
        stage, folder = make_job(settings, out, start, job), out / job.place
        stage.run()
        worth = once(folder / 'measured.json', partial(measure_job, settings, policies, out, job, baseline))
        records.append(job.record() | grid.used(folder, stage) | worth | {'trace': read_trace(folder)})
    best_of_n, optimum = reference_curves(settings, policies, out, records, rewards, sizes, seeds)
    return run.finish(draw(settings, out, records, best_of_n, optimum, targets))


def first_stages(settings: CompareSettings, out: Path, start: Path, rewards: list, sizes, seeds):
    """The reference, and for each size and seed the comparisons and the reward models that learn from them."""
    cap = {'max_steps': settings.max_steps} if settings.max_steps else {}
    shared = dict(task=settings.task, mesh=settings.mesh, backend=settings.backend)
    if not settings.init_from:
        recipe = task_recipe(HERE / 'recipes', settings.task, 'sft')
        given = dict(out=start, model=settings.model, seed=settings.seed)
        yield make_stage('sft', HERE / 'sft.py', recipe, **given, **shared, **cap)
    for size in sizes:
        for seed in seeds:
            home, given = grid.data_folder(out, size, seed), dict(init_from=start, seed=seed, **shared)
            asked = dict(out=home / 'feedback', comparisons=size, annotator_noise=settings.annotator_noise)
            yield make_stage('feedback', HERE / 'collect.py', **asked, **given)
            given |= dict(data=home / 'feedback/judgements.jsonl', **cap)
            for folder, recipe in {reward.folder(home): reward.recipe for reward in rewards}.items():
                yield make_stage('reward_model', HERE / 'reward_model.py', recipe, out=folder, **given)


def make_job(settings: CompareSettings, out: Path, start: Path, job: grid.Job):
    """One run of the grid, as long as the budgets say."""
    shared = dict(task=settings.task, mesh=settings.mesh, backend=settings.backend)
    if settings.eval_every:
        shared['eval_every'] = settings.eval_every
    return grid.budgeted(
        grid.job_stage(job, out, start, shared),
        out / 'trials' / grid.slug(job.label),
        samples=settings.budget_samples,
        seconds=settings.budget_seconds,
        cap=settings.max_steps,
    )


def measure_job(settings: CompareSettings, policies: Policies, out: Path, job: grid.Job, baseline) -> dict:
    """What a trained policy is worth."""
    _, params, _ = load_pretrained(out / job.place / 'model')
    samples, rows = policies.samples(params, settings.samples, job.salt())
    scores = policies.scores(job.reward.load(grid.data_folder(out, job.size, job.seed)), rows)
    return measured(samples, scores, baseline, seed=settings.seed)


def reference_curves(settings: CompareSettings, policies: Policies, out: Path, records, rewards, sizes, seeds):
    """(best of n by (reward model, size), for each seed rows [n, KL, gold, score]; the optimum's (KL, gold))."""
    pool, rows = policies.samples(policies.reference, settings.pool, 1)
    best_of_n = {}
    for reward, size, seed in itertools.product(rewards, sizes, seeds):
        home = grid.data_folder(out, size, seed)
        make = lambda: policies.best_of_n(reward.load(home), pool, rows)  # noqa: E731, B023
        found = once(home / f'best_of_n_{grid.slug(reward.label)}.json', make)
        best_of_n.setdefault((reward.label, size), []).append(found['rows'])
    parts = [(policies.reference, pool, rows)]
    for record in nearest_optimum(records, 2):
        _, params, _ = load_pretrained(out / record['folder'] / 'model')
        parts.append((params, *policies.samples(params, settings.pool // 2, 2)))
    return best_of_n, optimum_curve(*policies.mixture(parts))


def draw(settings: CompareSettings, out: Path, records: list[dict], best_of_n: dict, optimum, targets) -> dict:
    """Writes figures and report; returns the summary."""
    title = small_task(settings.task, settings.num_seeds)
    curves = list(method_curves(records).values())
    shown = best_of_n_points(best_of_n)
    plot_frontier(out / 'frontier.png', title=title, methods=curves, best_of_n=shown, optimum=optimum, start=optimum[0])
    panels = overoptimisation_panels(records, best_of_n)
    plot_overoptimisation(out / 'overoptimisation.png', title=title, panels=panels)
    write_text(out / 'report.md', comparison_report(settings.task, records, shown, panels, optimum, targets))
    print(f'{out}: report.md, frontier.png, overoptimisation.png')
    policies = [{k: v for k, v in record.items() if k != 'trace'} for record in records]
    return {'policies': policies, 'optimum': optimum, 'runs': len(records)}


if __name__ == '__main__':
    run_script(CompareSettings, compare)
