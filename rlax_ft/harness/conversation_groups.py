"""Groups of conversations for training without a critic: the records of an environment, step after step.

It has the methods of a collector of completions: `start`, `finish`, `state`, `restore`. Leaves out how a conversation
goes (conversations.py), advantages and updates.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.loader import batch_indices
from rlax_ft.envs.text import TextEnvironment
from rlax_ft.harness.conversations import Conversations, make_conversations
from rlax_ft.harness.learner import Learner
from rlax_ft.harness.step import placement
from rlax_ft.types import BranchBatch

# What a checkpoint and metrics call the one reward that there is.
_REWARD = 'env'


@dataclasses.dataclass(frozen=True)
class ConversationBatch:
    """What a step is taken on: B = P * G conversations.

    Attributes:
      tokens: BranchBatch on the devices; its mask is 1 on what the assistant said.
      logps: float32[B, N], the sampler's.
      rewards: float32[B, N], each turn's on its last token.
      scores: float32[B], their sums.
      parts: the same by name.
      greedy: float32[B], zeros: there is no likeliest conversation.
      talks: the conversations.
      metrics: numbers by name.
    """

    tokens: BranchBatch
    logps: jax.Array
    rewards: jax.Array
    scores: jax.Array
    parts: dict[str, jax.Array]
    greedy: jax.Array
    talks: Conversations
    metrics: dict[str, float]


class ConversationCollector:
    """Plays groups of conversations for one step after another."""

    score = types.SimpleNamespace(weights={_REWARD: 1.0})

    def __init__(self, settings, env: TextEnvironment, codec: Codec, learner: Learner, records: list[dict]):
        """Takes what all steps share.

        Args:
          settings: of the script, with `RolloutSettings` and `ConversationSettings` among them.
          env: with whom the policy talks.
          codec, learner: of the run.
          records: what conversations are about.
        """
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
        scores = jnp.asarray(talks.scores)
        spread = np.ptp(talks.scores.reshape(-1, size), axis=1)
        metrics = talks.metrics() | {'frac_reward_zero_std': float(np.mean(spread <= 1e-8))}
        parts = {_REWARD: scores}
        return ConversationBatch(tokens, logps, rewards, scores, parts, jnp.zeros_like(scores), talks, metrics)

    def state(self, pending=None) -> dict:
        """All that decides the conversations to come."""
        return {'cursor': jnp.int32(self._cursor)}

    def restore(self, state: dict) -> None:
        """Goes on from a `state`."""
        self._cursor = int(state['cursor'])
