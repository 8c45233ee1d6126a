"""The sampler: its log-probabilities are the trainer's, its draws follow the distribution, its rows end at EOS."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.models.config import embedded_config
from rlax_ft.models.scoring import rollout_batch, token_logps
from rlax_ft.models.transformer import Transformer, for_decoding, init_params
from rlax_ft.sampling import progress
from rlax_ft.sampling.draw import truncate
from rlax_ft.sampling.sampler import generate
from rlax_ft.sampling.text import map_rows, rollout_logps

CONFIG = embedded_config('tiny', vocab_size=11, max_length=24)
APPLY = Transformer(CONFIG).apply
EOS = 2


@pytest.fixture(scope='module')
def variables():
    params = init_params(CONFIG, jax.random.key(0))
    # A sharper model than a fresh one, so that no distribution here is nearly uniform.
    return {'params': jax.tree.map(lambda x: x * 3, params)}


def sample(variables, seed=0, prompts=None, mask=None, **options):
    if prompts is None:
        prompts = jnp.asarray([[0, 0, 1, 5], [1, 7, 8, 9], [0, 1, 3, 3]] * 4)
        mask = jnp.asarray([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]] * 4, bool)
    options = {'max_new_tokens': 8, 'eos_ids': (EOS,), **options}
    return _sample(variables, prompts, mask, jax.random.key(seed), **options)


_sample = jax.jit(partial(generate, APPLY), static_argnames=('max_new_tokens', 'eos_ids', 'temperature', 'top_k'))
_score = jax.jit(partial(token_logps, APPLY))


@pytest.mark.parametrize('temperature', [0.7, 1.0])
def test_log_probabilities_are_the_trainers(variables, temperature):
    rollout = sample(variables, temperature=temperature)
    scored = _score(variables, rollout_batch(rollout), temperature=temperature)
    np.testing.assert_allclose(rollout_logps(rollout), scored, atol=3e-5)
    other = _score(variables, rollout_batch(rollout), temperature=1.3)
    assert np.abs(other - scored).max() > 1e-2


def test_rows_end_at_their_first_eos(variables):
    rollout = sample(variables, max_new_tokens=16, seed=3)
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    assert (tokens == EOS).any()
    for row, real in zip(tokens, mask):
        end = np.flatnonzero(row == EOS)
        length = end[0] + 1 if len(end) else len(row)
        assert real.tolist() == [True] * length + [False] * (len(row) - length)
        assert (row[length:] == 0).all()
    assert (np.asarray(rollout.logps)[~mask] == 0).all()


def test_left_padding_changes_no_sample(variables):
    prompts = jnp.asarray([[1, 5, 6]])
    padded = jnp.asarray([[9, 9, 9, 1, 5, 6]])
    mask = jnp.asarray([[0, 0, 0, 1, 1, 1]], bool)
    short = sample(variables, prompts=prompts, mask=jnp.ones_like(prompts, bool))
    long = sample(variables, prompts=padded, mask=mask)
    np.testing.assert_array_equal(short.tokens, long.tokens)
    np.testing.assert_allclose(short.logps, long.logps, atol=1e-5)


def test_keys_decide(variables):
    np.testing.assert_array_equal(sample(variables, 1).tokens, sample(variables, 1).tokens)
    assert (sample(variables, 1).tokens != sample(variables, 2).tokens).any()


def test_greedy_takes_the_likeliest_and_temperature_alone_does_not(variables):
    greedy = sample(variables, temperature=0.0)
    np.testing.assert_array_equal(greedy.tokens, sample(variables, 5, temperature=0.0).tokens)
    np.testing.assert_array_equal(greedy.tokens, sample(variables, 5, top_k=1).tokens)
    assert (sample(variables, 5, temperature=0.7).tokens != greedy.tokens).any()


def test_samples_follow_the_models_distribution(variables):
    prompts = jnp.tile(jnp.asarray([[1, 5]]), (4096, 1))
    rollout = sample(variables, prompts=prompts, mask=jnp.ones_like(prompts, bool), max_new_tokens=1)
    hidden, _ = APPLY(variables, prompts[:1])
    expected = np.asarray(jax.nn.softmax(APPLY(variables, hidden[0, -1], method='unembed')))
    counts = np.bincount(np.asarray(rollout.tokens[:, 0]), minlength=11)
    chi_square = ((counts - 4096 * expected) ** 2 / (4096 * expected)).sum()
    assert chi_square < 29.6  # 0.1 % point of chi-square with 10 degrees of freedom


def test_truncation_by_hand():
    logps = jnp.log(jnp.asarray([[0.05, 0.4, 0.25, 0.3]]))
    kept = lambda **k: np.isfinite(truncate(logps, **{'top_k': None, 'top_p': 1.0, 'min_p': 0.0, **k}))[0].tolist()  # noqa: E731
    assert kept() == [True] * 4
    assert kept(top_k=2) == [False, True, False, True]
    assert kept(top_p=0.5) == [False, True, False, True]
    assert kept(top_p=0.39) == [False, True, False, False]
    assert kept(min_p=0.7) == [False, True, False, True]


def test_map_rows_joins_batches_and_cuts_the_filling():
    rows = {'x': np.arange(7)}
    np.testing.assert_array_equal(map_rows(lambda b: b['x'] * 2, rows, batch_size=3), np.arange(7) * 2)


@pytest.mark.parametrize(('top_k', 'top_p'), [(7, 1.0), (None, 0.8), (None, 0.05), (40, 0.9)])
def test_truncation_keeps_what_sorting_keeps(top_k, top_p):
    logps = np.asarray(jax.nn.log_softmax(2 * jax.random.normal(jax.random.key(0), (16, 500))), np.float64)
    kept = np.isfinite(truncate(jnp.asarray(logps), top_k=top_k, top_p=top_p, min_p=0.0))
    for row, got in zip(logps, kept):
        order = np.argsort(-row)
        before = np.cumsum(np.exp(row[order])) - np.exp(row[order])
        count = min(top_k or 500, int((before < top_p).sum()))
        assert sorted(np.flatnonzero(got)) == sorted(order[:count])


def test_decoding_copies_no_cache():
    """What the loop compiles to holds no copy of a layer's keys or values, which would cost more than reading them."""
    config = embedded_config('tiny', vocab_size=23, max_length=64)
    params, prompts = init_params(config, jax.random.key(0)), jnp.ones((8, 17), jnp.int32)

    def sample(params, key):
        variables = {'params': for_decoding(params)}
        return generate(Transformer(config).apply, variables, prompts, prompts, key, max_new_tokens=40)

    program = jax.jit(sample).lower(params, jax.random.key(1)).compile().as_text()
    for shape in (f'8,{config.kv_heads},{config.head_dim},57', f'8,{config.kv_heads},57,{config.head_dim}'):
        assert re.search(rf'f32\[{shape}\]\S* fusion\(', program)
        assert not re.search(rf'f32\[{shape}\]\S* (copy|transpose)\(', program)


def test_long_work_shows_how_far_it_is(monkeypatch, capsys):
    double = jax.jit(lambda x: 2 * x)
    np.testing.assert_array_equal(map_rows(double, np.arange(6), batch_size=2), 2 * np.arange(6))
    assert not capsys.readouterr().err  # What is done at once says nothing.
    monkeypatch.setattr(progress, '_AFTER', 0)
    monkeypatch.setattr('sys.stderr.isatty', lambda: True)
    map_rows(double, np.arange(6), batch_size=2)
    assert 'scoring' in capsys.readouterr().err
