"""How many labels uncertain-first saves against random order: reward models on reviews, simulated annotator.

    python experiments/benchmarks/feedback_strategies.py --init_from=runs/rlhf/sft --record
    python experiments/benchmarks/feedback_strategies.py --init_from=runs/rlhf/sft --seeds=1 --pool=128 --share=16

For each seed a pool of pairs is sampled from the model and judged. Both orders begin with the same labels. In each
round a reward model is trained from the start on what has been labelled, and either chance or that model (the smallest
margin, as collect_feedback.py --strategy=uncertain) says what is labelled next. Measured is the accuracy on held-out
pairs of different gold reward, without noise; and the share of the random order's labels with which the uncertain one,
each the mean of all seeds, reaches the random one's last accuracy. The interval is a bootstrap over seeds.
"""

import dataclasses
from pathlib import Path

import numpy as np

from rlax_ft.errors import InputError
from rlax_ft.harness.annotators import judgements_of
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.comparisons import candidates_of
from rlax_ft.harness.label_orders import Pool, label_share, learning_curve, make_pool, make_trainer
from rlax_ft.harness.results import record
from rlax_ft.harness.run import Run
from rlax_ft.harness.settings import Checked, ComparisonSettings, LanguageSettings, flag
from rlax_ft.harness.starting_model import make_codec, starting_model
from rlax_ft.models.transformer import Transformer
from rlax_ft.tasks import get_task

STRATEGIES = ('random', 'uncertain')
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class StrategySettings(Checked):
    """Flags of feedback_strategies.py."""

    init_from: str = flag('', 'Run folder of the SFT model on reviews, whose samples are compared.')
    seeds: int = flag(10, 'How many times, each with other samples and labels.', at_least=1)
    pool: int = flag(2048, 'Pairs that may be labelled.', at_least=16)
    held_out: int = flag(1024, 'Pairs that accuracy is measured on, the same for all seeds.', at_least=2)
    rounds: int = flag(8, 'Rounds of labelling.', at_least=2)
    share: int = flag(64, 'Labels of a round.', at_least=1)
    max_steps: int = flag(48, 'Steps of each reward model.', at_least=1)
    batch_size: int = flag(64, 'Pairs of a step.', at_least=1)
    learning_rate: float = flag(1e-3, 'Peak learning rate of each.', above=0)
    noise: float = flag(1.0, 'Temperature of the simulated annotator.', at_least=0)
    record: bool = flag(False, 'Write the section of RESULTS.md.')


@dataclasses.dataclass(frozen=True)
class SampledSettings(ComparisonSettings, LanguageSettings):
    """How the pairs are sampled and judged."""


def measure(settings: StrategySettings) -> dict:
    """Runs all seeds; prints and returns the numbers."""
    if not settings.init_from:
        raise InputError('--init_from: give the run folder of an SFT model on reviews')
    if settings.rounds * settings.share > settings.pool:
        raise InputError(f'--pool={settings.pool}: fewer than {settings.rounds * settings.share} labels; give more')
    learn = dict(max_steps=settings.max_steps, batch_size=settings.batch_size, learning_rate=settings.learning_rate)
    test, model = judged(settings, settings.seeds, settings.held_out, 0.0)
    curves, trainer = {name: [] for name in STRATEGIES}, make_trainer(*model, **learn)
    for seed in range(settings.seeds):
        pool, _ = judged(settings, seed, settings.pool, settings.noise)
        for strategy, found in curves.items():
            how = dict(rounds=settings.rounds, share=settings.share, seed=seed)
            found.append(learning_curve(*trainer, pool, test, strategy=strategy, **how))
            print(f'seed {seed}, {strategy}: ' + ', '.join(f'{n}: {a:.3f}' for n, a in found[-1]), flush=True)
    numbers = compared(curves)
    print(section(settings, numbers))
    if settings.record:
        record('Labels that uncertain-first saves', section(settings, numbers))
    return numbers


def judged(settings: StrategySettings, seed: int, count: int, noise: float) -> tuple[Pool, tuple]:
    """(pairs of different gold reward or, with noise, any, sampled and judged with a seed; the model's own)."""
    # Some samples of a prompt are the same, and are not asked; then there are too many.
    given = dict(comparisons=count + count // 3 + 64, candidates=2, annotator_noise=noise, seed=seed)
    sampled = SampledSettings(init_from=settings.init_from, task='reviews', **given)
    codec = make_codec(sampled, Run(Path(settings.init_from), None, None), list)
    config, params = starting_model(sampled, codec)
    records, candidates = candidates_of(sampled, codec, Transformer(config).apply, params)
    task = get_task('reviews')
    rows = judgements_of(sampled, task, records, candidates)
    if not noise:
        rows = [row for row in rows if len({task.reward(row['prompt'], text) for text in row['completions']}) == 2]
    return make_pool(codec, rows, count), (config, params)


def compared(curves: dict[str, list]) -> dict:
    """The share of labels with its interval, and the mean curves."""
    labels = np.asarray([n for n, _ in curves['random'][0]])
    random, uncertain = (np.asarray([[a for _, a in curve] for curve in curves[name]]) for name in STRATEGIES)
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(random), size=(_RESAMPLES, len(random)))
    shares = [label_share(random[index], uncertain[index], labels) for index in drawn]
    low, high = np.quantile(shares, [0.025, 0.975], method='nearest')
    gain = uncertain.mean(axis=0) - random.mean(axis=0)
    return {
        'seeds': len(random),
        'labels': labels.tolist(),
        'random': random.mean(axis=0).round(4).tolist(),
        'uncertain': uncertain.mean(axis=0).round(4).tolist(),
        'gain_error': (np.std(uncertain - random, axis=0) / max(len(random) - 1, 1) ** 0.5).round(4).tolist(),
        'last_gain': float(gain[-1]),
        'share_of_labels': label_share(random, uncertain, labels),
        'low': float(low),
        'high': float(high),
    }


def section(settings: StrategySettings, numbers: dict) -> str:
    """The section of RESULTS.md."""
    columns = (numbers[name] for name in ('labels', *STRATEGIES, 'gain_error'))
    lines = [f'| {n} | {a:.3f} | {b:.3f} | {b - a:+.3f} ± {error:.3f} |' for n, a, b, error in zip(*columns)]
    table = ['| labels | random | uncertain first | difference ± standard error |', '|---|---|---|---|', *lines]
    share, low, high = (numbers[name] for name in ('share_of_labels', 'low', 'high'))
    shown = lambda value: f'{value:.2f}' if np.isfinite(value) else 'more than 1'  # noqa: E731
    said = (
        f'Uncertain-first reaches the last accuracy of the random order with {shown(share)} of its labels '
        f'(95 % interval over {numbers["seeds"]} seeds: {shown(low)} to {shown(high)}). '
        f'The aim is at most 0.70: {"reached" if high <= 0.7 else "reached on average" if share <= 0.7 else "missed"}.'
    )
    return '\n'.join([*table, '', said])


if __name__ == '__main__':
    run_script(StrategySettings, measure)
