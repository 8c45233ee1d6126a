"""Every loss as one function of a dict of float arrays and one of fixed arrays, for the tests that hold for all."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from rlax_ft.losses import distillation, policy_gradient, preference, ranking, reward_model, supervised, unpaired, value
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
STOPPING = ('cispo_loss', 'gspo_token_loss', 'vespo_loss')
TOKENS = [
    *(
        _tokens(name, stops=name in STOPPING, whole_batch=name.endswith('cov_loss'))
        for name in policy_gradient.__all__
        if name.endswith('_loss')
    ),
    _tokens('ppo_clip_loss', clip_low=0.1, clip_high=0.3, dual_clip=1.2),
    _tokens('gspo_loss', clip_low=0.1, clip_high=0.2),
]
ALL = PREFERENCE + TOKENS + _rest()
