"""Rewards of steps on the tokens that end them, and advantages from them by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.data.codec import Codec
from rlax_ft.data.tokenizers import train_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.ops.process import process_group_advantages
from rlax_ft.rewards.process import process_rewards, steps_of
from rlax_ft.types import Rollout

CODEC = Codec(train_tokenizer('bytes', []), 8, 16)


def rollout(texts):
    tokens, mask = np.zeros((len(texts), 16), np.int32), np.zeros((len(texts), 16), bool)
    for i, text in enumerate(texts):
        ids = [*CODEC.tokenizer(text, add_special_tokens=False).input_ids, CODEC.tokenizer.eos_token_id]
        tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
    blank = np.zeros((len(texts), 2), np.int32)
    return Rollout(blank, blank > 0, tokens, mask, np.zeros(mask.shape, np.float32))


def test_a_steps_reward_stands_on_its_last_token():
    texts = ['ab\n\ncde\nf', 'é\nx']  # é is two bytes, so two tokens.
    assert [steps_of(text) for text in texts] == [['ab', 'cde', 'f'], ['é', 'x']]
    lengths = lambda records, completions: [[len(s) for s in steps_of(c)] for c in completions]  # noqa: E731
    rewards, ends = process_rewards(lengths, [{}, {}], rollout(texts), CODEC)
    assert np.argwhere(ends).tolist() == [[0, 1], [0, 6], [0, 8], [1, 1], [1, 3]]
    assert rewards[ends].tolist() == [2.0, 3.0, 1.0, 1.0, 1.0] and rewards.sum() == 8.0
    with pytest.raises(InputError, match='for the 3 steps of'):
        process_rewards(lambda r, c: [[1.0], [1.0, 1.0]], [{}, {}], rollout(texts), CODEC)
    for wrong in (None, [1.0, 2.0], [['a'], [1.0]]):
        with pytest.raises(InputError, match='for each completion a list of numbers was expected'):
            process_rewards(lambda r, c, wrong=wrong: wrong, [{}, {}], rollout(texts), CODEC)


def test_advantages_by_hand():
    # One group of two rows: steps 1 and 3 in the first, 5 in the second; mean 3, unbiased deviation 2.
    rewards, nan = [[0.0, 1.0, 0.0, 3.0], [7.0, 5.0, np.nan, 0.0]], jnp.nan
    ends = [[0, 1, 0, 1], [0, 1, 1, 0]]
    mask = [[1, 1, 1, 1], [1, 1, 0, 0]]
    found = process_group_advantages(jnp.asarray(rewards), jnp.asarray(ends), jnp.asarray(mask), 2, eps=0.0)
    np.testing.assert_allclose(found, [[-1.0, -1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]], atol=1e-6)
    plain = process_group_advantages(jnp.asarray(rewards), jnp.asarray(ends), jnp.asarray(mask), 2, scale=False)
    np.testing.assert_allclose(plain, [[-2.0, -2.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0]], atol=1e-6)
    with pytest.raises(ValueError, match='group_size 3'):
        process_group_advantages(jnp.zeros((2, 1)) + nan, jnp.zeros((2, 1)), jnp.zeros((2, 1)), 3)
