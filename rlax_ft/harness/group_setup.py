"""From flags to the advantages and the loss of GRPO and its kin.

Leaves out the collection of groups (groups.py), and what advantages and losses are (objectives/policy.py).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

from rlax_ft.errors import InputError
from rlax_ft.harness.loading import aggregation, check_token_loss, load_loss
from rlax_ft.harness.rollouts import TokenLossSettings
from rlax_ft.harness.settings import flag
from rlax_ft.objectives.policy import BASELINES, WHITENING, Credit
from rlax_ft.ops.kl import KINDS


@dataclasses.dataclass(frozen=True)
class PolicySettings(TokenLossSettings):
    """Flags of the advantages and of the loss."""

    group: ClassVar[str] = 'algorithm'

    baseline: str = flag(
        'mean',
        "Taken off the reward: mean of the group, mean of the others, nothing, the reward of the prompt's likeliest "
        'completion (ReMax), or the optimal baseline of each token.',
        BASELINES,
    )
    scale: str = flag(
        'group',
        "What that is divided by: standard deviation of the group or of the batch, the group's mean (MaxRL), nothing.",
        ('group', 'batch', 'mean', 'none'),
    )
    scale_eps: float = flag(1e-4, 'Added to what is divided by.', at_least=0)
    whiten: str = flag(
        'none', 'Advantages of the tokens less their mean, over their standard deviation (n - 1, or n).', WHITENING
    )
    reward_normalization: str = flag(
        'sum_then_normalize',
        'Of several rewards: --baseline and --scale act on their sum, or on each before the sum (GDPO).',
        ('sum_then_normalize', 'normalize_then_sum'),
    )
    beta: float = flag(0.0, 'Weight of the KL to the starting model; 0 needs no reference.', at_least=0)
    kl_in: str = flag('loss', 'Where the KL goes; none: nowhere.', ('loss', 'reward', 'none'))
    kl_kind: str = flag(
        '',
        'Its estimator; empty: k3 in the loss, k1 in the reward. In the loss k1 has gradient 0.',
        ('', *KINDS),
        needs='beta',
    )
    kl_weighted: bool = flag(False, "The loss's KL is multiplied by the ratio, which makes k3 exact.", needs='beta')
    credit: str = flag(
        'outcome', 'A token is credited with all of its completion, or with what follows it.', ('outcome', 'token')
    )
    gamma: float = flag(1.0, 'With --credit=token: discount per token.', at_least=0, at_most=1)
    entropy_coef: float = flag(0.0, 'Weight of the entropy bonus.', at_least=0)
    correction: str = flag(
        '',
        "Weights for the difference of sampler and trainer, by token or sequence; ratios are then to the trainer's own "
        'probabilities before the update.',
        ('', 'token', 'sequence'),
    )
    correction_mode: str = flag(
        'truncate', 'Weights out of bounds are clipped, or 0.', ('truncate', 'mask'), needs='correction'
    )
    correction_cap: float = flag(3.0, 'Upper bound of such a weight.', above=0, needs='correction')
    correction_floor: float = flag(0.0, 'Lower bound of such a weight.', at_least=0, needs='correction')
    off_policy_threshold: float = flag(
        0.0, 'Bad completions from which the policy has moved so many nats a token are left out; 0: none.', at_least=0
    )


def make_credit(settings, weights: Mapping[str, float]) -> Credit:
    """How rewards become advantages, as the flags say; `weights` are those of the rewards by name."""
    if settings.missing_eos_penalty or settings.overlong_tokens:
        weights = {**weights, 'penalty': 1.0}
    return Credit(
        group_size=settings.group_size,
        baseline=settings.baseline,
        scale=settings.scale,
        eps=settings.scale_eps,
        weights=weights if settings.reward_normalization == 'normalize_then_sum' else None,
        kl_coef=settings.beta if settings.kl_in == 'reward' else 0.0,
        by_token=settings.credit == 'token',
        gamma=settings.gamma,
        whiten=settings.whiten,
        step_weight=settings.process_weight,
    )


def make_loss(settings) -> tuple[Callable, dict]:
    """(loss of the tokens, what else `policy_loss` takes), as the flags say."""
    loss = load_loss(settings, settings.loss, 'rlax_ft.losses.policy_gradient', settings.loss_args)
    check_token_loss(loss, settings.loss)
    return loss, dict(
        mode=aggregation(settings, loss),
        kl_coef=settings.beta if settings.kl_in == 'loss' else 0.0,
        kl_kind=settings.kl_kind or 'k3',
        kl_weighted=settings.kl_weighted,
        entropy_coef=settings.entropy_coef,
        off_policy_threshold=settings.off_policy_threshold,
    )


def correction(settings) -> dict | None:
    """What `importance_weights` takes; None where sampler and trainer are taken for the same."""
    if not settings.correction:
        return None
    bounds = dict(cap=settings.correction_cap, floor=settings.correction_floor)
    return dict(level=settings.correction, mode=settings.correction_mode, **bounds)


def check_policy(settings) -> None:
    """Refuses flags of advantages and loss that do not fit together.

    Raises:
      InputError: naming the flag.
    """
    s, group = settings, settings.group_size
    refused = (
        (s.lora_dropout, f'--lora_dropout={s.lora_dropout}: the ratio needs a policy without dropout; give 0'),
        (
            group < 2 and s.baseline in ('mean', 'leave_one_out'),
            f'--group_size={group}: --baseline={s.baseline} needs others to compare with; give 2 or more, or '
            '--baseline=none',
        ),
        (
            s.scale == 'group' and s.baseline not in ('mean', 'leave_one_out'),
            f'--scale=group: with --baseline={s.baseline} a group of equal rewards would be divided by 0; give '
            '--scale=none or batch',
        ),
        (
            s.scale != 'none' and s.baseline == 'token',
            f'--scale={s.scale}: --baseline=token is a baseline of unscaled returns; give --scale=none',
        ),
        (
            s.scale == 'mean' and s.baseline != 'mean',
            f'--scale=mean: is for --baseline=mean, not {s.baseline}; give that',
        ),
        (
            s.reward_normalization == 'normalize_then_sum' and (s.baseline != 'mean' or s.credit != 'outcome'),
            '--reward_normalization=normalize_then_sum: needs --baseline=mean and --credit=outcome',
        ),
        (
            s.reward_normalization == 'normalize_then_sum' and s.beta and s.kl_in == 'reward',
            '--reward_normalization=normalize_then_sum: the KL is no reward of its own there; give --kl_in=loss',
        ),
        (s.beta and s.kl_in == 'none', f'--beta={s.beta}: has no effect with --kl_in=none; give loss or reward'),
        (s.kl_in == 'reward' and not s.beta, '--kl_in=reward: has no effect without --beta; give that'),
        (s.kl_weighted and s.kl_in != 'loss', f'--kl_weighted: has no effect with --kl_in={s.kl_in}; give loss'),
        (s.gamma != 1.0 and s.credit != 'token', f'--gamma={s.gamma}: has no effect without --credit=token; give that'),
        (
            s.credit == 'token' and s.baseline == 'token',
            '--credit=token: --baseline=token credits by token already; leave it out',
        ),
    )
    for wrong, message in refused:
        if wrong:
            raise InputError(message)
