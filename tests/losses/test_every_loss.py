"""What holds for every loss: exact gradients, jit and vmap, bfloat16, extreme inputs, masks, independence of rows.

The first half makes every loss one function of a dict of float arrays and one of fixed arrays; the tests follow.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.losses import (
    distillation,
    game,
    policy_gradient,
    preference,
    ranking,
    reward_model,
    supervised,
    unpaired,
    value,
)
from rlax_ft.types import PairLogps

B, T, K, V = 3, 4, 3, 5


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss, the arrays it differentiates, and those it does not."""

    name: str
    call: Callable  # (floats: dict, fixed: dict) -> array
    floats: dict
    fixed: dict
    stops: bool = False  # the paper's formula stops a gradient, so finite differences do not apply
    whole_batch: bool = False  # rows are not independent
    masked: bool = False  # takes a mask over [B, T]


def _pair(name, seed=0, **settings):
    rng = np.random.default_rng(seed)
    floats = {k: -3.0 - 2.0 * rng.random(B) for k in ('chosen', 'rejected', 'ref_chosen', 'ref_rejected')}
    fixed = {'chosen_len': np.array([3, 5, 2]), 'rejected_len': np.array([4, 1, 6])}
    f = functools.partial(getattr(preference, name), **{'beta': 0.7} | settings)

    def call(floats, fixed):
        return f(PairLogps(**floats, **fixed))

    label = ','.join([name, *(str(v) for v in settings.values())])
    return Case(label, call, floats, fixed, whole_batch=name.startswith('aot'))


def _tokens(name, seed=0, stops=False, whole_batch=False, **settings):
    rng = np.random.default_rng(seed)
    old = -2.0 * rng.random((B, T)) - 0.1
    floats = {'logps': old + 0.4 * rng.standard_normal((B, T))}
    mask = np.array([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]], bool)
    fixed = {'old': old, 'advantages': rng.standard_normal((B, T)), 'mask': mask}
    f = functools.partial(getattr(policy_gradient, name), **settings)

    def call(floats, fixed):
        return f(floats['logps'], fixed['old'], fixed['advantages'], fixed['mask'])

    label = ','.join([name, *(str(v) for v in settings.values())])
    return Case(label, call, floats, fixed, stops=stops, whole_batch=whole_batch, masked=True)


def _other(name, call, floats, fixed=None, **flags):
    return Case(name, call, floats, fixed or {}, **flags)


def _rest():
    rng = np.random.default_rng(1)
    bk = rng.standard_normal((2, B, K))
    ranks = np.array([[0, 1, 2], [1, 0, 1], [2, 5, 0]])
    exists = np.array([[1, 1, 1], [1, 1, 1], [1, 0, 1]], bool)
    mask = np.array([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]], bool)
    b, bt, logits = rng.standard_normal((2, B)), rng.standard_normal((3, B, T)), rng.standard_normal((2, B, T, V))
    thumbs = np.array([True, False, True])
    return [
        _other(
            'plackett_luce_loss',
            lambda x, c: ranking.plackett_luce_loss(x['scores'], c['ranks'], c['exists']),
            {'scores': bk[0]},
            {'ranks': ranks, 'exists': exists},
        ),
        _other(
            'plackett_luce_dpo_loss',
            lambda x, c: ranking.plackett_luce_dpo_loss(x['logps'], x['ref_logps'], c['ranks'], c['exists'], beta=0.7),
            {'logps': bk[0] - 4, 'ref_logps': bk[1] - 4},
            {'ranks': ranks, 'exists': exists},
        ),
        _other(
            'bradley_terry_loss',
            lambda x, c: reward_model.bradley_terry_loss(
                x['chosen'], x['rejected'], margin=0.3, label=c['label'], center_coef=0.1
            ),
            {'chosen': b[0], 'rejected': b[1]},
            {'label': np.array([1.0, 0.5, 0.2])},
        ),
        _other(
            'score_regression_loss',
            lambda x, c: reward_model.score_regression_loss(x['predicted'], c['target']),
            {'predicted': b[0]},
            {'target': b[1]},
        ),
        _other(
            'step_reward_loss',
            lambda x, c: reward_model.step_reward_loss(x['logits'], c['labels'], c['mask']),
            {'logits': bt[0]},
            {'labels': (bt[1] > 0).astype(float), 'mask': mask},
            masked=True,
        ),
        _other(
            'kto_loss',
            lambda x, c: unpaired.kto_loss(x['logps'], c['ref'], c['thumbs'], 0.4, beta=0.7, undesirable_weight=1.4),
            {'logps': b[0] - 3},
            {'ref': b[1] - 3, 'thumbs': thumbs},
        ),
        _other(
            'bco_loss',
            lambda x, c: unpaired.bco_loss(x['logps'], c['ref'], c['thumbs'], 0.4, beta=0.7),
            {'logps': b[0] - 3},
            {'ref': b[1] - 3, 'thumbs': thumbs},
        ),
        _other(
            'nca_unpaired_loss',
            lambda x, c: unpaired.nca_unpaired_loss(x['logps'], c['ref'], c['thumbs'], beta=0.7),
            {'logps': b[0] - 3},
            {'ref': b[1] - 3, 'thumbs': thumbs},
        ),
        _other(
            'apo_zero_unpaired_loss',
            lambda x, c: unpaired.apo_zero_unpaired_loss(x['logps'], c['ref'], c['thumbs'], beta=0.7),
            {'logps': b[0] - 3},
            {'ref': b[1] - 3, 'thumbs': thumbs},
        ),
        _other(
            'nash_md_loss',
            lambda x, c: game.nash_md_loss(x['logps'], c['ref'], c['wins'], beta=0.7),
            {'logps': b[0] - 3},
            {'ref': b[1] - 3, 'wins': np.array([0.9, 0.0, 0.4])},
            stops=True,
        ),
        _other(
            'clipped_value_loss',
            lambda x, c: value.clipped_value_loss(x['values'], c['old'], c['returns'], clip=0.2),
            {'values': bt[0]},
            {'old': bt[0] + 0.3 * bt[1], 'returns': bt[2]},
        ),
        _other(
            'nll_loss',
            lambda x, c: supervised.nll_loss(x['logps'], c['mask']),
            {'logps': bt[0] - 3},
            {'mask': mask},
            masked=True,
        ),
        _other(
            'dft_loss',
            lambda x, c: supervised.dft_loss(x['logps'], c['mask']),
            {'logps': bt[0] - 3},
            {'mask': mask},
            masked=True,
            stops=True,
        ),
        *(
            _other(
                f'generalized_jsd_loss,{beta}',
                lambda x, c, beta=beta: distillation.generalized_jsd_loss(
                    x['student'], c['teacher'], beta=beta, mask=c['mask']
                ),
                {'student': logits[0]},
                {'teacher': logits[1], 'mask': mask},
                masked=True,
            )
            for beta in (0.0, 0.3, 1.0)
        ),
    ]


