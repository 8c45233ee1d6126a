"""The chunked divergence against the dense loss and against plain numpy: values, gradients, masks, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.losses.distillation import generalized_jsd_loss
from rlax_ft.ops.divergence import chunked_jsd

B, T, D, E, V = 3, 7, 5, 4, 11


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    shapes = (B, T, D), (D, V), (B, T, E), (E, V)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes], jnp.asarray(rng.random((B, T)) < 0.6)


def dense(student, student_head, teacher, teacher_head, mask, beta, cap):
    capped = cap * jnp.tanh((teacher @ teacher_head) / cap)
    how = dict(beta=beta, temperature=0.7, mask=mask)
    return generalized_jsd_loss(student @ student_head, capped, **how)


@pytest.mark.parametrize(('beta', 'chunk'), [(0.0, 4), (0.3, 1), (0.3, 100), (1.0, None)])
def test_it_is_the_dense_loss(x64, beta, chunk):
    given, mask = arrays()
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(B, T)))
    chunked = lambda *a: chunked_jsd(*a, beta=beta, chunk=chunk, temperature=0.7, mask=mask, teacher_soft_cap=2.0)  # noqa: E731
    plain = lambda *a: dense(*a, mask, beta, 2.0)  # noqa: E731
    np.testing.assert_allclose(chunked(*given), plain(*given), atol=1e-12)
    gradients = [jax.grad(lambda *a, f=f: jnp.sum(weights * f(*a)), argnums=(0, 1))(*given) for f in (chunked, plain)]
    for ours, theirs in zip(*gradients):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_reverse_kl_by_hand(x64):
    p, q = np.asarray([0.5, 0.3, 0.2]), np.asarray([0.2, 0.2, 0.6])
    identity = jnp.eye(3)
    found = chunked_jsd(jnp.log(p)[None, None], identity, jnp.log(q)[None, None], identity, beta=1.0)
    np.testing.assert_allclose(found[0, 0], np.sum(p * np.log(p / q)), atol=1e-12)


def test_masked_positions_do_not_leak_and_both_models_logits_are_never_held():
    given, mask = arrays()
    student = given[0].at[0, 0].set(jnp.nan).astype(jnp.float32)
    mask = mask.at[0, 0].set(False)
    rest = [x.astype(jnp.float32) for x in given[1:]]
    loss = lambda x, head: jnp.sum(chunked_jsd(x, head, *rest[1:], beta=1.0, mask=mask, chunk=4))  # noqa: E731
    gradients = jax.grad(loss, argnums=(0, 1))(student, rest[0])
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)
    # 64 x 64 positions over 2,048 words would be 8.4 million numbers for each model.
    hidden, head = jnp.zeros((64, 64, 8)), jnp.zeros((8, 2048))
    text = jax.jit(jax.grad(lambda x, h: jnp.sum(chunked_jsd(x, h, hidden, head, beta=1.0)), argnums=(0, 1)))
    shapes = {aval.shape for aval in all_avals(jax.make_jaxpr(text)(hidden, head).jaxpr) if hasattr(aval, 'shape')}
    assert max(np.prod(shape) for shape in shapes) < 64 * 64 * 2048 / 8


def all_avals(jaxpr):
    """Of every value in a program, those within loops included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, 'jaxpr', inner)
                if hasattr(inner, 'eqns'):
                    yield from all_avals(inner)


def test_mistakes():
    given, _ = arrays()
    with pytest.raises(ValueError, match='chunk must be at least 1'):
        chunked_jsd(*given, beta=1.0, chunk=0)
    with pytest.raises(AssertionError):
        chunked_jsd(given[0], given[1], given[2], given[3][:, :-1], beta=1.0)
