"""Where preference methods end: what each distribution must satisfy, and a method that is trained until it is there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.evaluate import optima
from rlax_ft.evaluate.tables import TablePolicy
from rlax_ft.harness import optimum

REF = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (2, 12)), axis=-1)
REWARDS = jax.random.normal(jax.random.key(1), (2, 12))


def uneven(logps):
    """How unevenly a log-density ratio is spread: 0 where it is one constant a prompt."""
    return float(jnp.max(jnp.std(logps, axis=-1)))


def test_win_rates_by_brute_force():
    wins = np.zeros((2, 12))
    for p in range(2):
        for y in range(12):
            beats = 1 / (1 + np.exp(-(np.asarray(REWARDS)[p, y] - np.asarray(REWARDS)[p])))
            wins[p, y] = (np.exp(np.asarray(REF)[p]) * beats).sum()
    np.testing.assert_allclose(optima.win_rates(REWARDS, REF), wins, rtol=1e-5)


def test_ipos_optimum_is_the_least_of_its_loss():
    best = optima.ipo_optimum(REF, REWARDS, 0.4)
    weight = jnp.exp(REF[:, :, None] + REF[:, None, :])
    label = jax.nn.sigmoid(REWARDS[:, :, None] - REWARDS[:, None, :])

    def loss(logps):
        h = jax.nn.log_softmax(logps, axis=-1) - REF
        gap = h[:, :, None] - h[:, None, :]
        return jnp.sum(weight * (label * (gap - 1.25) ** 2 + (1 - label) * (gap + 1.25) ** 2))

    assert float(jnp.abs(jax.grad(loss)(best)).max()) < 1e-4 < float(jnp.abs(jax.grad(loss)(REF)).max())


def test_the_game_ends_where_nobody_can_do_better():
    best = optima.game_optimum(REF, REWARDS, 0.3)
    assert uneven(best - REF - optima.win_rates(REWARDS, best) / 0.3) < 1e-4


def test_ktos_optimum_is_the_greatest_of_its_gain():
    good, weights = jax.nn.sigmoid(REWARDS), dict(desirable_weight=1.3, undesirable_weight=0.2)
    best = optima.kto_optimum(REF, good, 0.5, **weights)
    a = 1.3 * good - 0.2 * (1 - good)
    np.testing.assert_allclose(jnp.exp(best)[a <= 0], 0.0, atol=1e-12)
    kept = a > 0

    def gain(logps):
        logps = jax.nn.log_softmax(jnp.where(kept, logps, -jnp.inf), axis=-1)
        h = jnp.where(kept, logps - REF, 0.0)
        return jnp.sum(jnp.where(kept, jnp.exp(REF) * a * jax.nn.sigmoid(0.5 * h), 0.0))

    at_best, at_ref = (jnp.abs(jax.grad(gain)(x)).max() for x in (best, REF))
    assert float(at_best) < 1e-5 < 1e-3 < float(at_ref)


def test_sppos_iterate_solves_its_squared_loss():
    best = optima.sppo_iterate(REF, REWARDS, 0.5, 1)
    target = (optima.win_rates(REWARDS, REF) - 0.5) / 0.5

    def loss(logps):
        h = jax.nn.log_softmax(logps, axis=-1) - REF
        return jnp.sum(jnp.exp(REF) * (h - target) ** 2)

    assert float(jnp.abs(jax.grad(loss)(best)).max()) < 1e-4 < float(jnp.abs(jax.grad(loss)(REF)).max())


@pytest.mark.parametrize('name', ['DPO (soft labels)', 'KTO'])
def test_training_gets_there(name):
    own, away = optimum.train(name, 1, 300, 256)
    assert own[0] < 0.045 and (away[0] > 0.1 or name.startswith('DPO'))


def test_a_table_draws_each_text_as_often_as_it_is_likely():
    table = TablePolicy(2, 3, 2)
    logps = table.logps(table.init(jax.random.key(0), 1.0)).at[1, :8].set(-jnp.inf)  # The second prompt has one text,
    drawn = np.asarray(table.draw(jax.random.key(1), logps, jnp.tile(jnp.arange(2), 5000), 4))  # of less weight than 1.
    assert (drawn[1::2] == 8).all()
    counts, expected = np.bincount(drawn[::2].reshape(-1), minlength=9), 20_000 * np.exp(np.asarray(logps)[0])
    assert ((counts - expected) ** 2 / expected).sum() < 30  # Chi squared of 8 degrees of freedom: p = 0.0002.
