"""Weight decay shrinks matrices and leaves norms and biases alone, whatever optimiser it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_ft.models.config import embedded_config
from rlax_ft.models.transformer import init_params
from rlax_ft.training.optimizer import OPTIMIZERS, make_optimizer


@pytest.mark.parametrize('kind', OPTIMIZERS)
def test_norms_and_biases_do_not_decay(kind):
    params = init_params(embedded_config('tiny', vocab_size=16, max_length=16), jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, 2.0), params) | {'head': {'bias': jnp.full((3, 4), 2.0)}}
    optimizer = make_optimizer(0.1, max_steps=10, kind=kind, schedule='constant', clip_norm=0.0, weight_decay=0.5)
    # Without a gradient there is nothing but the decay.
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    after = jax.tree_util.tree_flatten_with_path(optax.apply_updates(params, updates))[0]
    kept = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in after}
    decayed = {name for name, leaf in kept.items() if not np.array_equal(leaf, np.full(leaf.shape, 2.0))}
    assert decayed == {name for name in kept if name.rpartition('/')[2] not in ('scale', 'bias')}
    assert {'head/bias'} < kept.keys() - decayed and any(name.endswith('/scale') for name in kept)
    for name in decayed:  # 2 - 0.1 x 0.5 x 2
        np.testing.assert_allclose(kept[name], 1.9, rtol=1e-5)
