"""A policy that is a table: a logit for every letter after every prefix, so that it can be any distribution.

It has an `apply` of the same shape as `Transformer.apply`, so that every objective runs on it, on texts of a few
letters. Leaves out sampling by a model: all completions are enumerated, and drawn from.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.types import BranchBatch, Params, TokenBatch

_NEVER = -1e9


class TablePolicy:
    """Texts of `length` letters after one of `prompts` prompts; prefixes are numbered as in a heap, the empty one 0."""

    def __init__(self, prompts: int, letters: int, length: int):
        """Takes the sizes; tokens are prompts first, then letters."""
        self.prompts, self.letters, self.length = prompts, letters, length
        self.prefixes = sum(letters**n for n in range(length))
        self.texts = np.asarray(list(itertools.product(range(letters), repeat=length)))  # [Y, length]

    def init(self, key: jax.Array, scale: float) -> Params:
        """Normal logits of that scale."""
        return {'table': scale * jax.random.normal(key, (self.prompts, self.prefixes, self.letters))}

    def apply(
        self, variables, tokens=None, positions=None, segment_ids=None, cache=None, *, branches=None, method=None
    ):
        """As `Transformer.apply`, on branches only: a prompt of one token, and K texts behind it."""
        if method == 'unembed_soft_cap':
            return None
        if method == 'unembed_matrix':
            # Hidden states are the letters' logits and a 1, by which no other token is ever likely.
            others = jnp.where(jnp.arange(self.prompts + self.letters) < self.prompts, _NEVER, 0.0)
            return jnp.concatenate([jnp.eye(self.letters, len(others), k=self.prompts), others[None]])
        prompt, texts = tokens[:, 0], tokens[:, 1:].reshape(len(tokens), -1, self.length) - self.prompts
        prefix = jnp.minimum(self._prefixes(texts), self.prefixes - 1).reshape(len(tokens), -1)
        prefix = jnp.concatenate([jnp.zeros_like(prefix[:, :1]), prefix], axis=1)
        logits = variables['params']['table'][prompt[:, None], prefix]
        return jnp.concatenate([logits, jnp.ones_like(logits[..., :1])], axis=-1), None

    def logps(self, params: Params) -> jax.Array:
        """log pi(y | x) of every text, float[prompts, Y]."""
        by_letter = jax.nn.log_softmax(params['table'])
        before = self._prefixes(self.texts[:, :-1])
        before = np.concatenate([np.zeros((len(self.texts), 1), int), before], axis=1)  # [Y, length]
        return by_letter[:, before, self.texts].sum(axis=-1)

    def draw(self, key: jax.Array, logps: jax.Array, prompt: jax.Array, count: int) -> jax.Array:
        """Numbers of texts drawn from a distribution float[prompts, Y] for prompts int[B]: int[B, count].

        By where a uniform number falls among the cumulative probabilities: one random number a text, where noise on
        each logit, as in `jax.random.categorical`, takes one for every text that there is.
        """
        ends = jnp.cumsum(jnp.exp(logps), axis=1)
        at = jax.random.uniform(key, (len(prompt), count)) * ends[prompt, -1:]

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) // 2
            beyond = ends[prompt[:, None], middle] <= at
            return jnp.where(beyond, middle + 1, low), jnp.where(beyond, high, middle)

        low = jnp.zeros(at.shape, jnp.int32)
        bounds = (low, low + len(self.texts) - 1)
        return jax.lax.fori_loop(0, len(self.texts).bit_length(), halve, bounds)[0]

    def conditionals(self, logps: jax.Array) -> Params:
        """The table of a distribution over texts, float[prompts, Y]: log pi(letter | prefix)."""
        parts, joint = [], logps
        for n in reversed(range(self.length)):
            joint = joint.reshape(self.prompts, self.letters**n, self.letters)
            parts.append(jax.nn.log_softmax(joint))
            joint = jax.nn.logsumexp(joint, axis=-1)
        return {'table': jnp.concatenate(parts[::-1], axis=1)}

    def batch(self, prompt: jax.Array, index: jax.Array) -> BranchBatch:
        """Texts by number, int[B, K], of prompts int[B], as branches."""
        tokens = jnp.asarray(self.texts)[index] + self.prompts
        ones = jnp.ones(tokens.shape, jnp.int32)
        first = jnp.ones((len(prompt), 1), jnp.int32)
        return BranchBatch(
            prompt=TokenBatch(prompt[:, None], jnp.zeros(first.shape), first - 1, first),
            responses=TokenBatch(tokens, ones.astype(jnp.float32), jnp.cumsum(ones, axis=-1), ones),
        )

    def _prefixes(self, texts):
        """The number of each text's beginnings, of 1 to all letters, int[..., n]."""
        at, numbers = 0, []
        for t in range(texts.shape[-1]):
            at = at * self.letters + texts[..., t] + 1
            numbers.append(at)
        return (np if isinstance(texts, np.ndarray) else jnp).stack(numbers, axis=-1)
