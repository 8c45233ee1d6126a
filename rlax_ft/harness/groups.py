"""Groups of completions for training without a critic: sampled, scored, and those that teach nothing replaced.

Sampling of a step may be started before the update of the one before it (--ahead); groups that a refill brought too
many wait for the next step. All that decides the next groups is in `GroupCollector.state`, so that a run resumes bit
for bit. Leaves out advantages and updates (objectives/policy.py), and what is told of groups (group_report.py).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlax_ft.data.codec import Codec
from rlax_ft.data.loader import batch_indices
from rlax_ft.data.rows import prompt_arrays
from rlax_ft.errors import InputError
from rlax_ft.harness.group_report import Clock, group_metrics
from rlax_ft.harness.learner import Learner
from rlax_ft.harness.rewards import make_reward
from rlax_ft.harness.rollout_devices import RolloutDeviceSettings, arrived, check_rollout_devices, on_rollout_devices
from rlax_ft.harness.rollouts import RolloutSettings
from rlax_ft.harness.settings import flag
from rlax_ft.harness.step import placement, replicate
from rlax_ft.harness.step_rewards import ProcessSettings, make_step_rewards, step_metrics
from rlax_ft.models.scoring import rollout_branches
from rlax_ft.objectives.ppo import end_scores, ended
from rlax_ft.ops.returns import overlong_penalty
from rlax_ft.parallel.placement import fetch
from rlax_ft.sampling.text import make_sampler, trim_prompts
from rlax_ft.tasks.task import Task
from rlax_ft.types import BranchBatch, Rollout


@dataclasses.dataclass(frozen=True)
class GroupSettings(ProcessSettings, RolloutDeviceSettings, RolloutSettings):
    """Flags of scripts that sample groups."""

    group_size: int = flag(8, 'Completions of each prompt in a batch; they share one reading of it.', at_least=1)
    dynamic_sampling: bool = flag(
        False, 'Groups whose rewards are all equal are replaced by those of further prompts (DAPO).'
    )
    max_refills: int = flag(
        8, 'Rounds of further prompts in a step; what is missing then is made up of equal groups.', at_least=1
    )
    curriculum: bool = flag(
        False, 'Draw prompts in proportion to s (1 - s), s being the share of past completions that solved them.'
    )
    success_at: float = flag(0.5, 'Reward from which on a completion counts as solved: pass@k, curriculum.', at_least=0)
    overlong_tokens: int = flag(
        0, 'Last tokens of --max_new_tokens over which a penalty for length grows to --overlong_penalty.', at_least=0
    )
    overlong_penalty: float = flag(
        1.0, 'What a completion of full length loses of its reward.', at_least=0, needs='overlong_tokens'
    )
    mask_truncated: bool = flag(False, 'Completions that did not end are left out of the loss.')
    ahead: int = flag(
        0,
        'Batches sampled ahead: 1 samples the next one while this one trains, with the policy from before its update.',
        at_least=0,
        at_most=1,
    )


@struct.dataclass
class Groups:
    """Sampled groups of P prompts, on the host.

    Attributes:
      index: int32[P], the prompt's record; -1 where there is no group.
      step: int32[P], how many updates the policy had had that sampled it.
      prompts, prompt_mask: [P, L], left-padded to full width.
      tokens, mask, logps: [P, G, N], as in `Rollout`.
      ended: bool[P, G].
      scores: float32[P, G], the weighted sum of the rewards, without penalties.
      parts: float32[P, G, K], the rewards.
      greedy: float32[P], the score of the likeliest completion, where that is the baseline.
    """

    index: Any
    step: Any
    prompts: Any
    prompt_mask: Any
    tokens: Any
    mask: Any
    logps: Any
    ended: Any
    scores: Any
    parts: Any
    greedy: Any

    def __getitem__(self, rows) -> 'Groups':
        """Some of the groups."""
        return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], self)

    def __add__(self, other: 'Groups') -> 'Groups':
        """These groups and then the others."""
        return jax.tree.map(lambda a, b: np.concatenate([a, b]), self, other)

    def __len__(self) -> int:
        """P."""
        return len(self.index)


@dataclasses.dataclass(frozen=True)
class Pending:
    """A batch whose sampling has been sent off.

    Attributes:
      rollout: Rollout [P * G], perhaps still computing.
      index: int[P], of the prompts' records.
      step: updates that its policy has had.
    """

    rollout: Rollout
    index: np.ndarray
    step: int


@dataclasses.dataclass(frozen=True)
class GroupBatch:
    """What a step is taken on: B = P * G completions.

    Attributes:
      tokens: BranchBatch on the devices; its mask is 0 on what is left out of the loss.
      logps: float32[B, N], the sampler's.
      scores: float32[B], with penalties.
      parts: float32[B] by name: the rewards, and `penalty` where there are any.
      greedy: float32[B], the prompt's baseline.
      steps: (rewards, ends) [B, N] of single steps, or None.
      groups: the same on the host.
      metrics: numbers by name.
    """

    tokens: BranchBatch
    logps: jax.Array
    scores: jax.Array
    parts: dict[str, jax.Array]
    greedy: jax.Array
    steps: tuple[jax.Array, jax.Array] | None
    groups: Groups
    metrics: dict[str, float]
    turns: None = None


class GroupCollector:
    """Samples and scores groups for one step after another."""

    def __init__(self, settings, task: Task | None, codec: Codec, learner: Learner, records: list[dict], clock: Clock):
        """Takes what all steps share.

        Args:
          settings: of the script, with `GroupSettings` among them and a `baseline`.
          task: whose reward `gold` is, or None.
          codec, learner: of the run.
          records: whose prompts are sampled.
          clock: on which the time of sampling and scoring is taken.
        """
        self._settings, self._codec, self._records, self._clock = settings, codec, records, clock
        self.count = settings.batch_size // settings.group_size
        self._prompts, self._prompt_mask = prompt_arrays(codec, [record['prompt'] for record in records])
        self._place = placement(settings)
        may_fail = dict(reward_failures=settings.reward_failures, reward_seconds=settings.reward_seconds)
        self.score = make_reward(settings.reward, task, codec, **may_fail)
        sampler = functools.partial(make_sampler, learner.apply, codec, rows=settings.engine_rows or None)
        how = dict(temperature=settings.temperature, group_size=settings.group_size)
        self._sample = on_rollout_devices(settings, sampler(**how))
        self._sample_greedy = sampler(temperature=0.0) if settings.baseline == 'greedy' else None
        self._steps = make_step_rewards(settings, codec)
        self._cursor = 0
        self._waiting, self._failed = self._blank(0), 0
        self._tries = self._solved = np.zeros(len(records), np.float32)

    def start(self, params, step: int) -> Pending:
        """Sends off the sampling of the next prompts' groups.

        Args:
          params: of the policy.
          step: updates that it has had.
        """
        index = self._draw()
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self._settings.seed), 7), self._cursor)
        self._cursor += 1
        # Where a device does not run ahead of the host, this is where sampling takes its time.
        with self._clock.on('sampling'):
            rollout = self._sample(params, *self._prompt_rows(index, self._settings.group_size), key)
        return Pending(rollout, index, step)

    def finish(self, pending: Pending, params, step: int) -> GroupBatch:
        """Scores what was sampled, replaces groups that teach nothing, and gives the batch of this step.

        Args:
          pending: from `start`.
          params: of the policy now, for replacements.
          step: updates that it has had.
        """
        settings, refills, self._failed = self._settings, 0, 0
        seen = self._scored(pending, params)
        usable = seen if not settings.dynamic_sampling else self._waiting + seen[_differ(seen)]
        while settings.dynamic_sampling and len(usable) < self.count and refills < settings.max_refills:
            more = self._scored(self.start(params, step), params)
            seen, usable, refills = seen + more, usable + more[_differ(more)], refills + 1
        equal = seen[~_differ(seen)]
        short = max(self.count - len(usable), 0)
        groups = (usable + equal[:short])[: self.count]
        self._waiting = usable[self.count :]
        metrics = group_metrics(seen, self.score.weights, settings.success_at) | {
            'sampling/staleness/mean': float(np.mean(step - groups.step)),
            'sampling/staleness/max': float(np.max(step - groups.step)),
            'groups/failed': self._failed,
        }
        if settings.dynamic_sampling:
            metrics |= {
                'groups/refills': refills,
                'groups/dropped': len(equal) - short,
                'groups/short': short,
                'groups/waiting': len(self._waiting),
            }
        return self._assembled(groups, metrics)

    def state(self, pending: Pending | None) -> dict:
        """All that decides the groups to come, as arrays of fixed shapes: what a checkpoint needs.

        Args:
          pending: the batch that has been sent off for the next step; None where there is none, or not yet.
        """
        state: dict[str, Any] = {'cursor': np.int32(self._cursor)}
        if self._settings.dynamic_sampling:
            state['waiting'] = self._waiting + self._blank(self.count - len(self._waiting))
        if self._settings.ahead:
            state['pending'] = self._blank(self.count) if pending is None else self._fetched(pending)
        if self._settings.curriculum:
            state |= {'tries': self._tries, 'solved': self._solved}
        return replicate(self._settings, state)

    def restore(self, state: dict) -> Pending | None:
        """Goes on from a `state`; returns the batch that had been sent off, or None."""
        state = fetch(state)
        self._cursor = int(state['cursor'])
        if 'waiting' in state:
            self._waiting = state['waiting'][state['waiting'].index >= 0]
        if 'tries' in state:
            self._tries, self._solved = state['tries'], state['solved']
        groups = state.get('pending')
        if groups is None or groups.index[0] < 0:
            return None
        return Pending(self._place(_rollout(groups)), groups.index, int(groups.step[0]))

    def _draw(self):
        """Which prompts come next."""
        settings, size = self._settings, len(self._records)
        if not settings.curriculum:
            return batch_indices(size, self._cursor, batch_size=self.count, seed=settings.seed)
        # Laplace's rule: what was never tried counts as solved half of the time.
        share = (self._solved + 1.0) / (self._tries + 2.0)
        weights = np.asarray(share * (1.0 - share), np.float64)
        rng = np.random.default_rng([settings.seed, 4, self._cursor])
        return rng.choice(size, self.count, replace=self.count > size, p=weights / weights.sum())

    def _prompt_rows(self, index, repeats):
        rows = (np.repeat(x[index], repeats, axis=0) for x in (self._prompts, self._prompt_mask))
        return self._place(trim_prompts(*rows))

    def _scored(self, pending, params):
        """Groups with their rewards; a group with one that is no number counts as all 0 and teaches nothing."""
        size = self._settings.group_size
        with self._clock.on('sampling'):
            pending = arrived(self._settings, pending, self._place)
        with self._clock.on('scoring'):
            scores, parts = self._rewards(pending.rollout, pending.index, size)
            groups = self._fetched(pending).replace(scores=scores, parts=parts)
            failed = ~np.isfinite(scores).all(axis=1)
            self._failed += int(failed.sum())
            groups = groups.replace(
                scores=np.where(failed[:, None], 0.0, scores).astype(np.float32),
                parts=np.where(failed[:, None, None], 0.0, parts).astype(np.float32),
            )
        if self._sample_greedy is not None:
            with self._clock.on('sampling'):
                likeliest = self._sample_greedy(params, *self._prompt_rows(pending.index, 1), jax.random.key(0))
                greedy, _ = self._rewards(likeliest, pending.index, 1)
                finished = fetch(ended(likeliest, self._codec.eos_ids))
                lengths = fetch(likeliest.mask).sum(axis=1)
                groups = groups.replace(greedy=np.float32(greedy[:, 0] + self._penalty(finished, lengths)))
        if self._settings.curriculum:
            solved = (groups.scores >= self._settings.success_at).sum(axis=1)
            self._tries, self._solved = self._tries.copy(), self._solved.copy()
            np.add.at(self._tries, pending.index, np.float32(size))
            np.add.at(self._solved, pending.index, solved.astype(np.float32))
        return groups

    def _rewards(self, rollout, index, size):
        """(float32[P, size], float32[P, size, K]) of a rollout with so many completions a prompt."""
        texts = functools.cache(lambda: self._codec.decode(fetch(rollout))[0])
        records = [self._records[i] for i in index for _ in range(size)]
        scores, parts = self.score(rollout_branches(rollout, size), records, texts)
        scores, parts = fetch((scores, parts))
        parts = np.stack([np.asarray(parts[name], np.float32) for name in self.score.weights], axis=1)
        return np.asarray(scores, np.float32).reshape(-1, size), parts.reshape(-1, size, parts.shape[1])

    def _penalty(self, finished, lengths):
        """What is added to the rewards, at most 0, of the shape of both."""
        settings = self._settings
        added = np.asarray(
            end_scores(np.zeros(np.shape(finished)), jnp.asarray(finished), settings.missing_eos_penalty)
        )
        if settings.overlong_tokens:
            limits = dict(max_len=self._codec.max_new_tokens, cache=settings.overlong_tokens)
            added = added + settings.overlong_penalty * np.asarray(overlong_penalty(lengths, **limits))
        return np.float32(added)

    def _assembled(self, groups, metrics):
        """The batch of a step, on the devices."""
        settings = self._settings
        rollout = _rollout(groups)
        tokens = rollout_branches(self._place(rollout), settings.group_size)
        flat = lambda x: np.reshape(x, (-1, *np.shape(x)[2:]))  # noqa: E731
        if settings.mask_truncated:
            kept = np.float32(fetch(tokens.responses.mask) * groups.ended[:, :, None])
            tokens = tokens.replace(responses=tokens.responses.replace(mask=self._place(kept)))
        penalty = self._penalty(groups.ended, groups.mask.sum(axis=2))
        parts = {name: flat(groups.parts[:, :, i]) for i, name in enumerate(self.score.weights)}
        if settings.missing_eos_penalty or settings.overlong_tokens:
            parts['penalty'] = flat(penalty)
        greedy = np.repeat(groups.greedy, settings.group_size)
        steps = None
        if self._steps is not None:
            records = [self._records[i] for i in np.repeat(groups.index, settings.group_size)]
            with self._clock.on('scoring'):
                steps = self._steps(tokens, rollout, records)
            metrics |= step_metrics(*steps)
        scores = flat(groups.scores + penalty)
        return GroupBatch(tokens, rollout.logps, scores, parts, greedy, steps, groups, metrics)

    def _fetched(self, pending):
        """A batch as Groups, not scored yet, its prompts at full width again."""
        rollout, size = fetch(pending.rollout), self._settings.group_size
        blank = self._blank(len(pending.index))
        grouped = lambda x: x.reshape(-1, size, *x.shape[1:])  # noqa: E731
        return blank.replace(
            index=np.asarray(pending.index, np.int32),
            step=np.full(len(pending.index), pending.step, np.int32),
            prompts=self._prompts[pending.index],
            prompt_mask=self._prompt_mask[pending.index],
            tokens=grouped(rollout.tokens),
            mask=grouped(rollout.mask),
            logps=grouped(rollout.logps),
            # On the host: the rollout may lie on devices that sample only.
            ended=grouped(fetch(ended(rollout, self._codec.eos_ids))),
        )

    def _blank(self, count):
        """So many places without a group."""
        size, length, parts = self._settings.group_size, self._codec.max_new_tokens, len(self.score.weights)
        width = self._prompts.shape[1]
        return Groups(
            index=np.full(count, -1, np.int32),
            step=np.zeros(count, np.int32),
            prompts=np.zeros((count, width), self._prompts.dtype),
            prompt_mask=np.zeros((count, width), self._prompt_mask.dtype),
            tokens=np.zeros((count, size, length), np.int32),
            mask=np.zeros((count, size, length), bool),
            logps=np.zeros((count, size, length), np.float32),
            ended=np.zeros((count, size), bool),
            scores=np.zeros((count, size), np.float32),
            parts=np.zeros((count, size, parts), np.float32),
            greedy=np.zeros(count, np.float32),
        )


def check_collection(settings) -> None:
    """Refuses flags of the collection that do not fit together.

    Raises:
      InputError: naming the flag.
    """
    if settings.dynamic_sampling and settings.group_size < 2:
        raise InputError('--dynamic_sampling: a group of one has equal rewards always; give --group_size of 2 or more')
    if settings.max_refills != type(settings).max_refills and not settings.dynamic_sampling:
        raise InputError(f'--max_refills={settings.max_refills}: has no effect without --dynamic_sampling; give that')
    if settings.ahead and settings.baseline == 'greedy':
        raise InputError('--ahead=1: the likeliest completion is that of the policy now; give --ahead=0')
    check_rollout_devices(settings)


def _rollout(groups):
    """Groups as a Rollout of numpy arrays [P * G, ...], prompts as narrow as they may be."""
    size = groups.tokens.shape[1]
    prompts, mask = trim_prompts(*(np.repeat(x, size, axis=0) for x in (groups.prompts, groups.prompt_mask)))
    flat = lambda x: x.reshape(-1, x.shape[2])  # noqa: E731
    return Rollout(prompts, mask, flat(groups.tokens), flat(groups.mask), flat(groups.logps))


def _differ(groups):
    """Whether a group's rewards are not all equal, bool[P]."""
    return np.ptp(groups.scores, axis=1) > 1e-8
