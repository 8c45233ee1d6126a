"""Log-probabilities of given text under a model: the one way from tokens to what language losses read.

Rows hold a prompt and its response; branches hold a prompt once, and its K responses after it. Both give the same
numbers. Leaves out gradients and reduction.
"""

import jax
import jax.numpy as jnp

from rlax_ft.ops.logprobs import chunked_token_logprobs
from rlax_ft.types import ApplyFn, BranchBatch, Rollout, TokenBatch


def token_logps(apply: ApplyFn, variables, batch: TokenBatch | BranchBatch, *, temperature: float = 1.0) -> jax.Array:
    """log pi(token_t | tokens before t) of every token, without ever holding [B, T, V].

    Args:
      apply: `Transformer.apply`, or any function of the same shape.
      variables: its variables.
      batch: TokenBatch [B, T], or BranchBatch of K responses of R tokens.
      temperature: what the logits are divided by, as in sampling.

    Returns:
      float32, in nats, of the shape of `batch.mask`, and 0 where that is: [B, T], whose first position is 0, or of the
      responses alone, [B * K, R].
    """
    return _from_hidden(apply, variables, batch, read(apply, variables, batch)[0], temperature)


def token_logps_and_alignment(
    apply: ApplyFn, variables, batch: TokenBatch | BranchBatch
) -> tuple[jax.Array, jax.Array]:
    """`token_logps`, and log p_t - log sum_v p_v^2: by how much a token is likelier than a drawn one is on average.

    With p^(1/2) the distribution at temperature 1/2, that is log p^(1/2)_t - log p_t (WPO, arXiv 2406.11827, eq. 2); it
    is stopped. Arguments as in `token_logps`.
    """
    hidden, _ = read(apply, variables, batch)
    logps, sharp = (_from_hidden(apply, variables, batch, hidden, temperature) for temperature in (1.0, 0.5))
    return logps, jax.lax.stop_gradient(sharp - logps)


def _from_hidden(apply, variables, batch, hidden, temperature):
    how = dict(chunk=None, temperature=temperature, soft_cap=apply(variables, method='unembed_soft_cap'))
    head = apply(variables, method='unembed_matrix')
    if isinstance(batch, BranchBatch):
        targets = batch.responses.tokens.reshape(batch.mask.shape)
        return chunked_token_logprobs(before_each_token(hidden, batch), head, targets, mask=batch.mask, **how)
    targets, mask = batch.tokens[:, 1:], batch.mask[:, 1:]
    if jax.sharding.get_abstract_mesh().shape.get('sequence', 1) == 1:
        return jnp.pad(chunked_token_logprobs(hidden[:, :-1], head, targets, mask=mask, **how), ((0, 0), (1, 0)))
    # Rows that are split over devices stay as long as they are: with one place less their parts would shift.
    targets, mask = (jnp.pad(x, ((0, 0), (0, 1))) for x in (targets, mask))
    logps = chunked_token_logprobs(hidden, head, targets, mask=mask, **how)
    return jnp.pad(logps[:, :-1], ((0, 0), (1, 0)))


def sequence_logps(
    apply: ApplyFn, variables, batch: TokenBatch | BranchBatch, *, temperature: float = 1.0
) -> jax.Array:
    """log pi(y | x) = sum over counted tokens, float32[B] (or [B * K]) in nats; arguments as in `token_logps`."""
    return jnp.sum(token_logps(apply, variables, batch, temperature=temperature), axis=-1)


def candidate_logps(
    apply: ApplyFn, variables, candidates: TokenBatch | BranchBatch, *, temperature: float = 1.0
) -> jax.Array:
    """log pi(y_k | x) of K candidates a prompt, float32[B, K], from a TokenBatch [B, K, T] or a BranchBatch."""
    logps = sequence_logps(apply, variables, candidate_rows(candidates), temperature=temperature)
    return logps.reshape(-1, candidate_count(candidates))


def candidate_rows(candidates: TokenBatch | BranchBatch) -> TokenBatch | BranchBatch:
    """A TokenBatch [B, K, T] as one of rows [B * K, T]; branches as they are."""
    if isinstance(candidates, BranchBatch):
        return candidates
    return jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), candidates)


def candidate_count(candidates: TokenBatch | BranchBatch) -> int:
    """K."""
    return (candidates.responses if isinstance(candidates, BranchBatch) else candidates).tokens.shape[1]


def read(apply: ApplyFn, variables, batch: TokenBatch | BranchBatch):
    """What a model says of each token, [B, T, ...]; of branches T is the prompt and then every response."""
    if not isinstance(batch, BranchBatch):
        return apply(variables, batch.tokens, batch.positions, batch.segment_ids)
    rows = jax.tree.map(
        lambda prompt, responses: jnp.concatenate([prompt, responses.reshape(prompt.shape[0], -1)], axis=1),
        batch.prompt,
        batch.responses,
    )
    branches = batch.prompt.tokens.shape[1], batch.responses.tokens.shape[1]
    return apply(variables, rows.tokens, rows.positions, rows.segment_ids, branches=branches)


def at_each_token(x: jax.Array, batch: BranchBatch) -> jax.Array:
    """[B, P + K * R, ...] as `read` gave it -> that of the response tokens, [B * K, R, ...]."""
    return x[:, batch.prompt.tokens.shape[1] :].reshape(*batch.mask.shape, *x.shape[2:])


def before_each_token(x: jax.Array, batch: BranchBatch) -> jax.Array:
    """The same, one token earlier, which is what predicts the token: the prompt's last before the first."""
    prompt, responses = batch.prompt.tokens.shape[1], batch.responses.tokens.shape[1]
    last = jnp.repeat(x[:, prompt - 1 : prompt], responses, axis=0)
    return jnp.concatenate([last, at_each_token(x, batch)[:, :-1]], axis=1)


def rollout_batch(rollout: Rollout) -> TokenBatch:
    """Prompts and completions as one TokenBatch [B, P + N], for scoring what was sampled.

    Returns:
      A TokenBatch whose positions count real tokens, so that left padding changes nothing.
    """
    real = jnp.concatenate([rollout.prompt_mask, rollout.mask], axis=1)
    return TokenBatch(
        tokens=jnp.concatenate([rollout.prompts, rollout.tokens], axis=1),
        mask=jnp.concatenate([jnp.zeros_like(rollout.prompt_mask), rollout.mask], axis=1).astype(jnp.float32),
        positions=jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0),
        segment_ids=real.astype(jnp.int32),
    )


def rollout_branches(rollout: Rollout, group_size: int = 1) -> BranchBatch:
    """The same as branches: the `group_size` completions of a prompt stand in adjacent rows, and read it once."""
    first = slice(None, None, group_size)
    prompts, real = rollout.prompts[first], rollout.prompt_mask[first].astype(jnp.int32)
    responses, mask = (x.reshape(-1, group_size, x.shape[1]) for x in (rollout.tokens, rollout.mask))
    prompt = TokenBatch(prompts, jnp.zeros(prompts.shape), jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0), real)
    positions = jnp.sum(real, axis=1)[:, None, None] + jnp.broadcast_to(jnp.arange(mask.shape[2]), mask.shape)
    return BranchBatch(prompt, TokenBatch(responses, mask.astype(jnp.float32), positions, mask.astype(jnp.int32)))
