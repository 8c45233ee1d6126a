"""Log-probabilities in chunks: the plain numbers and gradients, memory, masks that cost nothing, a sharded head."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rlax_ft.ops import logprobs
from rlax_ft.ops.logprobs import (
    chunked_token_logprobs,
    chunked_token_logprobs_and_entropy,
    entropy,
    token_logprobs,
)


def arrays(seed, b, t, d, v, dtype=np.float64):
    rng = np.random.default_rng(seed)
    hidden, head = rng.normal(size=(b, t, d)), rng.normal(size=(d, v))
    return hidden.astype(dtype), head.astype(dtype), rng.integers(0, v, (b, t)), rng.random((b, t)) < 0.5


def plain(hidden, head, targets, mask, temperature, soft_cap):
    """What the chunked form must equal, in numpy's order: logits, cap, temperature, softmax."""
    logits = hidden @ head
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    log_p = jax.nn.log_softmax(logits / temperature)
    chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    spread = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    return jnp.where(mask, chosen, 0.0), jnp.where(mask, spread, 0.0)


def test_token_logprobs_and_entropy_by_hand(x64):
    logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.9, 1e-300]]) + 7.0
    np.testing.assert_allclose(token_logprobs(logits, np.array([1, 0])), np.log([0.25, 0.1]), rtol=1e-12)
    np.testing.assert_allclose(entropy(logits), [1.5 * np.log(2), -0.1 * np.log(0.1) - 0.9 * np.log(0.9)], rtol=1e-9)


def test_forbidden_tokens_leave_entropy_and_its_gradient_finite():
    logits = jnp.array([0.0, 1.0, -jnp.inf])
    value, gradient = jax.value_and_grad(entropy)(logits)
    np.testing.assert_allclose(value, entropy(logits[:2]), rtol=1e-6)
    np.testing.assert_allclose(gradient, [*jax.grad(entropy)(logits[:2]), 0.0], atol=1e-7)
    assert entropy(jnp.array([3.0, -jnp.inf])) == 0.0


def test_scoring_at_another_temperature_is_another_number(x64):
    """Sampling at T = 0.9 and scoring at T = 1 was a fault: the temperature must reach the numbers."""
    hidden, head, targets, _ = arrays(0, 2, 3, 4, 5)
    for chunk in (2, 6):
        warm = chunked_token_logprobs(hidden, head, targets, chunk=chunk, temperature=0.9)
        np.testing.assert_allclose(warm, token_logprobs(hidden @ head / 0.9, targets), rtol=1e-12)
        assert np.abs(warm - chunked_token_logprobs(hidden, head, targets, chunk=chunk)).min() > 1e-4


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shape=st.sampled_from([(3, 5), (1, 1), (1, 7), (4, 1)]),
    chunk=st.sampled_from([1, 2, 4, 15, 99, None]),
    temperature=st.sampled_from([1.0, 0.7]),
    soft_cap=st.sampled_from([None, 3.0]),
    masking=st.sampled_from(['none', 'some', 'all']),
)
def test_values_and_gradients_are_the_plain_ones(seed, shape, chunk, temperature, soft_cap, masking):
    with jax.enable_x64(True):
        hidden, head, targets, mask = arrays(seed, *shape, 4, 6)
        mask = {'none': np.ones(shape, bool), 'some': mask, 'all': np.zeros(shape, bool)}[masking]
        weights = np.random.default_rng(seed + 1).normal(size=(2, *shape))

        def ours(hidden, head, temperature):
            outputs = chunked_token_logprobs_and_entropy(
                hidden,
                head,
                targets,
                chunk=chunk,
                temperature=temperature,
                soft_cap=soft_cap,
                mask=None if masking == 'none' else mask,
            )
            return sum(jnp.sum(w * x) for w, x in zip(weights, outputs)), outputs

        def truth(hidden, head):
            outputs = plain(hidden, head, targets, mask, temperature, soft_cap)
            return sum(jnp.sum(w * x) for w, x in zip(weights, outputs)), outputs

        (_, outputs), gradients = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(hidden, head, temperature)
        (_, expected), slopes = jax.jit(jax.value_and_grad(truth, (0, 1), has_aux=True))(hidden, head)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), outputs, expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), gradients, slopes)


def test_log_probabilities_alone_are_those_that_come_with_the_entropy(x64):
    hidden, head, targets, mask = arrays(5, 3, 5, 4, 6)
    weights = np.random.default_rng(6).normal(size=(3, 5))
    for chunk in (4, 15):

        def both(h, w, c=chunk):
            return chunked_token_logprobs_and_entropy(h, w, targets, chunk=c, mask=mask)[0]

        def alone(h, w, c=chunk):
            return chunked_token_logprobs(h, w, targets, chunk=c, mask=mask)

        np.testing.assert_allclose(alone(hidden, head), both(hidden, head), rtol=1e-12)
        slopes = [jax.grad(lambda h, w, f=f: jnp.sum(weights * f(h, w)), (0, 1))(hidden, head) for f in (alone, both)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *slopes)


