"""How many labels uncertain-first saves against random order: reward models on reviews, simulated annotator.

    python experiments/benchmarks/feedback_strategies.py --init_from=runs/sft --out=runs/strategies
    python experiments/benchmarks/feedback_strategies.py --init_from=runs/sft --seeds=1 --pool=64 --max_steps=5

For each seed a pool of pairs is sampled from the model and judged. Both orders begin with the same labels. In each
round a reward model is trained from the start on what has been labelled, and either chance or that model (the smallest
margin, as collect_feedback.py --strategy=uncertain) says what is labelled next. Measured is the accuracy on held-out
pairs without noise, and the share of the random order's labels with which the uncertain one reaches the last accuracy
of the random one, interpolated; 1 where it never does.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from rlax_ft.data.feedback import live
from rlax_ft.data.records import write_records
from rlax_ft.data.sources import read_raw
from rlax_ft.errors import InputError
from rlax_ft.feedback.queue import priority
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.feedback_sampling import model_scorer
from rlax_ft.harness.loading import load_script
from rlax_ft.harness.run import write_json
from rlax_ft.harness.settings import Checked, flag
from rlax_ft.tasks import get_task

SCRIPTS = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class StrategySettings(Checked):
    """Flags of feedback_strategies.py."""

    init_from: str = flag('', 'Run folder of the SFT model on reviews, whose samples are compared.')
    seeds: int = flag(10, 'How many times, each with other samples and labels.', at_least=1)
    pool: int = flag(2048, 'Pairs that may be labelled.', at_least=16)
    held_out: int = flag(1024, 'Pairs that accuracy is measured on.', at_least=2)
    rounds: int = flag(8, 'Rounds of labelling, an equal share of half the pool in each.', at_least=2)
    max_steps: int = flag(200, 'Steps of each reward model.', at_least=1)
    out: str = flag('runs/strategies', 'Folder for the runs and strategies.json.')


def measure(settings: StrategySettings) -> dict:
    """Runs all seeds; prints and returns the numbers."""
    if not settings.init_from:
        raise InputError('--init_from: give the run folder of an SFT model on reviews')
    curves = {'random': [], 'uncertain': []}
    for seed in range(settings.seeds):
        pool, test = judged(settings, seed, settings.pool, 1.0), judged(settings, 1000 + seed, settings.held_out, 0.0)
        for strategy, found in curves.items():
            found.append(one_curve(settings, seed, strategy, pool, test))
            print(f'seed {seed}, {strategy}: ' + ', '.join(f'{n}: {a:.3f}' for n, a in found[-1]), flush=True)
        jax.clear_caches()
    shares = [label_share(*pair) for pair in zip(curves['random'], curves['uncertain'])]
    drawn = np.random.default_rng(0).choice(shares, size=(2000, len(shares))).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    numbers = {'share_of_labels': float(np.mean(shares)), 'low': float(low), 'high': float(high), 'shares': shares}
    for name, found in curves.items():
        numbers[name] = {str(points[0][0]): float(np.mean([a for _, a in points])) for points in zip(*found)}
    print(json.dumps(numbers, indent=2))
    write_json(Path(settings.out) / 'strategies.json', numbers)
    return numbers


def judged(settings: StrategySettings, seed: int, count: int, noise: float) -> Path:
    """The judgements file of pairs sampled with a seed, those of equal texts left out."""
    collect = load_script(SCRIPTS / 'collect.py')
    out = Path(settings.out) / f'judged_{seed}'
    given = dict(task='reviews', init_from=settings.init_from, comparisons=count, candidates=2, annotator_noise=noise)
    collect.collect(collect.CollectSettings(out=str(out), seed=seed, **given))
    rows = live([row for row, _ in read_raw(out / 'judgements.jsonl')])
    write_records(out / 'decided.jsonl', [row for row in rows if row['choice'] != 'tie'])
    return out / 'decided.jsonl'


def one_curve(settings, seed, strategy, pool, test) -> list[tuple[int, float]]:
    """(labels, held-out accuracy) after each round."""
    script = load_script(SCRIPTS / 'reward_model.py')
    rows = [row for row, _ in read_raw(pool)]
    rest = list(np.random.default_rng([seed, 9]).permutation(len(rows)))
    share, chosen, curve = max(len(rows) // (2 * settings.rounds), 1), [], []
    for number in range(settings.rounds):
        chosen, rest = chosen + rest[:share], rest[share:]
        folder = Path(settings.out) / f'{strategy}_{seed}_{number}'
        folder.mkdir(parents=True, exist_ok=True)
        write_records(folder / 'labels.jsonl', [rows[i] for i in chosen])
        data = dict(task='reviews', data=str(folder / 'labels.jsonl'), eval_data=str(test))
        how = dict(init_from=settings.init_from, max_steps=settings.max_steps, learning_rate=1e-4, seed=seed)
        done = script.train(script.RewardModelSettings(out=str(folder / 'rm'), report_to='', **data, **how))
        curve.append((len(chosen), done['eval_accuracy']))
        if strategy == 'uncertain':
            scores = model_scorer(folder / 'rm/model', get_task('reviews'))([rows[i] for i in rest])
            order = np.argsort([priority(pair[:, None].tolist(), strategy) for pair in scores], kind='stable')
            rest = [rest[i] for i in order]
    return curve


def label_share(random, uncertain) -> float:
    """Labels of the uncertain order over those of the random one, at the random one's last accuracy; at most 1."""
    most, goal = random[-1]
    for (n, a), (more, b) in zip([(0, 0.5), *uncertain], uncertain):
        if b >= goal:
            return min((n + (more - n) * (goal - a) / (b - a) if b > a else more) / most, 1.0)
    return 1.0


if __name__ == '__main__':
    run_script(StrategySettings, measure)
