"""One step, many ways to run it: micro-batches, an 8-device mesh, FSDP and tensor parallel, pmap. All the same step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_ft.data.codec import Codec
from rlax_ft.data.rows import token_rows
from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.models.config import embedded_config
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.objectives.supervised import sft_objective
from rlax_ft.parallel.compile import PMAP_AXIS, compile_step
from rlax_ft.parallel.mesh import make_mesh, tree_shardings
from rlax_ft.training.optimizer import make_optimizer
from rlax_ft.training.step import init_state, make_train_step

CONFIG = embedded_config('tiny', vocab_size=16, max_length=16)
# A large epsilon: Adam's first steps otherwise blow rounding up to the size of the update.
OPTIMIZER = make_optimizer(1e-2, max_steps=10, eps=1e-2)


def batch_of(rows=16):
    """Ragged rows: what goes wrong when means of parts are averaged."""
    codec = Codec(word_tokenizer('abcdefghijklm'), 6, 10)
    rng = np.random.default_rng(0)
    text = lambda n: ' '.join(rng.choice(list('abcdefghijklm'), n))  # noqa: E731
    lengths = rng.integers(1, 9, rows)
    batch = token_rows(codec, [text(3) for _ in lengths], [text(n) for n in lengths], 16)
    return batch, batch.mask.sum()


def run(steps=3, micro_batches=1, **options):
    axis = PMAP_AXIS if options.get('backend') == 'pmap' else None
    step = make_train_step(
        sft_objective(Transformer(CONFIG).apply), OPTIMIZER, micro_batches=micro_batches, axis_name=axis
    )
    compiled = compile_step(step, **options)
    state = init_state(init_params(CONFIG, jax.random.key(0)), OPTIMIZER, jax.random.key(1))
    for _ in range(steps):
        state, metrics = compiled(state, batch_of())
    return jax.device_get((state.params, metrics))


@pytest.fixture(scope='module')
def plain():
    step = make_train_step(sft_objective(Transformer(CONFIG).apply), OPTIMIZER)
    state = init_state(init_params(CONFIG, jax.random.key(0)), OPTIMIZER, jax.random.key(1))
    for _ in range(3):
        state, metrics = jax.jit(step)(state, batch_of())
    return jax.device_get((state.params, metrics))


@pytest.mark.parametrize(
    'options',
    [
        {'micro_batches': 4},
        {},
        {'mesh': 'data=2,fsdp=2,tensor=2'},
        {'mesh': 'data=1,fsdp=8', 'micro_batches': 2},
        {'mesh': 'data=2,fsdp=4', 'offload': True},
        {'backend': 'pmap'},
        {'backend': 'pmap', 'micro_batches': 2},
    ],
    ids=str,
)
def test_every_way_is_the_same_step(plain, options):
    assert jax.device_count() == 8
    options = dict(options)
    if 'mesh' in options:
        options['mesh'] = make_mesh(options['mesh'])
    params, metrics = run(**options)
    for name in plain[1]:
        np.testing.assert_allclose(metrics[name], plain[1][name], rtol=2e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), params, plain[0])


def test_the_state_is_sharded_by_its_rules_and_gains_no_axis():
    mesh = make_mesh('data=2,fsdp=2,tensor=2')
    step = compile_step(make_train_step(sft_objective(Transformer(CONFIG).apply), OPTIMIZER), mesh=mesh)
    state = init_state(init_params(CONFIG, jax.random.key(0)), OPTIMIZER, jax.random.key(1))
    shapes = jax.tree.map(jnp.shape, state.params)
    state, _ = step(state, batch_of())
    kernel = state.params['layers']['attention']['query']['kernel']
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, 'fsdp', 'tensor')
    assert jax.tree.map(jnp.shape, state.params) == shapes
    moments = jax.tree.leaves(tree_shardings(state.opt_state, mesh))
    assert any(m.spec == kernel.sharding.spec for m in moments)


def test_an_offloaded_state_is_on_the_host_between_updates():
    step = make_train_step(sft_objective(Transformer(CONFIG).apply), OPTIMIZER)
    compiled = compile_step(step, mesh=make_mesh('fsdp=8'), offload=True)
    state, _ = compiled(init_state(init_params(CONFIG, jax.random.key(0)), OPTIMIZER, jax.random.key(1)), batch_of())
    kinds = lambda tree: {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree) if leaf.ndim}  # noqa: E731
    assert kinds(state.opt_state) == {'pinned_host'} and kinds(state.params) == {'device'}
    with pytest.raises(InputError, match='--backend=pmap'):
        compile_step(step, backend='pmap', offload=True)


def test_the_state_is_donated():
    step = compile_step(make_train_step(sft_objective(Transformer(CONFIG).apply), OPTIMIZER))
    state = init_state(init_params(CONFIG, jax.random.key(0)), OPTIMIZER, jax.random.key(1))
    state, _ = step(state, batch_of())
    embedding = state.params['embed']['embedding']
    step(state, batch_of())
    assert embedding.is_deleted()


def test_the_learning_rate_and_the_norm_before_clipping_are_reported():
    optimizer = make_optimizer(0.5, max_steps=4, clip_norm=1e-3)
    step = jax.jit(make_train_step(lambda p, b, k: (jnp.sum(p * b), {}), optimizer))
    state = init_state(jnp.ones(2), optimizer, jax.random.key(0))
    rates = []
    for _ in range(4):
        state, metrics = step(state, jnp.asarray([3.0, 4.0]))
        rates.append(float(metrics['lr']))
    np.testing.assert_allclose(rates, [0.5, 0.375, 0.25, 0.125])
    assert float(metrics['grad_norm']) == 5.0 and int(state.step) == 4


@pytest.mark.parametrize('bad', [jnp.nan, jnp.inf])
@pytest.mark.parametrize('micro_batches', [1, 2])
def test_a_step_that_is_not_finite_is_skipped_as_if_it_had_not_been(bad, micro_batches):
    optimizer = make_optimizer(0.1, max_steps=9)
    step = jax.jit(
        make_train_step(lambda p, b, k: (jnp.sum(p * b), {}), optimizer, micro_batches=micro_batches, skip_bad=True)
    )
    good, worse = jnp.asarray([[1.0, -2.0], [3.0, 4.0]]), jnp.asarray([[1.0, bad], [3.0, 4.0]])
    state = init_state(jnp.ones(2), optimizer, jax.random.key(0))
    state, metrics = step(state, good)
    assert float(metrics['skipped']) == 0
    after, metrics = step(state, worse)
    assert float(metrics['skipped']) == 1 and not np.isfinite(metrics['grad_norm'])
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (state.params, state.opt_state))
    assert int(after.step) == 2  # another key than the step before
    # It goes on as a run would that never saw the batch.
    plain = jax.jit(make_train_step(lambda p, b, k: (jnp.sum(p * b), {}), optimizer, micro_batches=micro_batches))
    np.testing.assert_array_equal(step(after, good)[0].params, plain(state, good)[0].params)


def test_each_step_and_micro_batch_has_its_own_key():
    seen = jax.jit(
        make_train_step(lambda p, b, k: (p * jnp.sum(b), {'u': jax.random.uniform(k)}), optax.sgd(0.0), micro_batches=2)
    )
    state = init_state(jnp.ones(()), optax.sgd(0.0), jax.random.key(0))
    state, first = seen(state, jnp.ones(4))
    _, second = seen(state, jnp.ones(4))
    assert float(first['u']) != float(second['u'])


def test_mistakes():
    with pytest.raises(InputError, match=r"--mesh=dta=2: 'dta=2' is not AXIS=SIZE"):
        make_mesh('dta=2')
    with pytest.raises(InputError, match=r'multiply to 6, but there are 8 devices'):
        make_mesh('data=3,fsdp=2')
    with pytest.raises(InputError, match=r'--backend=xla'):
        compile_step(None, backend='xla')
    with pytest.raises(InputError, match=r"schedule 'step': use one of linear, cosine, constant"):
        make_optimizer(1.0, max_steps=2, schedule='step')
    step = compile_step(make_train_step(sft_objective(Transformer(CONFIG).apply), OPTIMIZER))
    state = init_state(init_params(CONFIG, jax.random.key(0)), OPTIMIZER, jax.random.key(1))
    with pytest.raises(InputError, match=r'a batch of 12 rows does not divide over 8 devices'):
        step(state, batch_of(12))


@pytest.mark.parametrize('kind', ['adamw', 'muon'])
def test_a_narrow_first_moment_takes_half_the_memory_and_moves_alike(kind):
    params = {'layers': {'kernel': jax.random.normal(jax.random.key(0), (2, 4, 4))}}
    moved, sizes = [], []
    for dtype in (None, 'bfloat16'):
        optimizer = make_optimizer(1e-2, max_steps=10, kind=kind, moment_dtype=dtype)
        state, now = optimizer.init(params), params
        sizes.append(sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.size == 32))
        for _ in range(4):
            updates, state = optimizer.update(now, state, now)  # The gradient of half the square.
            now = optax.apply_updates(now, updates)
        moved.append(now['layers']['kernel'] - params['layers']['kernel'])
    assert sizes[0] - sizes[1] == 64
    assert np.abs(moved[0]).max() > 0.02
    np.testing.assert_allclose(moved[1], moved[0], rtol=0.02, atol=1e-4)


def test_an_optimiser_without_a_first_moment_says_so():
    with pytest.raises(InputError, match='--moment_dtype=bfloat16: --optimizer=adafactor has no first moment'):
        make_optimizer(1e-2, max_steps=10, kind='adafactor', moment_dtype='bfloat16')