PREFERENCE = [
    *(_pair(name) for name in sorted(vars(preference)) if name.endswith('_loss')),
    _pair('dpo_loss', label_smoothing=0.2),
    _pair('ipo_loss', per_token=False),
    _pair('robust_dpo_loss', label_smoothing=0.2),
    _pair('f_dpo_loss', divergence='forward_kl'),
    _pair('f_dpo_loss', divergence='js'),
    _pair('f_dpo_loss', divergence='alpha', alpha=0.5),
    _pair('odpo_loss', offset=0.3),
]
STOPPING = ('cispo_loss', 'dppo_loss', 'gspo_token_loss', 'vespo_loss')
TOKENS = [
    *(
        _tokens(name, stops=name in STOPPING, whole_batch=name.endswith('cov_loss'))
        for name in policy_gradient.__all__
        if name.endswith('_loss')
    ),
    _tokens('ppo_clip_loss', clip_low=0.1, clip_high=0.3, dual_clip=1.2),
    _tokens('gspo_loss', clip_low=0.1, clip_high=0.2),
    _tokens('dppo_loss', stops=True, divergence='kl', clip_low=0.01, clip_high=0.01),
]
ALL = PREFERENCE + TOKENS + _rest()


every = pytest.mark.parametrize('case', ALL, ids=lambda case: case.name)


@functools.cache
def compiled(name):
    """(floats, fixed, weights) -> (total, (losses, gradients)) of a case, compiled once for all tests."""
    (case,) = (c for c in ALL if c.name == name)

    def total(floats, fixed, weights):
        losses = case.call(floats, fixed)
        return jnp.sum(weights * losses), losses

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def value_and_gradients(case, floats, fixed, weights=1.0):
    (total, losses), gradients = compiled(case.name)(floats, fixed, weights)
    return total, losses, gradients


def weights_for(case):
    shape = jax.eval_shape(case.call, case.floats, case.fixed).shape
    return np.random.default_rng(7).uniform(0.5, 1.5, shape)


@pytest.mark.parametrize('case', [c for c in ALL if not c.stops], ids=lambda case: case.name)
def test_gradient_is_that_of_finite_differences(case, x64):
    weights = weights_for(case)
    _, _, gradients = value_and_gradients(case, case.floats, case.fixed, weights)
    flat, unravel = jax.flatten_util.ravel_pytree(case.floats)
    steps = 1e-5 * jnp.eye(flat.size)
    totals = jax.jit(jax.vmap(lambda step: jnp.sum(weights * case.call(unravel(flat + step), case.fixed))))
    slopes = np.asarray(totals(jnp.concatenate([steps, -steps]))).reshape(2, -1)
    slopes = (slopes[0] - slopes[1]) / 2e-5
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(gradients)[0], slopes, rtol=1e-6, atol=1e-8)
    assert np.abs(slopes).max() > 1e-3


