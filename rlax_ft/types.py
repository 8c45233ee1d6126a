"""The frozen structs that packages pass to each other.

Every struct is a pytree, so it passes through `jit`, `vmap`, `pmap` and `jax.tree.map` whole. This file leaves out
behaviour: whoever makes a struct, or reads one, has the functions for it.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
from flax import struct

Params = Any  # A nested dict of arrays.

# An array of jax, or of numpy until its rows are placed on a device. Any stands for numpy's: a union with np.ndarray
# would have every loss ask which of both it was given.
Array = jax.Array | Any

# Rows of unlike lengths, which become a TokenBatch or a BranchBatch when a batch is picked (data/ragged.py).
Unpadded = Any


class ApplyFn(Protocol):
    """A language model: `Transformer.apply`, or any function of the same shape."""

    def __call__(self, variables, tokens, positions=None, segment_ids=None, cache=None, **kwargs) -> Any:
        """int32[B, T] -> (hidden [B, T, D], cache); with `method=`, another method of the module."""


class LossFn(Protocol):
    """An objective: what a train step differentiates with respect to `params`."""

    def __call__(self, params: Params, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(float[], metrics by name, each float[]): this batch's share of the loss of the whole batch."""


class RewardFn(Protocol):
    """What completions are worth."""

    def __call__(self, records: list[dict], completions: list[str], **info: Any) -> Sequence[float]:
        """One number a completion; a record has `prompt` and every other field that the data set gave it."""


class Annotator(Protocol):
    """Who compares completions: a person, a simulation or a model."""

    def __call__(self, records: list[dict], candidates: list[list[str]]) -> list[dict]:
        """One judgement {"prompt", "completions", "ranks", "annotator"} for each record's candidates."""


@struct.dataclass
class PairLogps:
    """Log-probabilities of a batch of preference pairs, as every preference loss takes them.

    Attributes:
      chosen: float[B], sum over response tokens of log pi(y_w | x), in nats.
      rejected: float[B], the same for y_l.
      ref_chosen: float[B] under the reference policy; None for reference-free losses.
      ref_rejected: float[B] under the reference policy; None for reference-free losses.
      chosen_len: [B], number of response tokens in y_w; None where no loss reads it.
      rejected_len: [B], number of response tokens in y_l; None where no loss reads it.
    """

    chosen: jax.Array
    rejected: jax.Array
    ref_chosen: jax.Array | None = None
    ref_rejected: jax.Array | None = None
    chosen_len: jax.Array | None = None
    rejected_len: jax.Array | None = None


