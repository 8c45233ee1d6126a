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
