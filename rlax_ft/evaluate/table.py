"""A policy that is a table, on the task `exact`: what it says of every completion is computed, not sampled.

A row of logits for each prompt, place and letter before, which can express pi* = pi_ref exp(r / beta) / Z exactly.
Leaves out training (experiments/benchmarks/which_find_optimum.py).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlax_ft.tasks import exact

LETTERS, LENGTH, PROMPTS = len(exact.LETTERS), exact.LENGTH, len(exact.PROMPTS)
# All completions, int[6^4, LENGTH], in the order of `exact.completions`.
ALL = np.stack(np.meshgrid(*[np.arange(LETTERS)] * LENGTH, indexing='ij'), axis=-1).reshape(-1, LENGTH)


@struct.dataclass
class Letters:
    """Sampled completions, with what `minibatch` and `policy_loss` read of tokens.

    Attributes:
      letters: int32[B, LENGTH].
      prompt: int32[B].
      mask: float32[B, LENGTH], all 1.
    """

    letters: jax.Array
    prompt: jax.Array
    mask: jax.Array


def reference() -> jax.Array:
    """The logits of the task's authors, [PROMPTS, LENGTH, before, LETTERS]; before the first stands letter 0."""
    shape = (PROMPTS, LENGTH, LETTERS, LETTERS)
    return jnp.asarray(np.log(np.broadcast_to(exact.HABIT[:, None], shape)), jnp.float32)


def rewards() -> jax.Array:
    """The reward of every completion of every prompt, float32[PROMPTS, 6^4]."""
    table = [[exact.reward(prompt, text) for text in exact.completions()] for prompt in exact.PROMPTS]
    return jnp.asarray(table, jnp.float32)


def places(letters: jax.Array) -> jax.Array:
    """Where completions stand in `ALL`, int[B]."""
    return letters @ (LETTERS ** np.arange(LENGTH)[::-1])


def log_pi(theta: jax.Array) -> jax.Array:
    """log pi of each letter after each, of the shape of the logits."""
    return jax.nn.log_softmax(theta)


def rows_of(pi: jax.Array, prompt: jax.Array, letters: jax.Array) -> jax.Array:
    """log pi of every letter at each place of a completion, float32[B, LENGTH, LETTERS]."""
    before = jnp.pad(letters[:, :-1], ((0, 0), (1, 0)))
    return pi[prompt[:, None], jnp.arange(LENGTH), before]


def logps_of(pi: jax.Array, prompt: jax.Array, letters: jax.Array) -> jax.Array:
    """log pi of each letter of a completion, float32[B, LENGTH]."""
    return jnp.take_along_axis(rows_of(pi, prompt, letters), letters[..., None], axis=-1)[..., 0]


def distribution(pi: jax.Array) -> jax.Array:
    """log pi(y | x) of every completion of every prompt, float32[PROMPTS, 6^4]."""
    prompts = jnp.repeat(jnp.arange(PROMPTS), len(ALL))
    logps = logps_of(pi, prompts, jnp.tile(jnp.asarray(ALL), (PROMPTS, 1)))
    return logps.sum(axis=1).reshape(PROMPTS, -1)


def sample(pi: jax.Array, prompt: jax.Array, key: jax.Array) -> jax.Array:
    """A completion of each prompt, int32[B, LENGTH]."""

    def next_letter(before: jax.Array, at: tuple[jax.Array, jax.Array]):
        place, key = at
        letter = jax.random.categorical(key, pi[prompt, place, before])
        return letter, letter

    along = jnp.arange(LENGTH), jax.random.split(key, LENGTH)
    return jax.lax.scan(next_letter, jnp.zeros_like(prompt), along)[1].T
