"""Our losses against the numbers of TRL's and verl's own code.

`fixtures/make_peer_numbers.py` made them.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.losses import distillation, policy_gradient, preference, unpaired, value
from rlax_ft.ops import kl, reduce, returns
from rlax_ft.types import PairLogps

PEERS = json.loads((Path(__file__).parent / 'fixtures' / 'peer_numbers.json').read_text())
PAIR = {k: np.array(v) for k, v in PEERS['preference']['pair'].items()}
TOKENS = {k: np.array(v) for k, v in PEERS['tokens'].items()}
SINGLE = {
    'f_dpo_loss': 1e-5,
    'exo_loss': 1e-6,
    'sapo_loss': 1e-6,
}  # where the peer computes, or holds a number, in float32


def label(case):
    return '-'.join([case.get('peer', 'trl'), case['loss'], *(str(v) for v in case['settings'].values())])


@pytest.mark.parametrize('case', PEERS['preference']['per_pair'], ids=label)
def test_pair_losses_and_gradients_are_trls(case, x64):
    loss = getattr(preference, case['loss'])
    pair = PairLogps(**PAIR)
    rtol = SINGLE.get(case['loss'], 1e-10)
    np.testing.assert_allclose(loss(pair, **case['settings']), case['values'], rtol=rtol)
    gradient = jax.grad(lambda c, r: loss(pair.replace(chosen=c, rejected=r), **case['settings']).sum(), (0, 1))
    np.testing.assert_allclose(gradient(PAIR['chosen'], PAIR['rejected']), case['gradients'], rtol=rtol, atol=1e-12)


@pytest.mark.parametrize('case', PEERS['preference']['whole_batch'], ids=label)
def test_sorted_losses_are_trls_in_the_mean(case, x64):
    loss = getattr(preference, case['loss'])
    pair = PairLogps(**PAIR)

    def mean(chosen, rejected):
        return jnp.mean(loss(pair.replace(chosen=chosen, rejected=rejected), **case['settings']))

    value, gradients = jax.value_and_grad(mean, (0, 1))(PAIR['chosen'], PAIR['rejected'])
    np.testing.assert_allclose(value, case['mean'], rtol=1e-10)
    np.testing.assert_allclose(gradients, case['gradients'], rtol=1e-10)


def test_reference_free_losses_are_trls(x64):
    peer = PEERS['reference_free']
    ones = np.ones(4, int)  # the arrays are already averaged over tokens
    pair = PairLogps(
        chosen=np.array(peer['chosen']), rejected=np.array(peer['rejected']), chosen_len=ones, rejected_len=ones
    )
    np.testing.assert_allclose(preference.cpo_loss(pair, beta=0.7, label_smoothing=0.1), peer['sigmoid'], rtol=1e-10)
    simpo = preference.simpo_loss(pair, beta=0.7, gamma=0.4, label_smoothing=0.1)
    np.testing.assert_allclose(simpo, peer['simpo'], rtol=1e-10)
    np.testing.assert_allclose(preference.orpo_odds_loss(pair, beta=0.7), peer['orpo'], rtol=1e-5)


def test_kto_with_its_baseline_is_trls(x64):
    peer = {k: np.array(v) if isinstance(v, list) else v for k, v in PEERS['unpaired'].items()}
    baseline = unpaired.kto_kl(peer['kl_logps'], peer['kl_ref_logps'])
    assert baseline > 0
    ours = unpaired.kto_loss(peer['logps'], peer['ref_logps'], peer['desirable'], baseline, **peer['settings'])
    np.testing.assert_allclose(ours, peer['values'], rtol=1e-10)


@pytest.mark.parametrize('beta', [0.0, 0.3, 1.0])
def test_generalized_jsd_is_trls(beta, x64):
    peer = PEERS['distillation']
    student, teacher = np.array(peer['student']), np.array(peer['teacher'])
    ours = distillation.generalized_jsd_loss(student, teacher, beta=beta, temperature=0.9)
    np.testing.assert_allclose(ours, peer[str(beta)], rtol=1e-9)


@pytest.mark.parametrize('case', PEERS['policy'], ids=label)
def test_policy_losses_and_gradients_by_token(case, x64):
    loss = getattr(policy_gradient, case['loss'])
    advantages = np.broadcast_to(TOKENS['advantages'][:, None], TOKENS['logps'].shape)

    def total(logps):
        losses = loss(logps, TOKENS['old'], advantages, TOKENS['mask'], **case['settings'])
        return reduce.aggregate(losses, TOKENS['mask'], case['mode'], max_len=8)

    value, gradient = jax.value_and_grad(total)(TOKENS['logps'])
    # The peers differ from the formula by 1e-8 in denominators (verl) and in VESPO's lower clip (TRL).
    rtol = SINGLE.get(case['loss'], 1e-7)
    np.testing.assert_allclose(value, case['result']['value'], rtol=rtol)
    np.testing.assert_allclose(gradient, case['result']['gradient'], rtol=rtol, atol=1e-9)


def test_advantages_are_verls(x64):
    peer = {k: np.array(v) for k, v in PEERS['advantages'].items() if isinstance(v, list)}
    rewards, values, holes, mask = (peer[k] for k in ('rewards', 'values', 'holes', 'mask'))
    advantages, targets = returns.token_gae(rewards, values, holes, gamma=0.9, lam=0.8)
    np.testing.assert_allclose(targets, peer['returns'], rtol=1e-10)
    np.testing.assert_allclose(reduce.masked_whiten(advantages, holes), peer['whitened_gae'], rtol=1e-7)
    plus = returns.reinforce_pp_advantages(rewards, holes, gamma=0.9)
    np.testing.assert_allclose(plus, peer['reinforce_pp'], rtol=1e-7)

    scores, outcome = rewards.sum(1), PEERS['advantages']['outcome']
    grpo = returns.group_advantages(scores, 2, baseline='mean', scale='group', eps=1e-6)
    np.testing.assert_allclose(grpo, outcome['grpo'], rtol=1e-9)
    np.testing.assert_allclose(returns.group_advantages(scores, 2, scale='none'), outcome['dr_grpo'], rtol=1e-9)
    rloo = returns.group_advantages(scores, 2, baseline='leave_one_out', scale='none')
    np.testing.assert_allclose(rloo, outcome['rloo'], rtol=1e-9)
    baseline = returns.reinforce_pp_baseline_advantages(scores, mask, 2)
    np.testing.assert_allclose(baseline, outcome['plus_baseline'], rtol=1e-7)


def test_kl_and_value_loss_are_verls(x64):
    peer = PEERS['advantages']
    for kind, numbers in peer['kl'].items():
        np.testing.assert_allclose(kl.kl_estimate(TOKENS['logps'], TOKENS['old'], kind), numbers, rtol=1e-9)
    coef = kl.adaptive_coef(0.2, 7.0, target=6.0, horizon=10000, n_steps=256)
    np.testing.assert_allclose(coef, peer['adaptive_coef'], rtol=1e-7)
    values, rewards = np.array(peer['values']), np.array(peer['rewards'])
    losses = value.clipped_value_loss(values, values + rewards, rewards, clip=0.2)
    np.testing.assert_allclose(
        reduce.aggregate(losses, np.array(peer['mask']), 'token_mean'), peer['value_loss'], rtol=1e-9
    )
