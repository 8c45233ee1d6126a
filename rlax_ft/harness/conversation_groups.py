"""Groups of conversations for training without a critic, step after step, and conversations that measure the policy.

The collector has the methods of a collector of completions: `start`, `finish`, `state`, `restore`; the evaluator those
of evaluator.py. Leaves out how a conversation goes (conversations.py), advantages and updates.
"""

import dataclasses
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.loader import batch_indices, split_rows
from rlax_ft.data.records import read_prompts, write_records
from rlax_ft.envs.text import TextEnvironment
from rlax_ft.errors import InputError
from rlax_ft.harness.conversations import Conversations, make_conversations
from rlax_ft.harness.group_report import Clock, outcome_metrics
from rlax_ft.harness.learner import Learner
from rlax_ft.harness.step import placement, replicate
from rlax_ft.parallel.hosts import on_first
from rlax_ft.parallel.placement import fetch
from rlax_ft.training.metrics import read_records
from rlax_ft.types import BranchBatch

# What a checkpoint and metrics call the one reward that there is.
_REWARD = 'env'


_NO_EFFECT = (
    *('task', 'ahead', 'dynamic_sampling', 'curriculum', 'overlong_tokens', 'mask_truncated', 'engine_rows'),
    *('process_reward', 'rollout_devices', 'evaluate', 'reward_seconds'),
)

# Conversations of an evaluation that are written down.
_SHOWN = 64


def conversation_records(settings, env: TextEnvironment) -> tuple[list[dict], list[dict]]:
    """(records to talk about, held-out ones): those of --data, or the environment's own.

    Raises:
      InputError: there are none, or a flag has no effect beside --env.
    """
    for name in _NO_EFFECT:
        if getattr(settings, name):
            raise InputError(f'--{name}={getattr(settings, name)}: has no effect beside --env; leave it out')
    if settings.reward != type(settings).reward:
        raise InputError(
            f'--reward={settings.reward}: has no effect beside --env, which gives the reward; leave it out'
        )
    if settings.credit == 'token' and settings.scale != 'none':
        raise InputError(
            f'--scale={settings.scale}: with --env, --credit=token takes off what the turns before gave, in units of '
            'the reward; give --scale=none'
        )
    if settings.baseline == 'greedy':
        raise InputError('--baseline=greedy: there is no likeliest conversation; give mean or leave_one_out')
    if settings.data:
        records = read_prompts(settings.data, optional=True)
        if settings.eval_data:
            return records, read_prompts(settings.eval_data, optional=True)
        return split_rows(records, seed=settings.seed)
    if env.records is None:
        raise InputError(f'--env={settings.env}: has no records of its own; give --data')
    return env.records(settings.prompts, settings.seed), env.records(settings.eval_prompts, settings.seed + 1000)


@dataclasses.dataclass(frozen=True)
class ConversationBatch:
    """What a step is taken on: B = P * G conversations.

    Attributes:
      tokens: BranchBatch on the devices; its mask is 1 on what the assistant said.
      logps: float32[B, N], the sampler's.
      turns: float32[B, N], each turn's reward on its last token.
      scores: float32[B], their sums.
      parts: the same by name.
      greedy: float32[B], zeros: there is no likeliest conversation.
      talks: the conversations.
      metrics: numbers by name.
    """

    tokens: BranchBatch
    logps: jax.Array
    turns: jax.Array
    scores: jax.Array
    parts: dict[str, jax.Array]
    greedy: jax.Array
    talks: Conversations
    metrics: dict[str, float]
    steps: None = None


