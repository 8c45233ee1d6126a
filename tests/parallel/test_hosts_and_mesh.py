"""Meshes from text, rules checked against trees, and how the processes of a run find each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rlax_ft.errors import InputError
from rlax_ft.models.config import embedded_config
from rlax_ft.models.heads import reward_params
from rlax_ft.models.lora import init_adapter
from rlax_ft.models.transformer import init_params
from rlax_ft.parallel.constrain import constrain
from rlax_ft.parallel.hosts import _start, from_first, share_rows
from rlax_ft.parallel.mesh import check_rules, make_mesh, tree_shardings
from rlax_ft.parallel.placement import fetch, from_local_rows, reshard, shard_state, split_rows, spread
from rlax_ft.training.optimizer import make_optimizer
from rlax_ft.training.step import init_state

SRUN = {
    'SLURM_JOB_ID': '7',
    'SLURM_STEP_NODELIST': 'a,b',
    'SLURM_PROCID': '1',
    'SLURM_LOCALID': '0',
    'SLURM_NTASKS': '2',
}


def test_minus_one_takes_what_is_left():
    assert dict(make_mesh('fsdp=-1,tensor=2').shape) == dict(data=1, fsdp=4, expert=1, sequence=1, tensor=2)
    assert make_mesh('tensor=4').shape['data'] == 2
    for spec, line in {
        'fsdp=-1,tensor=-1': '-1 stands at fsdp and tensor',
        'fsdp=2,fsdp=4': 'fsdp stands there twice',
        'fsdp=-1,tensor=3': 'multiply to 6, but there are 8 devices',
        'fsdp=-2': "'fsdp=-2' is not AXIS=SIZE",
    }.items():
        with pytest.raises(InputError, match=line):
            make_mesh(spec)


def test_every_large_parameter_of_every_kind_has_a_rule(caplog):
    config = embedded_config('large', vocab_size=2048, max_length=64)
    params = init_params(config, jax.random.key(0))
    scalar = reward_params(params, jax.random.key(0))
    optimizer = make_optimizer(1e-3, max_steps=2)
    tree = {'policy': params, 'value': scalar, 'state': init_state(params, optimizer, jax.random.key(0))}
    assert check_rules(tree, make_mesh('fsdp=4,tensor=2')) == [] and not caplog.text
    stranger = {**params, 'memory': {'bank': jnp.zeros((512, 512))}, 'narrow': {'head': jnp.zeros((256, 1023))}}
    found = check_rules(stranger, make_mesh('fsdp=4,tensor=2'))
    assert found[0] == 'memory/bank [512, 512]: no rule names it, so it stays whole on every device of fsdp=4, tensor=2'
    assert found[1] == 'narrow/head [256, 1023]: tensor=2 does not divide 1023, which stays whole'
    assert len(caplog.records) == 1 and '(and 1 more like it)' in caplog.text
    assert check_rules(stranger, make_mesh()) == []


def test_moments_adapters_and_experts_are_split_like_their_parameters():
    mesh = make_mesh('fsdp=2,expert=2,tensor=2')
    config = embedded_config('tiny', vocab_size=16, max_length=16)
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    state = jax.eval_shape(lambda p: make_optimizer(1e-3, max_steps=2).init(p), params)
    of = lambda tree: {  # noqa: E731
        jax.tree_util.keystr(path, simple=True, separator='/'): s.spec
        for path, s in jax.tree_util.tree_flatten_with_path(tree_shardings(tree, mesh))[0]
    }
    plain, moments = of(params), of(state)
    for name, spec in plain.items():
        matching = [other for path, other in moments.items() if path.endswith('/' + name)]
        assert len(matching) == 2 and all(other == spec for other in matching)
    experts = {
        'layers': {'mlp': {'gate': {'kernel': jnp.zeros((3, 4, 8, 6))}, 'router': {'kernel': jnp.zeros((3, 8, 4))}}}
    }
    assert of(experts)['layers/mlp/gate/kernel'] == P(None, 'expert', 'fsdp', 'tensor')
    assert of(experts)['layers/mlp/router/kernel'] == P(None, 'fsdp', None)
    from rlax_ft.models.config import LoRAConfig

    adapter = of(init_adapter(params, LoRAConfig(4), jax.random.key(0)))
    assert adapter['layers/attention/query/A'] == P(None, 'fsdp', None)
    assert adapter['layers/mlp/down/B'] == P(None, None, 'fsdp')


def test_nothing_is_said_without_a_mesh_and_what_does_not_divide_is_left():
    x = jnp.ones((8, 4, 6))
    assert constrain(x, 'residual') is x
    with jax.set_mesh(make_mesh('fsdp=4,tensor=2')):
        assert jax.jit(lambda x: constrain(x, 'mlp'))(x).sharding.spec == P('fsdp', None, 'tensor')
        np.testing.assert_array_equal(jax.jit(lambda x: constrain(x, 'mlp'))(x[:3, :, :5]), x[:3, :, :5])


def test_rows_and_states_go_and_come_back_unchanged():
    mesh = make_mesh('data=2,fsdp=4')
    batch = {'x': np.arange(16).reshape(8, 2), 'n': np.float32(3)}
    for placed in (from_local_rows(batch, mesh), split_rows(batch, mesh)):
        assert placed['x'].addressable_shards[0].data.shape == (1, 2)
        jax.tree.map(np.testing.assert_array_equal, fetch(placed), batch)
    assert split_rows(np.arange(3), mesh, strict=False).sharding.is_fully_replicated
    with pytest.raises(InputError, match='a batch of 3 rows does not divide over 8 devices'):
        split_rows(np.arange(3), mesh)
    state = shard_state({'key': jax.random.key(3), 'head': jnp.ones((8, 8))}, mesh)
    assert jax.random.key_data(state['key']).tolist() == jax.random.key_data(jax.random.key(3)).tolist()
    moved = reshard(state, tree_shardings(state, make_mesh('fsdp=8')))
    assert moved['head'].addressable_shards[0].data.shape == (1, 8)


def test_who_is_who_is_read_from_flags_variables_and_launchers():
    three = dict(coordinator_address='h:1', num_processes=2, process_id=0)
    variables = {'JAX_COORDINATOR_ADDRESS': 'h:1', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0'}
    assert _start('', 0, -1, {}) is None
    assert _start('h:1', 2, 0, {'JAX_NUM_PROCESSES': '9'}) == three
    assert _start('', 0, -1, variables) == three
    assert _start('', 0, -1, SRUN) == {}
    assert _start('', 0, -1, SRUN | {'JAX_COORDINATOR_ADDRESS': 'h:1'}) == {**three, 'process_id': 1}
    assert _start('', 0, -1, {'SLURM_NTASKS': '1'}) is None
    assert _start('', 0, -1, {'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '0'}) == {}
    assert _start('', 0, -1, {'TPU_WORKER_HOSTNAMES': 'localhost'}) is None


@pytest.mark.parametrize(
    ('flags', 'variables', 'line'),
    [
        (('h:1', 0, -1), {}, r'--coordinator=h:1, without --num_processes and --process_id'),
        (('h:1', 2, 2), {}, r'--num_processes=2, --process_id=2: give a count, and a number from 0'),
        (('h', 2, 0), {}, r'--coordinator=h: give HOST:PORT'),
        (('', 0, -1), {'JAX_COORDINATOR_ADDRESS': 'h:1'}, r'without JAX_NUM_PROCESSES and JAX_PROCESS_ID'),
        (('', 0, -1), {'JAX_PROCESS_ID': '0'}, r'JAX_PROCESS_ID=0, without JAX_COORDINATOR_ADDRESS and JAX_NUM'),
        (('', 0, -1), {'SLURM_NTASKS': '4'}, r'SLURM_NTASKS=4, without SLURM_JOB_ID.*start it with srun, or unset'),
        (('', 0, -1), {'TPU_WORKER_HOSTNAMES': 'a,b'}, r'without TPU_WORKER_ID'),
    ],
)
def test_half_of_what_is_needed_is_one_line(flags, variables, line):
    with pytest.raises(InputError, match=line) as caught:
        _start(*flags, variables)
    assert '\n' not in str(caught.value)


def test_one_process_does_everything_itself():
    assert from_first(lambda: {'a': [1]}) == {'a': [1]}
    np.testing.assert_array_equal(share_rows(lambda part: range(part.start, part.stop), 5), np.arange(5.0))


def test_rows_go_to_a_mesh_of_one_device_that_is_another():
    last = jax.devices()[-1]
    with jax.set_mesh(make_mesh(devices=[last])):
        rows = spread(jax.device_put(jnp.ones((4, 2)), jax.devices()[0]))
    assert rows.devices() == {last}
