"""Reports of rlhf.py and compare.py as Markdown: tables of policies, and samples side by side.

Leaves out every number in them.
"""

from collections.abc import Sequence

from rlax_ft.evaluate.comparison import Panel, comparison_table, equal_kl_table, peak_table
from rlax_ft.evaluate.frontier import ENOUGH, Point

TITLES = {
    'sft': 'SFT',
    'best_of_n': 'best of n',
    'ppo': 'PPO',
    'dpo': 'DPO',
    'dpo_guided': 'DPO with soft labels',
    'dpo_ranking': 'DPO on rankings',
}


def policy_table(policies: list[dict]) -> str:
    """One row a policy.

    Args:
      policies: records with `name`, `gold`, `score`, `kl`, `length`, `ungrammatical`, `win_rate` and intervals of the
        main ones as NAME_low and NAME_high; `gain_share` where the optimum is known.
    """
    lines = [
        '| policy | gold reward | reward model | KL to SFT (nats) | of π\\* | tokens | ungrammatical '
        '| win rate against SFT |',
        '|---' * 8 + '|',
    ]
    for p in policies:
        name = TITLES.get(p['name'], p['name']) + (f' (n = {p["n"]})' if 'n' in p else '')
        kl = round(p['kl'], 2) + 0.0  # adding 0.0 turns -0.0 into 0.0
        gold = f'{p["gold"]:.2f} ({p["gold_low"]:.2f} to {p["gold_high"]:.2f})'
        rate = f'{p["win_rate"]:.1%} ({p["win_rate_low"]:.1%} to {p["win_rate_high"]:.1%})'
        first, share = p['name'] == 'sft', p.get('gain_share')
        lines.append(
            f'| {name} | {gold} | {p["score"]:.2f} | {kl:.2f} | {"" if share is None or first else f"{share:.0%}"} '
            f'| {p["length"]:.1f} | {p["ungrammatical"]:.1%} | {"" if first else rate} |'
        )
    return '\n'.join(lines)


def sample_table(shown: dict[str, list[tuple[str, str, float]]]) -> str:
    """Completions of the same prompts side by side, with their gold rewards.

    Args:
      shown: by policy (prompt, completion, gold) of the same prompts.
    """
    lines = [
        '| prompt | ' + ' | '.join(TITLES.get(name, name) for name in shown) + ' |',
        '|---' * (1 + len(shown)) + '|',
    ]
    for row in zip(*shown.values()):
        cells = [f'{completion} **({gold:+.2f})**' for _, completion, gold in row]
        lines.append(f'| {row[0][0]} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def rlhf_report(task: str, summary: dict, shown: dict, *, optimum: list[Point], seeds: int) -> str:
    """report.md of rlhf.py.

    Args:
      task: its name.
      summary: what summary.json holds.
      shown: as `sample_table` takes it.
      optimum: of `optimum_curve`.
      seeds: of each trained policy.
    """
    trained = 'Trained policies are one run each.'
    if seeds > 1:
        trained = (
            f'Trained policies are means of {seeds} runs that differ in their seed, from one SFT model and one reward '
            'model, with t-intervals over them.'
        )
    stages = ', '.join(f'{name} {value:.0f}' for name, value in summary['seconds_by_stage'].items())
    best_of = next(record['n'] for record in summary['policies'] if record['name'] == 'best_of_n')
    return f"""# RLHF and DPO on the toy task `{task}`

{policy_table(summary['policies'])}

Gold reward: the task's own, which no policy saw. Reward model: what PPO maximised; its correlation with the gold reward
on fresh SFT samples is {summary['reward_model_correlation']:.2f}, its accuracy on held-out comparisons
{summary['reward_model_accuracy']:.1%}. KL: of whole completions to the SFT policy; for best of n the bound
ln n - (n - 1) / n with n = {best_of}. Of π\\*: what was gained over SFT, of what the optimum π\\* gains at the same
KL. Win rate: by gold reward on the same prompts, ties half. In brackets 95 % bootstrap intervals over samples.
{trained}

![gold reward against KL](frontier.png)

Thin lines are the policies of the first seed during training, which may leave the frame; crosses are intervals at
the end. The optimum is estimated by importance weights from samples of the SFT policy and of the trained policy of
highest gold reward, as far as they carry: {optimum[-1][0]:.2f} nats.

## The same prompts before and after

{sample_table(shown)}

Seconds by stage: {stages}. Flags: [flags.txt](flags.txt).
"""


def small_task(task: str, seeds: int) -> str:
    """What a figure's title says, so that nobody takes it for more than it is."""
    count = {1: 'one seed', 2: 'two seeds', 3: 'three seeds'}.get(seeds, f'{seeds} seeds')
    return f'Toy task `{task}`: a vocabulary of tens of words, a small model, {count}'


def comparison_report(
    task: str,
    records: list[dict],
    best_of_n: dict[str, dict[int, Point]],
    panels: dict[str, Panel],
    optimum: list[Point],
    targets: Sequence[float],
) -> str:
    """report.md of compare.py.

    Args:
      task: its name.
      records: of trained policies.
      best_of_n: by the reward model's name (KL, gold) by n.
      panels: of `overoptimisation_panels`.
      optimum: of `optimum_curve`.
      targets: KLs in nats at which methods are put side by side.
    """
    points = {f'best of n by {name}': list(curve.values()) for name, curve in best_of_n.items()}
    peaks = {f'{method}, {size}': golds for method, panel in panels.items() for size, (golds, _) in panel.items()}
    return f"""# Methods on the toy task `{task}`

![gold reward against KL](frontier.png)

## At equal KL

{equal_kl_table(records, targets, optimum[0], optimum, points)}

Gold reward is the task's own, which no method saw. Means over seeds with 95 % t-intervals; between betas a curve is
linear in √KL, and begins at the reference; a method of one beta is followed along its training. Percent: what was
gained over the reference, of what the optimum π\\* ∝ π_SFT exp(r/β) gains at that KL. For best of n the KL is the
bound ln n - (n - 1) / n.

## Every run

{comparison_table(records, optimum)}

Completions: those that a run learned from, passes over the same ones counted again. Seconds: of its training loop,
compilation and evaluations included.

## Over-optimisation

![gold reward and the reward model's score against KL](overoptimisation.png)

{peak_table(peaks)}

π\\* is estimated by importance weights from samples of the SFT model and of the two policies of highest gold reward,
as far as {ENOUGH} effective samples of each prompt carry it: {optimum[-1][0]:.2f} nats.
"""
