"""RLHF and DPO end to end on an embedded task: from demonstrations and comparisons to gold reward against KL.

    python experiments/rlhf.py

SFT -> four completions a prompt, compared by an annotator -> a Bradley-Terry reward model -> PPO against it, and DPO
on the same comparisons: as judged, with the reward model's soft labels, and on whole rankings -> summary.json,
report.md and frontier.png. Each stage runs a script of this folder with its recipe (recipes/TASK_STAGE.flags, or that
of reviews), in a run folder under --out. Leaves out formulas.
"""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.evaluate.frontier import best_of_n_kl, reference_curves
from rlax_ft.evaluate.plots import plot_frontier
from rlax_ft.evaluate.report import TITLES, policy_table, rlhf_report
from rlax_ft.evaluate.win_rate import correlation, win_rate
from rlax_ft.harness.command_line import parse, run_script
from rlax_ft.harness.evaluator import Evaluator, task_measures
from rlax_ft.harness.loading import load_script
from rlax_ft.harness.run import open_run, write_text
from rlax_ft.harness.settings import DeviceSettings, RunSettings, flag
from rlax_ft.hf.folder import load_pretrained
from rlax_ft.models.transformer import Transformer
from rlax_ft.rewards.learned import load_reward_model
from rlax_ft.sampling.text import map_rows
from rlax_ft.tasks import get_task
from rlax_ft.training.metrics import read_records

HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class RLHFSettings(DeviceSettings, RunSettings):
    """Flags of rlhf.py; the settings of a stage that are not here are those of its recipe."""

    task: str = flag('reviews', 'Embedded task: reviews, exact or sort.', ('reviews', 'exact', 'sort'))
    model: str = flag('small', 'tiny, small, medium or large.', ('tiny', 'small', 'medium', 'large'))
    max_steps: int = flag(0, 'Cap on the steps of every stage, for a quick look; 0: no cap.', at_least=0)
    sft_steps: int = flag(600, 'Steps of supervised fine-tuning.', at_least=1)
    comparisons: int = flag(2048, 'Prompts whose completions are compared.', at_least=2)
    annotator: str = flag('simulated', 'simulated, human, MODULE:FUNCTION or a reward model; as in collect.py.')
    annotator_noise: float = flag(1.0, 'Temperature of the simulated annotator; 0 never errs.', at_least=0)
    reward_steps: int = flag(200, 'Steps of the reward model.', at_least=1)
    ppo_steps: int = flag(30, 'Updates of PPO.', at_least=1)
    ppo_beta: float = flag(0.4, "PPO's weight of the KL to the SFT model.", at_least=0)
    dpo_steps: int = flag(60, 'Steps of each of the three DPO runs.', at_least=1)
    beta: float = flag(0.4, "DPO's weight of the KL to the SFT model.", above=0)
    lora_rank: int = flag(0, 'Train adapters of this rank in every stage after SFT; 0 trains whole models.', at_least=0)
    best_of: int = flag(16, 'n of the best-of-n policy in the table.', at_least=1)
    eval_prompts: int = flag(1000, 'Prompts on which each policy is measured at the end.', at_least=1)
    pool: int = flag(512, 'SFT samples of each of 20 prompts, for the best-of-n and optimum curves.', at_least=1)


def train(settings: RLHFSettings) -> dict:
    """Runs all stages, or resumes them; returns the summary."""
    began = time.time()
    run = open_run(settings, 'rlhf')
    if run.summary:
        print(f'see {run.folder / "report.md"}')
        return run.summary
    seconds, stages = {}, {}
    for name, script, arguments in stage_list(settings, run.folder):
        started = time.time()
        print(f'python {script} ' + ' '.join(arguments))
        module = load_script(script)
        main, settings_class = STAGE_PARTS[script.stem]
        stages[name] = getattr(module, main)(parse(getattr(module, settings_class), arguments))
        seconds[name] = round(time.time() - started, 1)
        if not stages[name]:
            return {}  # People are to judge first; collect.py has said what to open.
    started = time.time()
    summary, figures = evaluate(settings, run)
    plot_frontier(run.folder / 'frontier.png', task=settings.task, **figures)
    seconds['evaluation'] = round(time.time() - started, 1)
    summary |= {
        'reward_model_accuracy': stages['reward_model']['eval_accuracy'],
        'seconds': round(time.time() - began, 1),
        'seconds_by_stage': seconds,
    }
    text = rlhf_report(settings.task, summary, summary.pop('samples'), best_of=settings.best_of, pool=settings.pool)
    write_text(run.folder / 'report.md', text)
    print(policy_table(summary['policies']))
    print(f'{run.folder}: report.md, frontier.png')
    return run.finish(summary)


STAGE_PARTS = {
    'sft': ('train', 'SFTSettings'),
    'collect': ('collect', 'CollectSettings'),
    'reward_model': ('train', 'RewardModelSettings'),
    'ppo': ('train', 'PPOSettings'),
    'dpo': ('train', 'DPOSettings'),
}