@pytest.mark.parametrize('chunk', [4, 12, None])
def test_bfloat16_in_float32_out_and_gradients_keep_their_dtypes(chunk):
    hidden, head, targets, _ = arrays(0, 3, 4, 8, 16, np.float32)
    narrow = jnp.asarray(hidden, jnp.bfloat16)
    for head_dtype in (jnp.float32, jnp.bfloat16):
        matrix = jnp.asarray(head, head_dtype)
        value = chunked_token_logprobs(narrow, matrix, targets, chunk=chunk)
        assert value.dtype == jnp.float32
        wide = token_logprobs(narrow.astype(jnp.float32) @ matrix.astype(jnp.float32), targets)
        np.testing.assert_allclose(value, wide, rtol=1e-5, atol=1e-5)
        gradients = jax.grad(lambda h, w: chunked_token_logprobs(h, w, targets, chunk=chunk).sum(), (0, 1))(
            narrow, matrix
        )
        assert (gradients[0].dtype, gradients[1].dtype) == (jnp.bfloat16, head_dtype)


def largest(jaxpr):
    """The most elements of any array that a jaxpr makes, inside its loops too."""
    sizes = [1]
    for equation in jaxpr.eqns:
        sizes += [v.aval.size for v in equation.outvars if hasattr(v.aval, 'size')]
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
            inner = getattr(parameter, 'jaxpr', parameter)
            if hasattr(inner, 'eqns'):
                sizes.append(largest(inner))
    return max(sizes)


def test_no_array_of_the_size_of_the_logits_is_ever_made():
    hidden, head, targets, mask = arrays(0, 4, 8, 3, 50)

    def total(hidden, head, chunk):
        logps, spread = chunked_token_logprobs_and_entropy(hidden, head, targets, chunk=chunk, mask=mask)
        return jnp.sum(logps + spread)

    def most(chunk):
        return largest(jax.make_jaxpr(jax.grad(lambda h, w: total(h, w, chunk), (0, 1)))(hidden, head).jaxpr)

    assert most(32) >= 4 * 8 * 50  # the measure sees the logits where they are made
    assert most(4) <= 4 * 50


@pytest.mark.parametrize('chunk', [64, 512, 4096])
@pytest.mark.parametrize('of', ['value', 'gradient'])
def test_compiled_memory_is_below_a_quarter_of_the_logits(chunk, of):
    b, t, v, d = 4, 512, 32768, 64
    hidden, head = jax.ShapeDtypeStruct((b, t, d), jnp.float32), jax.ShapeDtypeStruct((d, v), jnp.float32)
    targets = jax.ShapeDtypeStruct((b, t), jnp.int32)

    def total(hidden, head, targets):
        logps, spread = chunked_token_logprobs_and_entropy(hidden, head, targets, chunk=chunk)
        return jnp.sum(logps) + jnp.sum(spread)

    function = total if of == 'value' else jax.grad(total, (0, 1))
    held = jax.jit(function).lower(hidden, head, targets).compile().memory_analysis().temp_size_in_bytes
    assert 0 < held < b * t * v * 4 / 4


def test_masked_chunks_cost_nothing(monkeypatch):
    """Counts how often logits are made: by chunks that have a position that counts, not by positions."""
    made = []
    raw = logprobs._raw

    def counted(hidden, head):
        jax.debug.callback(lambda: made.append(hidden.shape[1]))
        return raw(hidden, head)

    monkeypatch.setattr(logprobs, '_raw', counted)
    hidden, head, targets, _ = arrays(0, 2, 16, 3, 5, np.float32)
    for kept, chunks in ((0, 0), (4, 1), (5, 2), (32, 8)):
        mask = np.random.default_rng(kept).permutation(32).reshape(2, 16) < kept
        made.clear()
        jax.grad(lambda h, m=mask: chunked_token_logprobs(h, head, targets, chunk=4, mask=m).sum())(hidden)
        jax.effects_barrier()
        assert made == [4] * (2 * chunks)  # once forward, once backward


def test_left_alone_a_masked_batch_is_chunked_once_that_is_worth_it(x64):
    hidden, head, targets, mask = arrays(4, 4, 64, 3, 2048)
    expected, _ = plain(hidden, head, targets, mask, 1.0, None)

    def run(m):
        return chunked_token_logprobs(hidden, head, targets, chunk=None, mask=m)

    np.testing.assert_allclose(run(mask), expected, rtol=1e-10)
    assert 'while' in str(jax.make_jaxpr(run)(mask)) and 'while' not in str(jax.make_jaxpr(lambda: run(None))())