class ConversationCollector:
    """Plays groups of conversations for one step after another."""

    score = types.SimpleNamespace(weights={_REWARD: 1.0})

    def __init__(self, settings, env, codec: Codec, learner: Learner, records: list[dict], clock: Clock):
        """Takes what all steps share.

        Args:
          settings: of the script, with `RolloutSettings` and `ConversationSettings` among them.
          env: with whom the policy talks.
          codec, learner: of the run.
          records: what conversations are about.
          clock: on which the time of the conversations is taken, as sampling.
        """
        self._clock = clock
        self._settings, self._records, self._cursor = settings, records, 0
        self._place = placement(settings)
        how = dict(group_size=settings.group_size, failures=settings.reward_failures)
        self._collect = make_conversations(settings, env, codec, learner.apply, temperature=settings.temperature, **how)

    def start(self, params, step: int) -> Conversations:
        """Plays the next records' groups.

        Args:
          params: of the policy.
          step: updates that it has had.
        """
        count, seed = self._settings.batch_size // self._settings.group_size, self._settings.seed
        index = batch_indices(len(self._records), self._cursor, batch_size=count, seed=seed)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 7), self._cursor)
        self._cursor += 1
        records = [self._records[i] for i in index for _ in range(self._settings.group_size)]
        with self._clock.on('sampling'):
            return self._collect(params, records, key)

    def finish(self, talks: Conversations, params, step: int) -> ConversationBatch:
        """The batch of this step.

        Args:
          talks: from `start`.
          params: are not read: nothing is replaced.
          step: is not read.
        """
        size = self._settings.group_size
        tokens, logps, rewards = self._place(talks.branches(size))
        scores = self._place(talks.scores)
        spread = np.ptp(talks.scores.reshape(-1, size), axis=1)
        lengths = np.asarray(talks.tokens.mask).sum(axis=1)
        surprise = -talks.logps.sum(axis=1) / np.maximum(lengths, 1)
        outcomes = (talks.scores >= self._settings.success_at, lengths, surprise)
        metrics = talks.metrics() | {'frac_reward_zero_std': float(np.mean(spread <= 1e-8))}
        metrics |= outcome_metrics(*(x.reshape(-1, size) for x in outcomes))
        parts = {_REWARD: scores}
        return ConversationBatch(tokens, logps, rewards, scores, parts, jnp.zeros_like(scores), talks, metrics)

    def state(self, pending=None) -> dict:
        """All that decides the conversations to come."""
        return replicate(self._settings, {'cursor': np.int32(self._cursor)})

    def restore(self, state: dict) -> None:
        """Goes on from a `state`."""
        self._cursor = int(fetch(state['cursor']))


class ConversationEvaluator:
    """Measures a policy by conversations about held-out records."""

    def __init__(self, settings, run, env: TextEnvironment, codec: Codec, learner: Learner, records: list[dict]):
        """Takes what all measurements share.

        Args:
          settings: of the script.
          run: whose samples.jsonl is written.
          env: with whom the policy talks.
          codec, learner: of the run.
          records: what conversations are about, at most --eval_prompts of them.
        """
        records = records[: settings.eval_prompts]
        self._optimum = {'optimum': env.optimum(records)} if env.optimum else {}
        # Devices take equal shares; what fills up the last one is not measured.
        self._count, whole = len(records), -(-len(records) // jax.device_count()) * jax.device_count()
        self._records = [records[i % len(records)] for i in range(whole)]
        self._samples, self._key = run.folder / 'samples.jsonl', jax.random.key(settings.seed + 1000)
        self._collect = make_conversations(settings, env, codec, learner.apply, temperature=settings.temperature)

    def metrics(self, params, step: int) -> dict[str, float]:
        """`eval/reward`, `eval/turns`, `eval/cut` and, where it is known, `eval/optimum`; writes conversations down."""
        return {f'eval/{name}': value for name, value in self.finish(params, step).items()}

    def finish(self, params, step: int) -> dict[str, float]:
        """The same numbers without `eval/`."""
        talks = self._collect(params, self._records, self._key)
        write_conversations(self._samples, step, talks, self._count, evaluated=True)
        own = slice(0, self._count)
        return {
            'reward': float(talks.scores[own].mean()),
            'turns': float(talks.turns[own].mean()),
            'cut': float(1.0 - talks.ended[own].mean()),
            **self._optimum,
        }


def write_conversations(path: Path, step: int, talks: Conversations, count: int, *, evaluated: bool = False) -> None:
    """Adds conversations of a step to samples.jsonl; those of later steps, of a run that is resumed, go.

    Args:
      path: of the file.
      step: of the run.
      talks: of which the first are written.
      count: how many there are to choose from.
      evaluated: whether they measured the policy, or trained it.
    """
    kind = {'step': step, 'evaluated': evaluated}
    before = read_records(path)
    kept = [r for r in before if r.get('step', 0) < step or (r.get('step') == step and r.get('evaluated') != evaluated)]
    written = [
        kind
        | {'messages': talks.messages[i], 'reward': float(talks.scores[i])}
        | {'turns': int(talks.turns[i]), 'ended': bool(talks.ended[i])}
        for i in range(min(count, _SHOWN))
    ]
    on_first(lambda: write_records(path, kept + written), 'conversations')
