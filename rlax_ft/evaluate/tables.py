"""A policy that is a table of logits, on texts of a few letters: what it says of every text is computed, not sampled.

It has an `apply` of the same shape as `Transformer.apply`, so that every objective runs on it. Leaves out training
(harness/optimum.py, experiments/benchmarks/which_find_optimum.py).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlax_ft.types import BranchBatch, Params, TokenBatch

_NEVER = -1e9


@struct.dataclass
class Letters:
    """Sampled texts, with what `minibatch` and `policy_loss` read of tokens.

    Attributes:
      letters: int32[B, length].
      prompt: int32[B].
      mask: float32[B, length], all 1.
    """

    letters: jax.Array
    prompt: jax.Array
    mask: jax.Array


class TablePolicy:
    """Texts of `length` letters after one of `prompts` prompts; a letter is drawn from the row of its context.

    A context is all letters before, so that the table can be any distribution; numbered as in a heap, the empty one 0.
    Of `markov` it is the place and the letter before (letter 0 before the first), place * letters + letter.
    """

    def __init__(self, prompts: int, letters: int, length: int, *, markov: bool = False):
        """Takes the sizes; tokens are prompts first, then letters."""
        self.prompts, self.letters, self.length, self.markov = prompts, letters, length, markov
        self.rows = length * letters if markov else sum(letters**n for n in range(length))
        self.texts = np.asarray(list(itertools.product(range(letters), repeat=length)))  # [Y, length]

    def init(self, key: jax.Array, scale: float) -> Params:
        """Normal logits of that scale."""
        return {'table': scale * jax.random.normal(key, (self.prompts, self.rows, self.letters))}

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
        # A letter's hidden state predicts the next one; nothing reads the last one's.
        contexts = jnp.roll(self.contexts(texts), -1, axis=-1).reshape(len(tokens), -1)
        contexts = jnp.concatenate([jnp.zeros_like(contexts[:, :1]), contexts], axis=1)
        logits = variables['params']['table'][prompt[:, None], contexts]
        return jnp.concatenate([logits, jnp.ones_like(logits[..., :1])], axis=-1), None

    def logps(self, params: Params) -> jax.Array:
        """log pi(y | x) of every text, float[prompts, Y]."""
        by_letter = jax.nn.log_softmax(params['table'])
        return by_letter[:, self.contexts(self.texts), self.texts].sum(axis=-1)

    def by_letter(self, log_table: jax.Array, prompt: jax.Array, texts: jax.Array) -> jax.Array:
        """log pi of every letter at each place of texts [B, length], float[B, length, letters]."""
        return log_table[prompt[:, None], self.contexts(texts)]

    def letter_logps(self, log_table: jax.Array, prompt: jax.Array, texts: jax.Array) -> jax.Array:
        """log pi of each letter of texts [B, length], float[B, length]."""
        return jnp.take_along_axis(self.by_letter(log_table, prompt, texts), texts[..., None], axis=-1)[..., 0]

    def sample(self, log_table: jax.Array, prompt: jax.Array, key: jax.Array) -> jax.Array:
        """A text of each prompt, int32[B, length]."""

        def next_letter(context: jax.Array, at: tuple[jax.Array, jax.Array]):
            place, key = at
            letter = jax.random.categorical(key, log_table[prompt, context])
            return self._after(context, place, letter), letter

        along = jnp.arange(self.length), jax.random.split(key, self.length)
        return jax.lax.scan(next_letter, jnp.zeros_like(prompt), along)[1].T

    def number(self, texts: jax.Array) -> jax.Array:
        """Where texts stand in `self.texts`, int[B]."""
        return texts @ (self.letters ** np.arange(self.length)[::-1])

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
        """The table of a distribution over texts, float[prompts, Y]: log pi(letter | all before); not of `markov`."""
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

    def contexts(self, texts):
        """The context of each letter of texts [..., length], int[..., length]."""
        at, found = texts[..., 0] * 0, []
        for place in range(self.length):
            found.append(at)
            at = self._after(at, place, texts[..., place])
        return (np if isinstance(texts, np.ndarray) else jnp).stack(found, axis=-1)

    def _after(self, context, place, letter):
        return (place + 1) * self.letters + letter if self.markov else context * self.letters + letter + 1
