"""RLHF and DPO end to end: from demonstrations and comparisons to a figure of what each road bought, and at what KL.

    python experiments/rlhf.py

SFT -> four completions a prompt, compared by an annotator -> a Bradley-Terry reward model -> PPO against it, and DPO
on the same comparisons: as judged, guided by the reward model, and on whole rankings -> summary.json, report.md and
frontier.png. Each stage is a script of its own in this folder, with a run folder under --out. Leaves out formulas.
"""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from rlax_ft.evaluate.frontier import best_of_n, best_of_n_kl, effective_samples, optimum
from rlax_ft.evaluate.plots import plot_frontier
from rlax_ft.evaluate.report import TITLES, policy_table, sample_table
from rlax_ft.evaluate.win_rate import win_rate
from rlax_ft.harness.evaluator import Evaluator
from rlax_ft.harness.loading import load_script
from rlax_ft.harness.run import open_run, write_text
from rlax_ft.harness.settings import Settings, flag, run_script
from rlax_ft.harness.starting_model import make_codec, starting_model, task_of
from rlax_ft.hf.folder import load_pretrained
from rlax_ft.models.transformer import Transformer
from rlax_ft.rewards.learned import load_reward_model
from rlax_ft.sampling.text import map_rows
from rlax_ft.training.metrics import read_records

SCRIPTS = Path(__file__).parent
BETAS = (8.0, 4.0, 3.0, 2.0, 1.5, 1.25, 1.0, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3)


@dataclasses.dataclass(frozen=True)
class RLHFSettings(Settings):
    """Flags of rlhf.py; the settings of a stage that are not here are those of its script."""

    max_steps: int = flag(0, 'Cap on the steps of every stage, for a quick look; 0: no cap.')
    sft_steps: int = flag(600, 'Steps of supervised fine-tuning.')
    comparisons: int = flag(2048, 'Prompts whose completions are compared.')
    annotator_noise: float = flag(1.0, 'Temperature of the simulated annotator; 0 never errs.')
    reward_steps: int = flag(200, 'Steps of the reward model.')
    ppo_steps: int = flag(30, 'Updates of PPO.')
    ppo_beta: float = flag(0.4, "PPO's weight of the KL to the SFT model.")
    dpo_steps: int = flag(60, 'Steps of each of the three DPO runs.')
    beta: float = flag(0.4, "DPO's weight of the KL to the SFT model.")
    best_of: int = flag(16, 'n of the best-of-n policy in the table.')
    eval_prompts: int = flag(1000, 'Prompts on which each policy is measured at the end.')
    pool: int = flag(512, 'SFT samples of each of 20 prompts, for the best-of-n and optimum curves.')


def train(settings: RLHFSettings) -> dict:
    """Runs all stages, or goes on with them; returns the summary."""
    began = time.time()
    run = open_run(settings, 'rlhf')
    if run.summary:
        print(f'{run.folder}: this run has ended; see {run.folder / "report.md"}')
        return run.summary
    seconds, stages = {}, {}
    for name, main, stage in stage_list(settings, run.folder):
        started = time.time()
        stages[name] = main(stage)
        seconds[name] = round(time.time() - started, 1)
    started = time.time()
    summary, figures = evaluate(settings, run)
    plot_frontier(run.folder / 'frontier.png', task=task_of(settings).name, **figures)
    seconds['evaluation'] = round(time.time() - started, 1)
    samples = summary.pop('samples')
    summary |= {
        'reward_model_accuracy': stages['reward_model']['eval_accuracy'],
        'seconds': round(time.time() - began, 1),
        'seconds_by_stage': seconds,
    }
    write_text(run.folder / 'report.md', report(settings, summary, samples))
    print(policy_table(summary['policies']))
    print(f'{run.folder}: report.md, frontier.png')
    return run.finish(summary)


def stage_list(s: RLHFSettings, folder: Path):
    """(name, function, settings) of each stage, in order."""

    sft, collect, reward_model, ppo, dpo = (
        load_script(SCRIPTS / f'{name}.py') for name in ('sft', 'collect', 'reward_model', 'ppo', 'dpo')
    )

    def stage(settings_class, name, steps, **given):
        cap = min(steps, s.max_steps) if s.max_steps else steps
        shared = dict(seed=s.seed, task=task_of(s).name, mesh=s.mesh, backend=s.backend, resume=True)
        return settings_class(out=str(folder / name), max_steps=cap, **shared, **given)

    start = str(folder / 'sft')
    judged = dict(init_from=start, data=str(folder / 'feedback/judgements.jsonl'))
    rm = str(folder / 'reward_model')
    on_pairs = dict(beta=s.beta, eval_every=20, **judged)
    feedback = dict(init_from=start, comparisons=s.comparisons, annotator_noise=s.annotator_noise)
    against = dict(init_from=start, reward=rm, beta=s.ppo_beta, eval_every=3, save_every=10)
    guided = dict(labels='preference_model', reward=rm)
    ranked = dict(loss='plackett_luce', batch_size=64)
    yield 'sft', sft.train, stage(sft.SFTSettings, 'sft', s.sft_steps, model=s.model)
    yield 'feedback', collect.collect, stage(collect.FeedbackSettings, 'feedback', 1, **feedback)
    on_judged = stage(reward_model.RewardModelSettings, 'reward_model', s.reward_steps, **judged)
    yield 'reward_model', reward_model.train, on_judged
    yield 'ppo', ppo.train, stage(ppo.PPOSettings, 'ppo', s.ppo_steps, **against)
    yield 'dpo', dpo.train, stage(dpo.DPOSettings, 'dpo', s.dpo_steps, **on_pairs)
    yield 'dpo_guided', dpo.train, stage(dpo.DPOSettings, 'dpo_guided', s.dpo_steps, **guided, **on_pairs)
    yield 'dpo_ranking', dpo.train, stage(dpo.DPOSettings, 'dpo_ranking', s.dpo_steps, **ranked, **on_pairs)


