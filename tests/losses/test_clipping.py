"""Which tokens count as clipped: by each loss's own bounds, on what the loss itself compares with them."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.losses.clipping import clip_bounds, outside_bounds
from rlax_ft.losses.covariance import kl_cov_loss
from rlax_ft.losses.policy_gradient import (
    cispo_loss,
    gmpo_loss,
    gspo_loss,
    gspo_token_loss,
    ppo_clip_loss,
    reinforce_loss,
)

# Ratios 1.3, 0.7, 1.1 and one that is masked; then 1.65 and 0.61.
LOG_RATIO = jnp.asarray([[np.log(1.3), np.log(0.7), np.log(1.1), 9.0], [0.5, -0.5, 0.0, 0.0]])
MASK = jnp.asarray([[1, 1, 1, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize(
    ('loss', 'expected'),
    [
        (ppo_clip_loss, [[1, 1, 0, 0], [1, 1, 0, 0]]),
        (partial(ppo_clip_loss, clip_high=0.4), [[0, 1, 0, 0], [1, 1, 0, 0]]),
        (partial(partial(ppo_clip_loss, clip_low=1.0), clip_high=0.65), [[0, 0, 0, 0], [0, 0, 0, 0]]),
        (cispo_loss, [[0, 0, 0, 0], [0, 0, 0, 0]]),  # up to 5, and no lower bound
        (gmpo_loss, [[0, 0, 0, 0], [1, 1, 0, 0]]),  # log-ratios beyond 0.4: exp(0.4) - 1 would be 0.49
        (partial(gmpo_loss, clip_high=0.25), [[1, 0, 0, 0], [1, 1, 0, 0]]),
        (gspo_loss, [[0, 0, 0, 0], [0, 0, 0, 0]]),  # the row's geometric mean is within 4e-4
        (partial(gspo_token_loss, clip_high=3e-4), [[1, 1, 1, 0], [0, 0, 0, 0]]),
    ],
)
def test_by_hand(loss, expected):
    ratio = LOG_RATIO if not _by_row(loss) else _with_mean(LOG_RATIO)
    np.testing.assert_array_equal(outside_bounds(loss, ratio, MASK), expected)


def _by_row(loss):
    while isinstance(loss, partial):
        loss = loss.func
    return loss in (gspo_loss, gspo_token_loss)


def _with_mean(log_ratio):
    """The first row moved to a mean of 0.00035."""
    return log_ratio.at[0].add(3.5e-4 - float(log_ratio[0, :3].mean()))


@pytest.mark.parametrize('loss', [reinforce_loss, kl_cov_loss, lambda a, b, c, d: a])
def test_a_loss_without_bounds_has_no_share(loss):
    assert clip_bounds(loss) is None and outside_bounds(loss, LOG_RATIO, MASK) is None
