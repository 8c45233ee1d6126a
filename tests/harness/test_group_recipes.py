"""The recipes of grpo.py against the numbers of the peers' own code on recorded groups.

`tests/losses/fixtures/make_group_numbers.py` made them.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.harness.command_line import parse
from rlax_ft.harness.group_setup import make_credit, make_loss
from rlax_ft.harness.loading import load_script
from rlax_ft.objectives.policy import PolicyBatch, policy_loss, token_advantages
from rlax_ft.ops import groups
from rlax_ft.ops.kl import kl_estimate
from rlax_ft.ops.reduce import denominator
from rlax_ft.types import TokenBatch

ROOT = Path(__file__).parents[2]
PEERS = json.loads((ROOT / 'tests/losses/fixtures/group_numbers.json').read_text())
GIVEN = {name: np.array(value) for name, value in PEERS['arrays'].items()}
BETA, GROUP, MAX_LEN = (PEERS['constants'][name] for name in ('beta', 'group_size', 'max_len'))
CASES = PEERS['cases']
grpo = load_script(ROOT / 'experiments/grpo.py')


def settings_of(case):
    """A recipe's settings, with the KL's weight and the groups of the recorded batch."""
    recipe, *further = case.split(' ')
    settings = parse(grpo.GRPOSettings, [f'--flagfile={ROOT}/experiments/recipes/grpo_{recipe}.flags'])
    again = [f'--group_size={GROUP}'] if settings.group_size > 1 else []
    again += [f'--beta={BETA}'] if settings.beta or further else []
    return parse(grpo.GRPOSettings, [f'--flagfile={ROOT}/experiments/recipes/grpo_{recipe}.flags', *again, *further])


def test_every_peer_recipe_is_held_against_its_peer():
    paths = (ROOT / 'experiments/recipes').glob('grpo_*_*.flags')
    # Recipes of text environments have no peer.
    ours = {path.stem.removeprefix('grpo_') for path in paths if '--env=' not in path.read_text()}
    assert ours == {case.split(' ')[0] for case in CASES if 'loss' in CASES[case]} - {'trl'}


@pytest.mark.parametrize('case', [case for case in CASES if 'loss' in CASES[case] and case != 'trl luspo'])
def test_recipe_is_the_peers_arithmetic(case, x64):
    settings, peer, mask = settings_of(case), CASES[case], GIVEN['mask']
    credit = make_credit(settings, {'reward': 1.0})
    kl = kl_estimate(GIVEN['old'], GIVEN['ref'], settings.kl_kind or 'k1')
    given = dict(greedy=GIVEN['greedy'])
    advantages = token_advantages(credit, GIVEN['rewards'], {}, mask, kl, **given)
    np.testing.assert_allclose(advantages, peer['advantages'], rtol=1e-5, atol=1e-6)

    ids = np.zeros(mask.shape, np.int32)
    tokens = TokenBatch(ids, mask, ids, ids)
    data = PolicyBatch(tokens, GIVEN['old'], GIVEN['old'], advantages, None, GIVEN['ref'])
    loss, how = make_loss(settings)
    total = denominator(mask, how['mode'], max_len=MAX_LEN)

    def value_of(logps):
        return policy_loss(logps, data, mask.sum(), total, loss=loss, **how)[0]

    value, gradient = jax.value_and_grad(value_of)(jnp.asarray(GIVEN['logps']))
    np.testing.assert_allclose(value, peer['loss'], rtol=1e-5)
    np.testing.assert_allclose(gradient, peer['gradient'], rtol=1e-5, atol=1e-6)
    assert np.abs(gradient).max() > 1e-3


def test_luspo_is_trls(x64):
    mask, peer = GIVEN['mask'], CASES['trl luspo']
    loss, how = make_loss(grpo.GRPOSettings(loss='luspo'))

    def value_of(logps):
        losses = loss(logps, GIVEN['old'], jnp.asarray(peer['advantages']), mask)
        return jnp.sum(losses * mask) / denominator(mask, how['mode'])

    value, gradient = jax.value_and_grad(value_of)(jnp.asarray(GIVEN['logps']))
    np.testing.assert_allclose(value, peer['loss'], rtol=1e-9)
    np.testing.assert_allclose(gradient, peer['gradient'], rtol=1e-9, atol=1e-12)


def test_gdpo_is_trls(x64):
    rewards = {'first': GIVEN['rewards'], 'second': GIVEN['second']}
    ours = groups.decoupled_advantages(rewards, {'first': 1.0, 'second': 0.5}, GROUP, eps=1e-4)
    np.testing.assert_allclose(ours, CASES['trl gdpo']['advantages'], rtol=1e-6)


def test_the_optimal_token_baseline_is_verls(x64):
    mask, peer = GIVEN['mask'], CASES['verl otb']
    last = (np.cumsum(mask, axis=1) == mask.sum(axis=1, keepdims=True)) * mask
    rewards = last * GIVEN['rewards'][:, None]
    ours = groups.optimal_token_advantages(rewards, GIVEN['old'], np.array(peer['squares']), mask, GROUP)
    np.testing.assert_allclose(ours, peer['advantages'], rtol=1e-7, atol=1e-9)
