"""Rollouts of a policy with their rewards, for every script that samples while it trains.

Leaves out advantages and updates.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.loader import split_rows
from rlax_ft.data.records import read_demonstrations, read_prompts
from rlax_ft.errors import InputError
from rlax_ft.harness.rewards import make_reward
from rlax_ft.harness.settings import flag
from rlax_ft.harness.step import placement
from rlax_ft.models.scoring import rollout_branches
from rlax_ft.objectives.ppo import end_scores, ended
from rlax_ft.ops.reduce import MODES
from rlax_ft.parallel.placement import fetch
from rlax_ft.sampling.text import make_sampler, trim_prompts
from rlax_ft.tasks.task import Task
from rlax_ft.types import ApplyFn, BranchBatch, Rollout


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """Flags of scripts that sample while they train."""

    group: ClassVar[str] = 'algorithm'

    reward: str = flag(
        'gold',
        "gold (the task's), a rule such as maths or length(at_most=200), a reward model's run folder, "
        'MODULE:FUNCTION or FILE.py:FUNCTION of (records, completions) or (prompt, completion); several with commas '
        'and weights: maths,a.py:f*0.5,runs/rm.',
    )
    reward_failures: float = flag(
        0.0,
        "Share of a batch's groups whose reward may fail (raise, take too long, give NaN): they teach nothing and are "
        'counted; 0 stops at the first.',
        at_least=0,
        at_most=1,
    )
    reward_seconds: float = flag(0.0, 'A reward that takes longer for a batch has failed; 0: no limit.', at_least=0)
    group_size: int = flag(1, 'Completions of each prompt in a batch; they share one reading of it.', at_least=1)
    engine_rows: int = flag(
        0, 'Completions under way at a time, refilled as they end; 0: the whole batch at once.', at_least=0
    )
    temperature: float = flag(
        1.0, 'Of sampling; policy, reference and update divide their logits by it alike.', above=0
    )
    missing_eos_penalty: float = flag(0.0, 'Subtracted from the score of a completion that did not end.', at_least=0)
    prompts: int = flag(10_000, 'With --task: how many prompts to draw from it.', at_least=1, beside='data')


@dataclasses.dataclass(frozen=True)
class TokenLossSettings:
    """Flags of scripts whose loss is one of tokens, of `losses.policy_gradient`."""

    group: ClassVar[str] = 'algorithm'

    loss: str = flag('ppo_clip', 'ppo_clip, cispo, gspo, ... or MODULE:FUNCTION.')
    loss_args: str = flag('', 'Further hyperparameters of the loss, such as clip_low=0.2,clip_high=0.28.')
    aggregate: str = flag(
        '',
        "How the loss's tokens become one number: mean over all, mean or sum by completion, or over a constant "
        "length (--max_new_tokens); empty: as the loss's paper has it.",
        ('', *MODES),
    )


@dataclasses.dataclass(frozen=True)
class Collected:
    """A batch of rollouts.

    Attributes:
      rollout: Rollout [B].
      tokens: the same as branches: the prompt once for its group.
      texts: gives the B completions as text, decoded once.
      scores: float32[B], with the penalty of those that did not end.
      parts: the rewards by name, before weights and penalty.
      ended: bool[B].
      failed: how many groups have no reward; their tokens are masked and their scores 0.
    """

    rollout: Rollout
    tokens: BranchBatch
    texts: Callable[[], list[str]]
    scores: jax.Array
    parts: dict[str, jax.Array]
    ended: jax.Array
    failed: int | None = None

    def metrics(self) -> dict[str, jax.Array]:
        """How many ended, the mean of each reward where there are several, and the groups without one if any may be."""
        several = self.parts if len(self.parts) > 1 else {}
        failed = {} if self.failed is None else {'rewards/failed_groups': jnp.asarray(self.failed)}
        return {'val/num_eos_tokens': self.ended.sum(), **failed} | {
            f'rewards/{name}/mean': jnp.nanmean(values) for name, values in several.items()
        }


def prompt_records(settings, task: Task | None, *, answered: bool = False) -> tuple[list[dict], list[dict]]:
    """(records to sample for, held-out records), each with a `prompt` and all that the data has beside it.

    Args:
      settings: of the script; `prompts` is how many are drawn from the task.
      task: the embedded one; None where there is --data.
      answered: those to sample for come with an answer.
    """
    if not settings.data:
        if answered:
            return task.demonstrations(settings.prompts, settings.seed), []
        return [{'prompt': prompt} for prompt in task.sample_prompts(settings.prompts, settings.seed)], []
    records = (read_demonstrations if answered else read_prompts)(settings.data)
    if settings.eval_data or task is not None:
        return records, read_prompts(settings.eval_data) if settings.eval_data else []
    return split_rows(records, seed=settings.seed)


def check_groups(settings) -> None:
    """Refuses a batch that does not divide into groups, minibatches and micro-batches.

    Raises:
      InputError: naming the flag that does not fit.
    """
    group, size = settings.group_size, settings.batch_size
    parts = {'group_size': group, 'minibatches': settings.minibatches * group}
    parts['micro_batches'] = parts['minibatches'] * settings.micro_batches
    for name, count in parts.items():
        if size % count:
            within = '' if name == 'group_size' else f' in {count // getattr(settings, name)} parts'
            raise InputError(
                f'--{name}={getattr(settings, name)}: does not divide --batch_size={size}{within}; '
                f'give a batch that is a multiple of {count}'
            )


def make_collector(settings, task: Task | None, codec: Codec, apply: ApplyFn) -> tuple[Callable, Callable]:
    """(`collect(params, tokens, mask, records, key) -> Collected`, `score` as `make_reward` gives it).

    Each prompt is answered `group_size` times by the policy whose `apply` is given.
    """
    group, place = settings.group_size, placement(settings)
    may_fail = dict(reward_failures=settings.reward_failures, reward_seconds=settings.reward_seconds)
    score = make_reward(settings.reward, task, codec, **may_fail)
    how = dict(rows=settings.engine_rows or None, temperature=settings.temperature, group_size=group)
    sample = make_sampler(apply, codec, **how)

    def collect(params, tokens, mask, records, key):
        tokens, mask = (np.repeat(x, group, axis=0) for x in (tokens, mask))  # [B, P]
        rollout = sample(params, *place(trim_prompts(tokens, mask)), key)
        batch = rollout_branches(rollout, group)
        finished = ended(rollout, codec.eos_ids)
        texts = functools.cache(lambda: codec.decode(fetch(rollout))[0])
        scores, parts = score(batch, [record for record in records for _ in range(group)], texts)
        scores = end_scores(place(scores), finished, settings.missing_eos_penalty)
        if not settings.reward_failures:
            return Collected(rollout, batch, texts, scores, parts, finished)
        rollout, scores, failed = without_failed(rollout, scores, group)
        return Collected(rollout, rollout_branches(rollout, group), texts, scores, parts, finished, failed)

    return collect, score


def without_failed(rollout: Rollout, scores: jax.Array, group_size: int) -> tuple[Rollout, jax.Array, int]:
    """(rollout, scores, groups without a reward): their tokens count in no loss and no mean, their scores are 0.

    Args:
      rollout: of B completions.
      scores: float32[B], NaN where a reward failed.
      group_size: completions of one prompt; the whole group is left out.
    """
    failed = np.isnan(fetch(scores)).reshape(-1, group_size).any(axis=1)
    rows = np.repeat(failed, group_size)
    mask = jnp.where(rows[:, None], False, rollout.mask)
    kept = replace(rollout, mask=mask, logps=jnp.where(mask, rollout.logps, 0.0))
    return kept, jnp.where(rows, 0.0, scores), int(failed.sum())
