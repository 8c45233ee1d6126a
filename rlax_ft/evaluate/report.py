"""The report of an RLHF run as Markdown: the table of policies and samples side by side.

Leaves out every number in it.
"""

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
      policies: records with `name`, `gold`, `score`, `kl`, `length`, `ungrammatical`, `win_rate` and its interval
        `win_rate_low`, `win_rate_high`.
    """
    lines = [
        '| policy | gold reward | reward model | KL to SFT (nats) | tokens | ungrammatical | win rate against SFT |',
        '|---|---|---|---|---|---|---|',
    ]
    for p in policies:
        kl = round(p['kl'], 2) + 0.0  # adding 0.0 turns -0.0 into 0.0
        interval = f'{p["win_rate"]:.1%} ({p["win_rate_low"]:.1%} to {p["win_rate_high"]:.1%})'
        lines.append(
            f'| {TITLES.get(p["name"], p["name"])} | {p["gold"]:.2f} | {p["score"]:.2f} | {kl:.2f} '
            f'| {p["length"]:.1f} | {p["ungrammatical"]:.1%} | {"" if p["name"] == "sft" else interval} |'
        )
    return '\n'.join(lines)


def sample_table(prompts: list[str], completions: dict[str, list[str]], gold: dict[str, list[float]]) -> str:
    """Completions of the same prompts side by side, with their gold rewards.

    Args:
      prompts: the prompts shown.
      completions: by policy, one for each prompt.
      gold: by policy, one for each prompt.
    """
    names = list(completions)
    lines = [
        '| prompt | ' + ' | '.join(TITLES.get(name, name) for name in names) + ' |',
        '|---|' + '---|' * len(names),
    ]
    for i, prompt in enumerate(prompts):
        cells = [f'{completions[name][i]} **({gold[name][i]:+.2f})**' for name in names]
        lines.append(f'| {prompt} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def rlhf_report(task: str, summary: dict, samples: tuple, *, best_of: int, pool: int) -> str:
    """report.md of rlhf.py.

    Args:
      task: its name.
      summary: what summary.json holds.
      samples: (prompts, completions by policy, gold by policy), as `sample_table` takes them.
      best_of: n of the best-of-n policy.
      pool: samples of each prompt from which the optimum is estimated.
    """
    stages = ', '.join(f'{name} {value:.0f}' for name, value in summary['seconds_by_stage'].items())
    return f"""# RLHF and DPO on `{task}`

{policy_table(summary['policies'])}

Gold reward: the task's own, which no policy saw. Reward model: what PPO maximised; its correlation with the gold reward
on fresh SFT samples is {summary['reward_model_correlation']:.2f}, its accuracy on held-out comparisons
{summary['reward_model_accuracy']:.1%}. KL: of whole completions to the SFT policy; for best of n the bound
ln n - (n - 1) / n with n = {best_of}. Win rate: by gold reward on the same prompts, ties half, with a 95 % bootstrap
interval. One seed.

![gold reward against KL](frontier.png)

Thin lines are the policies during training. The optimum is estimated from {pool} SFT samples of each prompt by
importance weights, and drawn as far as they carry.

## The same prompts before and after

{sample_table(*samples)}

Seconds by stage: {stages}. Flags: [flags.txt](flags.txt).
"""
