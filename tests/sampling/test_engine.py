"""The rollout engine gives the plain sampler's samples, in order, whatever the number of rows and the refills."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.models.config import embedded_config
from rlax_ft.models.transformer import Transformer, for_decoding, init_params
from rlax_ft.sampling.engine import generate_many
from rlax_ft.sampling.sampler import generate

CONFIG = embedded_config('tiny', vocab_size=11, max_length=24)
APPLY = Transformer(CONFIG).apply
EOS, PROMPTS, NEW = 2, 13, 10


@pytest.fixture(scope='module')
def variables():
    return {'params': jax.tree.map(lambda x: x * 3, init_params(CONFIG, jax.random.key(0)))}


def prompts():
    rng = np.random.default_rng(0)
    mask = np.arange(4) >= 4 - rng.integers(1, 5, PROMPTS)[:, None]
    return jnp.asarray(rng.integers(3, 11, mask.shape)), jnp.asarray(mask)


@pytest.fixture(scope='module')
def plain(variables):
    return generate(APPLY, variables, *prompts(), jax.random.key(1), max_new_tokens=NEW, eos_ids=(EOS,))


def same(a, b):
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_array_equal(a.mask, b.mask)
    np.testing.assert_allclose(a.logps, b.logps, atol=2e-5)


@pytest.mark.parametrize(('rows', 'refill'), [(4, 1), (5, 3), (40, None)])
def test_samples_are_the_plain_samplers(variables, plain, rows, refill):
    lengths = np.asarray(plain.mask).sum(axis=1)
    assert len(set(lengths.tolist())) > 3 and lengths.max() == NEW  # some end early, some never
    engine = jax.jit(
        lambda key: generate_many(
            APPLY, variables, *prompts(), key, rows=rows, refill=refill, max_new_tokens=NEW, eos_ids=(EOS,)
        )
    )
    same(engine(jax.random.key(1)), plain)


def test_a_prompts_sample_does_not_depend_on_its_neighbours(variables, plain):
    tokens, mask = prompts()
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(PROMPTS))
    some = jnp.asarray([7, 2, 11])
    alone = generate(APPLY, variables, tokens[some], mask[some], keys[some], max_new_tokens=NEW, eos_ids=(EOS,))
    np.testing.assert_array_equal(alone.tokens, plain.tokens[some])


def test_the_layout_for_decoding_changes_no_sample(variables, plain):
    fused = {'params': for_decoding(variables['params'])}
    assert set(fused['params']['layers_1']['attention']) == {'qkv', 'out'}
    same(generate(APPLY, fused, *prompts(), jax.random.key(1), max_new_tokens=NEW, eos_ids=(EOS,)), plain)