@struct.dataclass
class TrainState:
    """Everything that a training step changes, and all that a checkpoint needs.

    Attributes:
      step: int32[], number of optimiser updates taken.
      params: nested dict of trainable arrays.
      opt_state: the optax state of `params`.
      key: the random key from which each step draws its own.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    key: jax.Array


@struct.dataclass
class TokenBatch:
    """Token sequences with the positions that a loss reads; leading axes may be [B] or [B, K].

    Attributes:
      tokens: int32[..., T], token ids; padding holds the tokenizer's PAD.
      mask: float32[..., T], 1 where the token is predicted by the model and counts (the response with its EOS),
        0 on prompt and padding. Aligned with `tokens`: mask[t] belongs to tokens[t].
      positions: int32[..., T], rotary positions, from 0 in each segment.
      segment_ids: int32[..., T], 0 for padding; a token attends to earlier tokens of its own segment only.
    """

    tokens: Array
    mask: Array
    positions: Array
    segment_ids: Array


@struct.dataclass
class BranchBatch:
    """K responses to each of B prompts, the prompt once: the model reads it once for all of them.

    Attributes:
      prompt: TokenBatch [B, P], left-padded, its mask 0.
      responses: TokenBatch [B, K, R], right-padded; positions go on from the prompt's.
    """

    prompt: TokenBatch
    responses: TokenBatch

    @property
    def mask(self) -> Array:
        """float32[B * K, R], 1 on response tokens: the mask of what is computed per response token."""
        return self.responses.mask.reshape(-1, self.responses.mask.shape[-1])


@struct.dataclass
class PreferenceBatch:
    """Pairs of completions of one prompt: y_w, which was preferred, and y_l.

    Attributes:
      candidates: TokenBatch [B, 2, T] of prompt + completion, or a BranchBatch of 2 responses; y_w stands first.
      label: float32[B], probability that y_w is the better one: 1 for a plain human comparison.
      margin: float32[B], by how much y_w is better, in reward; None where the data does not say.
      weight: float32[B], what a pair's loss is multiplied by; None is 1.
      ref_logps: float32[B, 2], reference log-probabilities of both, or None before they are computed.
    """

    candidates: TokenBatch | BranchBatch | Unpadded
    label: Array
    margin: Array | None = None
    weight: Array | None = None
    ref_logps: Array | None = None


@struct.dataclass
class JudgedBatch:
    """Single answers, each judged good or bad.

    Attributes:
      candidates: BranchBatch of 1 response.
      label: float32[B], probability that the answer is a good one: 1 or 0 for a plain judgement.
      weight: float32[B], what an answer's loss is multiplied by; None is 1.
      ref_logps: float32[B, 1], reference log-probabilities, or None before they are computed.
    """

    candidates: BranchBatch | Unpadded
    label: Array
    weight: Array | None = None
    ref_logps: Array | None = None


@struct.dataclass
class ScoredBatch:
    """Answers with a rating.

    Attributes:
      rows: TokenBatch [B, T] of prompt + answer.
      target: float32[B], the rating.
      weight: float32[B], what an answer's loss is multiplied by; None is 1.
    """

    rows: TokenBatch | Unpadded
    target: Array
    weight: Array | None = None


@struct.dataclass
class StepBatch:
    """Solutions whose steps were judged.

    Attributes:
      rows: TokenBatch [B, T] of prompt + solution, whose mask is 1 at the last token of each step only.
      labels: float32[B, T], probability that the step which ends there is right; 0 where masked.
      weight: float32[B], what a solution's loss is multiplied by; None is 1.
    """

    rows: TokenBatch
    labels: Array
    weight: Array | None = None


@struct.dataclass
class PackedPairs:
    """Pairs packed into R rows of up to S pairs each: segment s + 1 of both sides of a row is its pair s.

    Attributes:
      chosen: TokenBatch [R, T], prompts with y_w.
      rejected: TokenBatch [R, T], the same prompts with y_l.
      exists: bool[R, S], False where a row holds fewer pairs; what follows is 0 there.
      label, margin, weight: float32[R, S], as in `PreferenceBatch`.
      ref_logps: float32[R, S, 2], or None before they are computed.
    """

    chosen: TokenBatch
    rejected: TokenBatch
    exists: Array
    label: Array
    margin: Array | None = None
    weight: Array | None = None
    ref_logps: Array | None = None


@struct.dataclass
class RankingBatch:
    """K ranked completions of one prompt.

    Attributes:
      candidates: TokenBatch [B, K, T] of prompt + completion, or a BranchBatch.
      ranks: int32[B, K], 0 is best; equal ranks are ties.
      mask: bool[B, K], False where a candidate does not exist.
      ref_logps: float32[B, K], reference log-probabilities, or None before they are computed.
      weight: float32[B], what a ranking's loss is multiplied by; None is 1.
    """

    candidates: TokenBatch | BranchBatch | Unpadded
    ranks: Array
    mask: Array
    ref_logps: Array | None = None
    weight: Array | None = None


@struct.dataclass
class Rollout:
    """What the sampler returns: left-padded prompts and right-padded completions.

    Attributes:
      prompts: int32[B, P], left-padded.
      prompt_mask: bool[B, P], False on padding.
      tokens: int32[B, N], sampled tokens; PAD after the first EOS.
      mask: bool[B, N], True up to and including the first EOS.
      logps: float32[B, N], log-probability of each sampled token under the distribution that it was drawn from;
        0 where `mask` is False.
    """

    prompts: Array
    prompt_mask: Array
    tokens: Array
    mask: Array
    logps: Array


@struct.dataclass
class Transition:
    """One step of N parallel environments; time-major [T, N] once collected.

    Attributes:
      observation: what the policy saw.
      action: what it did.
      logp: float32[N], log-probability of the action.
      value: float32[N], the critic's estimate at `observation`.
      reward: float32[N].
      next_value: float32[N], the critic's estimate at the true next observation, the final one where an episode ended.
      terminated: bool[N], the episode reached an absorbing state: nothing follows.
      truncated: bool[N], the episode was cut (time limit): the value of what would follow still counts.
    """

    observation: Any
    action: jax.Array
    logp: jax.Array
    value: jax.Array
    reward: jax.Array
    next_value: jax.Array
    terminated: jax.Array
    truncated: jax.Array