def test_masked_positions_may_hold_anything():
    hidden, head, targets, mask = arrays(0, 3, 4, 3, 5, np.float32)
    spoilt = np.where(mask[..., None], hidden, np.nan)
    wild = np.where(mask, targets, -100)
    for chunk in (2, 12):
        gradient = jax.grad(lambda h, w, c=chunk: chunked_token_logprobs(h, w, wild, chunk=c, mask=mask).sum(), (0, 1))
        for x in (chunked_token_logprobs(spoilt, head, wild, chunk=chunk, mask=mask), *gradient(spoilt, head)):
            assert np.all(np.isfinite(x))
        np.testing.assert_array_equal(gradient(spoilt, head)[0][~mask], 0.0)


def test_small_vocabularies_take_the_plain_path():
    """One piece, no loop: nothing is made twice, so it is no slower than the plain computation."""
    hidden, head, targets, _ = arrays(0, 8, 64, 4, 48, np.float32)

    def has_loop(chunk):
        text = str(jax.make_jaxpr(lambda h: chunked_token_logprobs(h, head, targets, chunk=chunk))(hidden))
        return 'while' in text or 'scan' in text

    assert not any(has_loop(chunk) for chunk in (None, 512, 4096))
    assert has_loop(64)


@pytest.mark.parametrize('masking', [False, True])
@pytest.mark.parametrize(
    ('shape', 'axes', 'rows'), [((8,), ('tensor',), P()), ((2, 4), ('data', 'tensor'), P('data'))], ids=['tp', 'dp-tp']
)
def test_a_head_sharded_over_the_vocabulary_stays_where_it_is(shape, axes, rows, masking):
    hidden, head, targets, mask = arrays(1, 4, 64, 16, 1024, np.float32)
    mask = mask if masking else None

    def total(hidden, head, targets, mask):
        logps, spread = chunked_token_logprobs_and_entropy(hidden, head, targets, chunk=32, mask=mask)
        return jnp.sum(logps + 0.1 * spread)

    truth = jax.value_and_grad(total, (0, 1))(hidden, head, targets, mask)
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))
    spread = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in ((hidden, rows), (head, P(None, 'tensor')), (targets, rows), (mask, rows))
    ]
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.value_and_grad(total, (0, 1))).lower(*spread).compile()
        ours = compiled(*spread)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, truth)
    moved = re.findall(r'= \(?(\w+\[[\d,]*\]).* (?:all-gather|all-to-all)\(', compiled.as_text())
    assert not moved, f'gathered {moved}'
    assert ours[1][1].sharding.is_equivalent_to(NamedSharding(mesh, P(None, 'tensor')), 2)


def test_under_jit_vmap_and_pmap_the_same_numbers(x64):
    hidden, head, targets, mask = arrays(3, 8, 4, 3, 7)

    def run(h, t, m):
        return chunked_token_logprobs(h, head, t, chunk=3, mask=m)

    truth = run(hidden, targets, mask)
    np.testing.assert_allclose(jax.jit(run)(hidden, targets, mask), truth, rtol=1e-12)
    split = [x.reshape(4, 2, *x.shape[1:]) for x in (hidden, targets, mask)]
    np.testing.assert_allclose(jax.vmap(run)(*split).reshape(8, 4), truth, rtol=1e-12)
    np.testing.assert_allclose(jax.pmap(run, devices=jax.devices()[:4])(*split).reshape(8, 4), truth, rtol=1e-12)


def test_wrong_arguments_are_named():
    hidden, head, targets, mask = arrays(0, 2, 3, 4, 5, np.float32)
    with pytest.raises(AssertionError, match='head'):
        chunked_token_logprobs(hidden, head.T, targets, chunk=2)
    with pytest.raises(AssertionError, match='targets'):
        chunked_token_logprobs(hidden, head, targets[:, :2], chunk=2)
    with pytest.raises(AssertionError, match='targets'):
        chunked_token_logprobs(hidden, head, targets.astype(float), chunk=2)
    with pytest.raises(AssertionError, match='mask'):
        chunked_token_logprobs(hidden, head, targets, chunk=2, mask=mask[:1])
    with pytest.raises(AssertionError, match='hidden'):
        chunked_token_logprobs(hidden[0], head, targets, chunk=2)
    with pytest.raises(ValueError, match='chunk'):
        chunked_token_logprobs(hidden, head, targets, chunk=0)
    with pytest.raises(AssertionError, match='targets'):
        token_logprobs(head, targets)