def evaluate(settings: RLHFSettings, run) -> tuple[dict, dict]:
    """(summary with the policies' records and samples, what the figure shows)."""
    folder, task = run.folder, task_of(settings)
    settings = dataclasses.replace(settings, init_from=str(folder / 'sft'))
    codec = make_codec(settings, run, list)
    config, sft_params = starting_model(settings, codec)
    rm, _ = load_reward_model(folder / 'reward_model/model')
    evaluator = Evaluator(task, codec, Transformer(config).apply, sft_params, batch_size=1024)
    compiled = jax.jit(lambda model, rows: model(rows))
    key = jax.random.key(settings.seed + 7)

    def samples_of(params, prompts, key):
        measured, rows = evaluator.rollout(params, prompts, key)
        return measured, map_rows(lambda batch: compiled(rm, batch), rows, batch_size=1024)

    distinct = sorted(set(task.sample_prompts(2000, settings.seed)))[:20]
    prompts = [distinct[i % len(distinct)] for i in range(settings.eval_prompts)]
    policies = ('sft', 'ppo', 'dpo', 'dpo_guided', 'dpo_ranking')
    results = {}
    for i, name in enumerate(policies):
        _, params, _ = load_pretrained(folder / name / 'model')
        results[name] = samples_of(params, prompts, jax.random.fold_in(key, i))
    reference, reference_scores = results['sft']
    results['best_of_n'] = pick_best(
        *samples_of(sft_params, prompts * settings.best_of, jax.random.fold_in(key, 8)), settings.best_of
    )
    pool, pool_scores = samples_of(
        sft_params, [p for p in distinct for _ in range(settings.pool)], jax.random.fold_in(key, 9)
    )
    pool_gold, pool_scores = pool.gold.reshape(len(distinct), -1), pool_scores.reshape(len(distinct), -1)

    records = []
    for name in ('sft', 'best_of_n', *policies[1:]):
        measured, scores = results[name]
        rate, low, high = win_rate(measured.gold, reference.gold, seed=settings.seed)
        record = {'name': name, **measured.summary(), 'score': float(np.mean(scores))}
        if name == 'best_of_n':
            record |= {'n': settings.best_of, 'kl': float(best_of_n_kl(settings.best_of))}
        records.append(record | {'win_rate': rate, 'win_rate_low': low, 'win_rate_high': high})
    shown = {name: results[name][0].completions[: len(distinct)] for name in policies}
    summary = {
        'policies': records,
        'reward_model_correlation': float(np.corrcoef(reference_scores, reference.gold)[0, 1]),
        'samples': (
            distinct[:10],
            {name: texts[:10] for name, texts in shown.items()},
            {name: results[name][0].gold[:10].tolist() for name in policies},
        ),
    }
    start = (0.0, float(pool_gold.mean()))
    traces = {name: trace(folder / name / 'metrics.jsonl') for name in policies[1:]}
    sizes = [n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if n <= settings.pool]
    reliable = [beta for beta in BETAS if effective_samples(pool_gold, beta) >= 30]
    figures = {
        'policies': {TITLES[r['name']]: (r['kl'], r['gold']) for r in records if r['name'] in policies[1:]},
        'traces': {TITLES[name]: points for name, points in traces.items()},
        'best_of_n': {n: (float(best_of_n_kl(n)), best_of_n(pool_gold, pool_scores, n)) for n in sizes},
        'optimum': [start] + [optimum(pool_gold, beta)[::-1] for beta in reliable],
        'start': start,
    }
    return summary, figures


def pick_best(measured, scores, n: int):
    """Of n samples of each prompt, the one that the reward model scores highest."""
    best = scores.reshape(n, -1).argmax(axis=0)
    rows = best * (len(scores) // n) + np.arange(len(scores) // n)
    arrays = {name: getattr(measured, name)[rows] for name in ('gold', 'kl', 'length', 'ungrammatical')}
    return type(measured)(completions=[measured.completions[i] for i in rows], **arrays), scores[rows]


def trace(path) -> list[tuple[float, float]]:
    """(KL, gold) at each evaluation during training."""
    return [(r['eval/kl'], r['eval/gold']) for r in read_records(path) if 'eval/kl' in r]


def report(settings: RLHFSettings, summary: dict, samples) -> str:
    """report.md."""
    stages = ', '.join(f'{name} {value:.0f}' for name, value in summary['seconds_by_stage'].items())
    return f"""# RLHF and DPO on `{task_of(settings).name}`

{policy_table(summary['policies'])}

Gold reward: the task's own, which no policy saw. Reward model: what PPO maximised; its correlation with the gold reward
on fresh SFT samples is {summary['reward_model_correlation']:.2f}, its accuracy on held-out comparisons
{summary['reward_model_accuracy']:.1%}. KL: of whole completions to the SFT policy; for best of n the bound
ln n - (n - 1) / n with n = {settings.best_of}. Win rate: by gold reward on the same prompts, ties half, with a 95 %
bootstrap interval.

![gold reward against KL](frontier.png)

Thin lines are the policies during training. The optimum is estimated from {settings.pool} SFT samples of each prompt by
importance weights, as far as they carry.

## The same prompts before and after

{sample_table(*samples)}

Seconds by stage: {stages}. Flags: [flags.txt](flags.txt).
"""


if __name__ == '__main__':
    run_script(RLHFSettings, train)