def stage_list(s: RLHFSettings, folder: Path):
    """(name, script, its arguments) of each stage, in order."""

    def stage(name, script, recipe='', **given):
        given = dict(out=folder / name, task=s.task, seed=s.seed, mesh=s.mesh, backend=s.backend, **given)
        recipes = [HERE / f'recipes/{task}_{recipe}.flags' for task in (s.task, 'reviews') if recipe]
        flagfile = [f'--flagfile={path}' for path in recipes if path.exists()][:1]
        return name, HERE / f'{script}.py', [*flagfile, *(f'--{key}={value}' for key, value in given.items())]

    def steps(count):
        return {'max_steps': min(count, s.max_steps) if s.max_steps else count}

    start, rm = folder / 'sft', folder / 'reward_model'
    judged = dict(init_from=start, data=folder / 'feedback/judgements.jsonl', lora_rank=s.lora_rank)
    on_pairs = dict(beta=s.beta, eval_every=20, **judged, **steps(s.dpo_steps))
    asked = dict(init_from=start, comparisons=s.comparisons, annotator_noise=s.annotator_noise, annotator=s.annotator)
    against = dict(init_from=start, reward=rm, beta=s.ppo_beta, lora_rank=s.lora_rank, eval_every=3, save_every=10)
    yield stage('sft', 'sft', 'sft', model=s.model, **steps(s.sft_steps))
    yield stage('feedback', 'collect', **asked)
    yield stage('reward_model', 'reward_model', 'reward_model', **judged, **steps(s.reward_steps))
    yield stage('ppo', 'ppo', 'ppo', **against, **steps(s.ppo_steps))
    yield stage('dpo', 'dpo', 'dpo', **on_pairs)
    yield stage('dpo_guided', 'dpo', 'dpo', labels='preference_model', reward=rm, **on_pairs)
    yield stage('dpo_ranking', 'dpo', 'dpo_ranking', **on_pairs)


def evaluate(settings: RLHFSettings, run) -> tuple[dict, dict]:
    """(summary with the policies' records and samples, what the figure shows)."""
    folder, task = run.folder, get_task(settings.task)
    config, sft_params, tokenizer = load_pretrained(folder / 'sft/model')
    codec = Codec(tokenizer, task.max_prompt_tokens, task.max_new_tokens, ends=task.ends)
    rm, _ = load_reward_model(folder / 'reward_model/model')
    distinct = [{'prompt': p} for p in sorted(set(task.sample_prompts(2000, settings.seed)))[:20]]
    evaluator = Evaluator(
        codec, Transformer(config).apply, sft_params, distinct * 52, task_measures(task), batch_size=1024
    )
    compiled = jax.jit(lambda model, rows: model(rows))
    key = jax.random.key(settings.seed + 7)

    def samples_of(params, records, key):
        samples, rows = evaluator.rollout(params, records, key)
        return samples, map_rows(lambda batch: compiled(rm, batch), rows, batch_size=1024)

    records = [distinct[i % len(distinct)] for i in range(settings.eval_prompts)]
    policies = ('sft', 'ppo', 'dpo', 'dpo_guided', 'dpo_ranking')
    results = {}
    for i, name in enumerate(policies):
        _, params, _ = load_pretrained(folder / name / 'model')
        results[name] = samples_of(params, records, jax.random.fold_in(key, i))
    reference_scores = results['sft'][1]
    results['best_of_n'] = pick_best(
        *samples_of(sft_params, records * settings.best_of, jax.random.fold_in(key, 8)), settings.best_of
    )
    pool, pool_scores = samples_of(
        sft_params, [r for r in distinct for _ in range(settings.pool)], jax.random.fold_in(key, 9)
    )
    gold_of = {name: samples.measures['gold'] for name, (samples, _) in results.items()}

    records = []
    for name in ('sft', 'best_of_n', *policies[1:]):
        measured, scores = results[name]
        rate, low, high = win_rate(gold_of[name], gold_of['sft'], seed=settings.seed)
        record = {'name': name, **measured.summary(), 'score': float(np.mean(scores))}
        if name == 'best_of_n':
            record |= {'n': settings.best_of, 'kl': float(best_of_n_kl(settings.best_of))}
        records.append(record | {'win_rate': rate, 'win_rate_low': low, 'win_rate_high': high})
    shown = {name: results[name][0].completions[: len(distinct)] for name in policies}
    summary = {
        'policies': records,
        'reward_model_correlation': correlation(reference_scores, gold_of['sft']),
        'samples': (
            [record['prompt'] for record in distinct[:10]],
            {name: texts[:10] for name, texts in shown.items()},
            {name: gold_of[name][:10].tolist() for name in policies},
        ),
    }
    shape = len(distinct), settings.pool
    figures = {
        'policies': {TITLES[r['name']]: (r['kl'], r['gold']) for r in records if r['name'] in policies[1:]},
        'traces': {TITLES[name]: trace(folder / name / 'metrics.jsonl') for name in policies[1:]},
        **reference_curves(pool.measures['gold'].reshape(shape), pool_scores.reshape(shape)),
    }
    return summary, figures


def pick_best(samples, scores, n: int):
    """Of n samples of each prompt, the one that the reward model scores highest."""
    best = scores.reshape(n, -1).argmax(axis=0)
    rows = best * (len(scores) // n) + np.arange(len(scores) // n)
    return samples.rows(rows), scores[rows]


def trace(path) -> list[tuple[float, float]]:
    """(KL, gold) at each evaluation during training."""
    return [(r['eval/kl'], r['eval/gold']) for r in read_records(path) if 'eval/kl' in r]


if __name__ == '__main__':
    run_script(RLHFSettings, train)