@every
def test_jit_and_vmap_change_nothing(case, x64):
    plain = case.call(case.floats, case.fixed)
    np.testing.assert_allclose(value_and_gradients(case, case.floats, case.fixed)[1], plain, rtol=1e-12)
    floats, fixed = jax.tree.map(lambda x: np.stack([x, x[::-1]]), (case.floats, case.fixed))
    mapped = jax.jit(jax.vmap(case.call))(floats, fixed)
    flipped = jax.tree.map(lambda x: x[::-1], (case.floats, case.fixed))
    np.testing.assert_allclose(mapped[0], plain, rtol=1e-12)
    np.testing.assert_allclose(mapped[1], value_and_gradients(case, *flipped)[1], rtol=1e-12)


@pytest.mark.parametrize('case', [c for c in ALL if not c.whole_batch], ids=lambda case: case.name)
def test_rows_do_not_see_each_other(case, x64):
    plain = value_and_gradients(case, case.floats, case.fixed)[1]
    order = np.array([2, 0, 1])
    moved = value_and_gradients(case, *jax.tree.map(lambda x: x[order], (case.floats, case.fixed)))[1]
    np.testing.assert_allclose(moved, plain[order], rtol=1e-12)
    _, one, _ = value_and_gradients(case, *jax.tree.map(lambda x: x[1:2], (case.floats, case.fixed)))
    np.testing.assert_allclose(one, plain[1:2], rtol=1e-12)


@every
def test_bfloat16_comes_in_and_float32_goes_on(case):
    narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), case.floats)
    _, losses, gradients = value_and_gradients(case, narrow, case.fixed)
    assert losses.dtype == jnp.float32
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    np.testing.assert_allclose(losses, value_and_gradients(case, wide, case.fixed)[1], rtol=1e-6)
    assert all(g.dtype == jnp.bfloat16 for g in jax.tree.leaves(gradients))


@every
def test_extreme_inputs_stay_finite(case):
    for name, size in itertools.product(case.floats, (1e4, -1e4, 0.0)):
        floats = {k: np.asarray(v, np.float32) for k, v in case.floats.items()}
        floats[name] = np.full_like(floats[name], size)
        floats[name][..., 0] = -size
        _, losses, gradients = value_and_gradients(case, floats, case.fixed)
        assert jnp.all(jnp.isfinite(losses)), name
        assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(gradients)), name


masked_cases = pytest.mark.parametrize('case', [c for c in ALL if c.masked], ids=lambda case: case.name)


@masked_cases
@pytest.mark.parametrize('poison', [np.nan, np.inf])
def test_masked_positions_are_exactly_zero_whatever_they_hold(case, poison, x64):
    mask = case.fixed['mask']
    weights = weights_for(case)
    clean = value_and_gradients(case, case.floats, case.fixed, weights)

    def spoil(x):
        if x.dtype == bool:
            return x
        return np.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, poison)

    spoilt = jax.tree.map(spoil, (case.floats, case.fixed))
    dirty = value_and_gradients(case, *spoilt, weights)
    np.testing.assert_allclose(dirty[0], clean[0], rtol=1e-12)
    for name in case.floats:
        np.testing.assert_allclose(dirty[2][name], clean[2][name], rtol=1e-12)
        np.testing.assert_array_equal(dirty[2][name][~mask], 0.0)
    np.testing.assert_array_equal(dirty[1][~mask], 0.0)


@masked_cases
def test_nothing_unmasked_and_one_token(case):
    empty = case.fixed | {'mask': np.zeros_like(case.fixed['mask'])}
    _, losses, gradients = value_and_gradients(case, case.floats, empty)
    assert not np.any(losses)
    assert all(not np.any(g) for g in jax.tree.leaves(gradients))
    short_floats, short_fixed = jax.tree.map(lambda x: x[:1, :1], (case.floats, case.fixed))
    _, single, _ = value_and_gradients(case, short_floats, short_fixed)
    assert single.shape == (1, 1) and jnp.isfinite(single[0, 0])


@pytest.mark.parametrize('case', TOKENS, ids=lambda case: case.name)
def test_padding_columns_change_nothing(case, x64):
    def widen(x):
        return np.pad(x, ((0, 0), (2, 3)), constant_values=0 if x.dtype == bool else -5.0)

    _, wide, _ = value_and_gradients(case, *jax.tree.map(widen, (case.floats, case.fixed)))
    np.testing.assert_allclose(wide[:, 2:-3], value_and_gradients(case, case.floats, case.fixed)[1], rtol=1e-12)
    np.testing.assert_array_equal(wide[:, :2], 0.0)


@every
def test_a_wrong_shape_is_an_error_that_names_the_argument(case):
    name = next(iter(case.floats))
    wrong = case.floats | {name: np.ones((B + 1, 2, 2, 2, 2))}
    with pytest.raises(AssertionError, match=r'`\w+`.* must'):
        jax.eval_shape(case.call, wrong, case.fixed)


@every
def test_complex_numbers_are_refused(case):
    wrong = {k: v.astype(np.complex64) for k, v in case.floats.items()}
    with pytest.raises(AssertionError, match=r'real|floating'):
        case.call(wrong, case.fixed)
