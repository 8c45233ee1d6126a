"""GRPO and its kin, between the sampler and the train step: advantages without a critic, and the objective.

What a completion is worth against the others of its prompt is `token_advantages`; what an update minimises is
`policy_loss`, a function of arrays. Leaves out the loop (experiments/grpo.py), where groups come from
(harness/groups.py), and minibatches, which are PPO's.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rlax_ft.losses.clipping import outside_bounds
from rlax_ft.losses.policy_gradient import importance_weights, off_policy_mask, ppo_clip_loss
from rlax_ft.models.scoring import before_each_token, read, token_logps
from rlax_ft.ops.arrays import keep, safe_exp
from rlax_ft.ops.groups import decoupled_advantages, optimal_token_advantages
from rlax_ft.ops.kl import kl_estimate
from rlax_ft.ops.process import process_group_advantages
from rlax_ft.ops.reduce import aggregate, masked_mean, masked_var
from rlax_ft.ops.returns import discounted_returns, group_advantages, token_rewards
from rlax_ft.types import BranchBatch, Params

BASELINES = ('mean', 'leave_one_out', 'none', 'greedy', 'token')
WHITENING = ('none', 'unbiased', 'biased')


@struct.dataclass
class PolicyBatch:
    """What the update reads of a batch of groups; arrays have the shape of `tokens.mask`, [B, T].

    Attributes:
      tokens: BranchBatch of the prompts and their completions.
      sampled: log-probabilities of the sampled tokens, as the sampler gave them.
      old: under the policy that the ratio is taken to: the sampler's, or the trainer's own before the update.
      advantages: of each token.
      weights: what each token's loss is multiplied by for the difference of `old` and `sampled`; None: 1.
      ref: under the reference; None where no KL is in the loss.
    """

    tokens: BranchBatch
    sampled: jax.Array
    old: jax.Array
    advantages: jax.Array
    weights: jax.Array | None = None
    ref: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Credit:
    """How rewards become advantages; see `token_advantages`.

    Attributes:
      group_size: completions of each prompt, in adjacent rows.
      baseline: one of `BASELINES`.
      scale: group, batch, mean or none.
      eps: added to what is divided by.
      weights: of the rewards by name, where each is normalised by itself before the sum; None: the sum is normalised.
      kl_coef: weight of the KL that is taken off the rewards.
      by_token: a token is credited with what comes after it, not with the completion's whole KL.
      gamma: discount per token of what comes after, with `by_token`.
      whiten: one of `WHITENING`, over all tokens of the batch, at the end.
      step_weight: of the advantages from rewards of single steps, where there are any.
    """

    group_size: int
    baseline: str = 'mean'
    scale: str = 'group'
    eps: float = 1e-4
    weights: Mapping[str, float] | None = None
    kl_coef: float = 0.0
    by_token: bool = False
    gamma: float = 1.0
    whiten: str = 'none'
    step_weight: float = 1.0


def token_advantages(
    credit: Credit,
    scores: jax.Array,
    parts: Mapping[str, jax.Array],
    mask: jax.Array,
    kl: jax.Array,
    *,
    greedy: jax.Array | None = None,
    logps: jax.Array | None = None,
    sum_squares: jax.Array | None = None,
    turns: jax.Array | None = None,
    steps: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """The advantage of each token, float32[B, T], 0 where masked.

    With R = score - kl_coef sum_t kl_t, the advantage of a completion is (R - baseline) / scale, the same on each token
    (`ops.returns.group_advantages`). Baseline greedy is the score of the prompt's likeliest completion (ReMax, arXiv
    2310.10505). With `by_token` it is the sum from the token on of the normalised score, on the last token, and
    -kl_coef kl_t (REINFORCE++, arXiv 2501.03262). Baseline token is `ops.groups.optimal_token_advantages`; with
    `weights` it is `ops.groups.decoupled_advantages`. With `by_token` and `turns` a token is credited with the turns
    that follow it, baseline and all: R - baseline - (what the turns before it gave), unscaled. Rewards of `steps` add
    step_weight times `ops.process.process_group_advantages`, scaled unless `scale` is none.

    Args:
      credit: how.
      scores: float[B], the weighted sum of the rewards.
      parts: the rewards by name, float[B] each; read with `weights` alone.
      mask: [B, T].
      kl: float[B, T], estimate of the KL on each token.
      greedy: float[B], with that baseline.
      logps, sum_squares: float[B, T], as `optimal_token_advantages` takes them, with baseline token.
      turns: float[B, T], the score's parts on the tokens with which the turns end; None: all of it is at the end.
      steps: (rewards float[B, T], ends bool[B, T]) of single steps; None: there are none.
    """
    group = partial(group_advantages, group_size=credit.group_size, scale=credit.scale, eps=credit.eps)
    kl = keep(mask > 0, kl)
    if credit.baseline == 'token':
        rewards = token_rewards(scores, mask, kl, kl_coef=credit.kl_coef)
        advantages = optimal_token_advantages(rewards, logps, sum_squares, mask, credit.group_size)
    else:
        outcome = scores if credit.by_token else scores - credit.kl_coef * jnp.sum(kl, axis=1)
        if credit.weights is not None:
            size, scale, eps = credit.group_size, credit.scale, credit.eps
            advantages = decoupled_advantages(parts, credit.weights, size, scale=scale, eps=eps)
        elif credit.baseline == 'greedy':
            advantages = group(outcome - greedy, baseline='none')
        else:
            advantages = group(outcome, baseline=credit.baseline)
        if credit.by_token:
            at_end = advantages if turns is None else advantages - scores
            rewards = token_rewards(at_end, mask, kl, kl_coef=credit.kl_coef)
            rewards += 0.0 if turns is None else turns
            advantages = discounted_returns(rewards, mask, gamma=credit.gamma)
        else:
            advantages = jnp.broadcast_to(advantages[:, None], mask.shape)
    if steps is not None:
        scaled = credit.scale != 'none'
        of_steps = process_group_advantages(*steps, mask, credit.group_size, scale=scaled, eps=credit.eps)
        advantages += credit.step_weight * of_steps
    if credit.whiten != 'none':
        count = jnp.sum(mask > 0)
        variance = masked_var(advantages, mask) * (1.0 if credit.whiten == 'unbiased' else (count - 1) / count)
        advantages = (advantages - masked_mean(advantages, mask)) * jax.lax.rsqrt(variance + 1e-8)
    return keep(mask > 0, advantages)


def estimate(
    apply: Callable,
    params: Params,
    ref_params: Params | None,
    tokens: BranchBatch,
    sampled: jax.Array,
    scores: jax.Array,
    parts: Mapping[str, jax.Array],
    greedy: jax.Array | None = None,
    turns: jax.Array | None = None,
    steps: tuple[jax.Array, jax.Array] | None = None,
    *,
    credit: Credit,
    kl_kind: str = 'k1',
    correction: Mapping | None = None,
    temperature: float = 1.0,
) -> tuple[PolicyBatch, dict[str, jax.Array]]:
    """From scored groups to what the update reads, and what is known of them before it.

    Args:
      apply: of policy and reference.
      params: of the policy, before the update.
      ref_params: of the reference; None: there is no KL, neither in the reward nor in the loss.
      tokens: of prompts and completions.
      sampled: float[B, T], of the sampled tokens, as the sampler gave them.
      scores, parts, greedy, turns, steps: as `token_advantages`.
      credit: how they become advantages.
      kl_kind: estimator of the KL in the reward.
      correction: level, mode, cap and floor of `importance_weights`; the old log-probabilities are then the trainer's
        own. None: they are the sampler's.
      temperature: of the sampling.

    Returns:
      (PolicyBatch, metrics).
    """
    mask = tokens.mask
    old, squares, weights = sampled, None, None
    metrics: dict[str, jax.Array] = {}
    if credit.baseline == 'token':
        old, squares = _logps_and_squares(apply, {'params': params}, tokens, temperature)
    elif correction is not None:
        old = token_logps(apply, {'params': params}, tokens, temperature=temperature)
    if correction is not None:
        weights = importance_weights(old, sampled, mask, **correction)
        gap = jnp.abs(old - sampled) * (mask > 0)
        metrics |= {
            'sampling/sampling_logp_difference/max': jnp.max(gap),
            'sampling/importance_sampling_ratio/mean': masked_mean(weights, mask),
            'sampling/importance_sampling_ratio/max': jnp.max(weights),
        }
    else:
        old = sampled
    ref, kl = None, jnp.zeros_like(sampled)
    if ref_params is not None:
        ref = token_logps(apply, {'params': ref_params}, tokens, temperature=temperature)
        kl = kl_estimate(old, ref, kl_kind)
        metrics |= {
            'kl': masked_mean(kl_estimate(old, ref, 'k3'), mask),
            'objective/kl': jnp.mean(jnp.sum((old - ref) * (mask > 0), axis=1)),
        }
    more = dict(greedy=greedy, logps=old, sum_squares=squares, turns=turns, steps=steps)
    advantages = token_advantages(credit, scores, parts, mask, kl, **more)
    metrics |= {
        'entropy': -masked_mean(sampled, mask),
        'objective/entropy': -jnp.mean(jnp.sum(sampled * (mask > 0), axis=1)),
        'advantages/std': jnp.sqrt(masked_var(advantages, mask)),
    }
    clean = lambda x: keep(mask > 0, x)  # noqa: E731
    return PolicyBatch(tokens, clean(sampled), clean(old), advantages, weights, ref), metrics


def policy_loss(
    logps: jax.Array,
    data: PolicyBatch,
    total: jax.Array,
    denominator: jax.Array,
    *,
    loss: Callable = ppo_clip_loss,
    mode: str = 'token_mean',
    kl_coef: float = 0.0,
    kl_kind: str = 'k3',
    kl_weighted: bool = False,
    entropy_coef: float = 0.0,
    off_policy_threshold: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """aggregate(weight l_t + kl_coef KL_t) - entropy_coef H.

    Args:
      logps: float[B, T], under the policy that is trained.
      data: of the batch.
      total: number of completion tokens in the whole batch.
      denominator: what `mode` divides by in the whole batch.
      loss: `f(logps, old_logps, advantages, mask) -> float[B, T]`.
      mode: of `ops.reduce.MODES`.
      kl_coef: weight of the KL in the loss; it is aggregated as the loss is.
      kl_kind: its estimator. Its gradient is the KL's own with k2 and k3_straight alone, and with k3 where it is
        weighted; that of k1 is 0 on average.
      kl_weighted: the KL of a token is multiplied by its ratio, through which the gradient goes (arXiv 2512.02556).
      entropy_coef: weight of the entropy bonus, estimated by -log pi of the sampled tokens, importance-weighted.
      off_policy_threshold: bad completions whose policy has moved so far, in nats per token, are left out; 0: none.

    Returns:
      (float[], metrics).
    """
    mask = data.tokens.mask
    mean = lambda x: aggregate(x, mask, 'token_mean', denominator=total)  # noqa: E731
    of_loss = lambda x: aggregate(x, mask, mode, denominator=denominator)  # noqa: E731
    losses = loss(logps, data.old, data.advantages, mask)
    if data.weights is not None:
        losses *= data.weights
    if off_policy_threshold:
        losses *= off_policy_mask(logps, data.sampled, data.advantages, mask, threshold=off_policy_threshold)
    value = of_loss(losses)
    ratio = keep(mask > 0, safe_exp(logps - data.old))
    entropy = mean(-ratio * logps)
    metrics = {
        'loss/policy_avg': value,
        'policy/approxkl_avg': mean(0.5 * jnp.square(logps - data.old)),
        'policy/entropy_avg': entropy,
        'val/ratio': mean(ratio),
        'val/ratio_var': mean(jnp.square(ratio - 1.0)),
        'sampling/sampling_logp_difference/mean': mean(jnp.abs(logps - data.sampled)),
    }
    outside = outside_bounds(loss, logps - data.old, mask)
    if outside is not None:
        metrics['policy/clipfrac_avg'] = mean(outside)
    if kl_coef:
        kl = kl_estimate(logps, data.ref, kl_kind)
        kl_loss = of_loss(kl * ratio if kl_weighted else kl)
        metrics['loss/kl_avg'] = kl_loss
        value += kl_coef * kl_loss
    return value - entropy_coef * entropy, metrics


def policy_objective(apply: Callable, *, temperature: float = 1.0, **how: Any) -> Callable:
    """`policy_loss` of a model.

    Args:
      apply: of the policy.
      temperature: of the sampling.
      **how: as `policy_loss` takes it.

    Returns:
      loss_fn; its batch is what `objectives.ppo.minibatch` gives of a PolicyBatch.
    """

    def loss_fn(params: Params, batch: tuple, key: jax.Array):
        data = batch[0]
        logps = token_logps(apply, {'params': params}, data.tokens, temperature=temperature)
        return policy_loss(logps, data, batch[1], batch[-1], **how)

    return loss_fn


def _logps_and_squares(apply: Callable, variables: Params, tokens: BranchBatch, temperature: float):
    """Log-probabilities of the sampled tokens and sum_v pi_v^2 where each was drawn, [B, T] each, row by row."""
    hidden, _ = read(apply, variables, tokens)
    hidden = before_each_token(hidden, tokens)
    targets = tokens.responses.tokens.reshape(tokens.mask.shape)

    def row(of_row: tuple[jax.Array, jax.Array]):
        states, ids = of_row
        logits = apply(variables, states[None], method='unembed')[0].astype(jnp.float32) / temperature
        log_p = jax.nn.log_softmax(logits)
        return jnp.take_along_axis(log_p, ids[:, None], axis=1)[:, 0], jnp.sum(jnp.exp(2.0 * log_p), axis=1)

    logps, squares = jax.lax.map(row, (hidden, targets))
    return keep(tokens.mask > 0, logps), keep(tokens.mask > 0, squares)
