"""PPO on language, between the sampler and the train step: rewards per token, advantages, minibatches, the objective.

The field's checklist (arXiv 2403.17031, 1909.08593, 2203.02155), and where each point is kept:
- completions are of fixed length, truncated after the first EOS and scored as such: `sampling.generate`, `end_scores`;
- no EOS costs a set penalty: `end_scores`;
- the score is added at the last real token, not on padding: `ops.returns.token_rewards`;
- logits are divided by the sampling temperature in policy, reference and update alike: `estimate`, `ppo_objective`;
- the value head starts at 0: `models.heads.value_params`;
- rewards are not whitened; advantages are, over real tokens, with their mean removed: `estimate`;
- a fresh permutation each epoch, from a fresh key each update: `minibatch`.
Leaves out the loop (experiments/ppo.py) and where scores come from (rewards/).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import struct

from rlax_ft.losses.clipping import outside_bounds
from rlax_ft.losses.policy_gradient import ppo_clip_loss
from rlax_ft.losses.value import clipped_value_loss
from rlax_ft.models.scoring import before_each_token, read, token_logps
from rlax_ft.ops.reduce import aggregate, denominator, masked_var, masked_whiten
from rlax_ft.ops.returns import token_gae, token_rewards
from rlax_ft.types import ApplyFn, BranchBatch, LossFn, Params, Rollout, TokenBatch


@struct.dataclass
class PPOBatch:
    """What the update reads of a batch of rollouts; arrays have the shape of `tokens.mask` and are 0 where it is.

    Attributes:
      tokens: TokenBatch [B, T], or BranchBatch: then the arrays are of responses alone, [B * K, R].
      logps: of the sampled tokens under the policy that sampled them.
      values: the critic's estimates before the update.
      advantages: whitened.
      returns: the critic's targets.
    """

    tokens: TokenBatch | BranchBatch
    logps: jax.Array
    values: jax.Array
    advantages: jax.Array
    returns: jax.Array


def end_scores(scores: jax.Array, ended: jax.Array, missing_eos_penalty: float) -> jax.Array:
    """The scores less a penalty where a completion did not end: float32[B].

    Args:
      scores: [B], of any dtype.
      ended: bool[B], whether the completion has an EOS.
      missing_eos_penalty: what is subtracted (arXiv 2403.17031).
    """
    return jnp.asarray(scores, jnp.float32) - missing_eos_penalty * (1.0 - ended.astype(jnp.float32))


def token_values(apply: ApplyFn, params: Params, tokens: TokenBatch | BranchBatch) -> jax.Array:
    """V(prompt, y_<t) of each response token y_t, the critic read one position earlier; of the mask's shape."""
    values = read(apply, {'params': params}, tokens)
    if isinstance(tokens, BranchBatch):
        values = before_each_token(values, tokens)
    else:
        values = jnp.pad(values[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(tokens.mask > 0, values, 0.0)


def estimate(
    policy_apply: ApplyFn,
    value_apply: ApplyFn,
    params: Params,
    ref_params: Params,
    tokens: TokenBatch | BranchBatch,
    logps: jax.Array,
    scores: jax.Array,
    kl_coef: jax.Array | float,
    *,
    temperature: float = 1.0,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[PPOBatch, dict[str, jax.Array]]:
    """From scored rollouts to what the update reads: KL-penalised rewards, GAE, whitened advantages.

    Args:
      policy_apply: of the policy and the reference.
      value_apply: of the critic.
      params: {'policy', 'value'}.
      ref_params: of the reference policy.
      tokens: of prompts and completions.
      logps: of the sampled tokens, as the sampler gave them, of the shape of `tokens.mask`.
      scores: float[B].
      kl_coef: beta, the weight of the per-token KL penalty.
      temperature: of the sampling.
      gamma: discount per token.
      lam: lambda of GAE.

    Returns:
      (PPOBatch, metrics under TRL's names).
    """
    mask = tokens.mask
    ref_logps = token_logps(policy_apply, {'params': ref_params}, tokens, temperature=temperature)
    values = token_values(value_apply, params['value'], tokens)
    rewards = token_rewards(scores, mask, logps - ref_logps, kl_coef=kl_coef)
    advantages, returns = token_gae(rewards, values, mask, gamma=gamma, lam=lam)
    kl = jnp.sum((logps - ref_logps) * mask, axis=1)
    metrics = {
        'objective/kl': jnp.mean(kl),
        'objective/entropy': -jnp.mean(jnp.sum(logps * mask, axis=1)),
        'objective/non_score_reward': -kl_coef * jnp.mean(kl),
        'objective/rlhf_reward': jnp.mean(scores) - kl_coef * jnp.mean(kl),
        'objective/scores': jnp.mean(scores),
        'objective/kl_coef': jnp.asarray(kl_coef, jnp.float32),
        'completions/mean_length': jnp.mean(jnp.sum(mask, axis=1)),
        'val/explained_variance': explained_variance(values, returns, mask),
    }
    batch = PPOBatch(
        tokens=tokens,
        logps=logps * mask,
        values=values,
        advantages=masked_whiten(advantages, mask),
        returns=returns,
    )
    return batch, metrics


def minibatch(
    batch: PPOBatch,
    key: jax.Array,
    epoch: jax.Array,
    index: jax.Array,
    *,
    count: int,
    mode: str = 'token_mean',
    max_len: int | None = None,
) -> tuple:
    """Minibatch `index` of `count` in an epoch, with its denominators.

    Args:
      batch: PPOBatch of B rows, or any struct with `tokens`.
      key: of this update: each update has another, and each epoch its own permutation.
      epoch: int32[].
      index: int32[].
      count: number of minibatches; it divides B, and responses to one prompt stay together.
      mode: how the policy loss is aggregated, of `ops.reduce.MODES`.
      max_len: tokens per row in the mode `constant`.

    Returns:
      (batch of B / count rows, number of its response tokens), and, where that is not what `mode` divides by, the
      policy loss's denominator as a third.
    """
    prompts = jax.tree.leaves(batch.tokens)[0].shape[0]
    rows = jax.random.permutation(jax.random.fold_in(key, epoch), prompts).reshape(count, -1)[index]

    def pick(leaf: jax.Array):
        by_prompt = leaf.reshape(prompts, -1, *leaf.shape[1:])[rows]
        return by_prompt.reshape(-1, *leaf.shape[1:])

    part = jax.tree.map(pick, batch)
    tokens = jnp.sum(part.tokens.mask)
    return (
        (part, tokens) if mode == 'token_mean' else (part, tokens, denominator(part.tokens.mask, mode, max_len=max_len))
    )


def ppo_objective(
    policy_apply: ApplyFn,
    value_apply: ApplyFn,
    *,
    loss: Callable = ppo_clip_loss,
    mode: str = 'token_mean',
    value_clip: float | None = 0.2,
    value_coef: float = 0.1,
    entropy_coef: float = 0.0,
    temperature: float = 1.0,
) -> LossFn:
    """policy loss + value_coef * value loss - entropy_coef * entropy, the latter two means over the response tokens.

    Args:
      policy_apply: of the policy.
      value_apply: of the critic.
      loss: `f(logps, old_logps, advantages, mask) -> float[B, T]`.
      mode: how the policy loss is aggregated, of `ops.reduce.MODES`.
      value_clip: how far a value may move from its old one; None does not clip.
      value_coef: weight of the value loss.
      entropy_coef: weight of the entropy bonus, estimated by -log pi of the sampled tokens, importance-weighted.
      temperature: of the sampling.

    Returns:
      loss_fn for params {'policy', 'value'}; its batch is what `minibatch` gives: (PPOBatch, number of response tokens
      in the whole batch), with the denominator of `mode` as a third where that is another one.
      `policy/clipfrac_avg` is the share of tokens outside the loss's own bounds; a loss without any has no such metric.
    """

    def loss_fn(params: Params, batch: tuple, key: jax.Array):
        data, total = batch[:2]
        mask = data.tokens.mask
        mean = lambda x: aggregate(x, mask, 'token_mean', denominator=total)  # noqa: E731
        logps = token_logps(policy_apply, {'params': params['policy']}, data.tokens, temperature=temperature)
        values = token_values(value_apply, params['value'], data.tokens)
        losses = loss(logps, data.logps, data.advantages, mask)
        policy_loss = aggregate(losses, mask, mode, denominator=batch[-1])
        value_loss = mean(clipped_value_loss(values, data.values, data.returns, clip=value_clip))
        log_ratio = (logps - data.logps) * mask
        ratio = jnp.exp(jnp.clip(log_ratio, -20.0, 20.0))
        entropy = mean(-ratio * logps)
        clipped = 0.0 if value_clip is None else jnp.abs(values - data.values) > value_clip
        metrics = {
            'loss/policy_avg': policy_loss,
            'loss/value_avg': value_loss,
            'policy/approxkl_avg': mean(0.5 * jnp.square(log_ratio)),
            'policy/entropy_avg': entropy,
            'val/clipfrac_avg': mean(jnp.zeros_like(values) + clipped),
            'val/ratio': mean(ratio),
            'val/ratio_var': mean(jnp.square(ratio - 1.0)),
        }
        outside = outside_bounds(loss, log_ratio, mask)
        if outside is not None:
            metrics['policy/clipfrac_avg'] = mean(outside)
        return policy_loss + value_coef * value_loss - entropy_coef * entropy, metrics

    return loss_fn


def explained_variance(values: jax.Array, returns: jax.Array, mask: jax.Array) -> jax.Array:
    """1 - Var(returns - values) / Var(returns) over real tokens: 1 for a perfect critic, 0 for a constant one."""
    return 1.0 - masked_var(returns - values, mask) / (masked_var(returns, mask) + 1e-8)


def ended(rollout: Rollout, eos_ids: Sequence[int]) -> jax.Array:
    """Whether each completion has an EOS, bool[B]; always, where there is none to have."""
    if not eos_ids:
        return jnp.ones(rollout.tokens.shape[0], bool)
    return jnp.any(jnp.isin(rollout.tokens, jnp.asarray(eos_ids)) & rollout.mask, axis=1)


@jax.jit
def mean_over_steps(steps: list[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """The mean of each metric over the optimiser steps of an update; of `skipped` steps their number."""
    means = jax.tree.map(lambda *values: sum(values) / len(values), *steps)
    return {name: mean * len(steps) if name == 'skipped' else mean for name, mean in means.items()}
