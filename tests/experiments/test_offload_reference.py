"""A reference in the host's memory: the same run, with one copy of the model less on the devices in each update."""

from pathlib import Path

import jax
import pytest

from rlax_ft.errors import InputError
from rlax_ft.harness.command_line import parse
from rlax_ft.harness.loading import load_script
from rlax_ft.parallel.mesh import make_mesh
from rlax_ft.parallel.placement import shard_state, to_device_memory, to_host_memory
from rlax_ft.training.metrics import read_records

SCRIPTS = Path(__file__).parents[2] / 'experiments'
TINY = dict(task='reviews', model='tiny', mesh='fsdp=8', report_to='', max_steps=3)
ONLINE = dict(batch_size=16, prompts=64, eval_every=2)
CASES = {
    'dpo': ('DPOSettings', dict(batch_size=8, comparisons=64, candidates=2, sync_reference=2)),
    'kto': ('KTOSettings', dict(batch_size=8, comparisons=64, candidates=2)),
    'ppo': ('PPOSettings', ONLINE | dict(reward='gold', update_epochs=1, minibatches=1)),
    'grpo': ('GRPOSettings', ONLINE | dict(reward='gold', group_size=2, beta=0.1)),
    'online_dpo': ('OnlineDPOSettings', ONLINE | dict(reward='gold', sync_reference=2, sync_share=0.5)),
}


def copies(shape):
    """Arrays of this shape on the devices."""
    return sum(leaf.shape == shape and leaf.sharding.memory_kind == 'device' for leaf in jax.live_arrays())


def run(script, folder, monkeypatch, **more):
    """(metrics of each step, copies of the embedding's shape on the devices while a step is made)."""
    module, (name, given) = load_script(SCRIPTS / f'{script}.py'), CASES[script]
    counts, compile_training = [], module.compile_training

    def counted(*arguments, **how):
        optimizer, step = compile_training(*arguments, **how)

        def counting(state, *rest):
            params = state.params.get('policy', state.params)
            jax.block_until_ready(state)
            counts.append(copies(params['embed']['embedding'].shape))
            return step(state, *rest)

        return optimizer, counting

    monkeypatch.setattr(module, 'compile_training', counted)
    module.train(getattr(module, name)(out=str(folder), **TINY, **given, **more))
    records = read_records(folder / 'metrics.jsonl')
    return [{k: v for k, v in r.items() if not k.startswith(('perf/', 'time/'))} for r in records], counts


@pytest.mark.parametrize('script', ['grpo', *(pytest.param(s, marks=pytest.mark.slow) for s in CASES if s != 'grpo')])
def test_a_run_is_the_same_with_a_model_less_on_the_devices(tmp_path, monkeypatch, script):
    with monkeypatch.context() as patch:
        metrics, counts = run(script, tmp_path / 'device', patch)
    with monkeypatch.context() as patch:
        again, fewer = run(script, tmp_path / 'host', patch, offload_reference=True)
    assert metrics == again and len(metrics) == 3
    assert all(a > b for a, b in zip(counts, fewer)), (counts, fewer)


def test_memory_kinds_keep_values_and_places():
    mesh = make_mesh('fsdp=8')
    tree = shard_state({'attention': {'query': {'kernel': jax.random.normal(jax.random.key(0), (16, 8))}}}, mesh)
    away = to_host_memory(tree)
    back = to_device_memory(away)
    there, here, first = (jax.tree.leaves(t)[0] for t in (away, back, tree))
    assert there.sharding.memory_kind == 'pinned_host' and here.sharding == first.sharding
    assert (jax.device_get(there) == jax.device_get(first)).all() and (here == first).all()
    assert to_device_memory(first) is first and to_device_memory(None) is None


@pytest.mark.parametrize(
    ('script', 'name', 'flags', 'message'),
    [
        ('dpo', 'DPOSettings', ['lora_rank=2'], '--offload_reference=True: has no effect beside --lora_rank=2'),
        ('sft', 'SFTSettings', [], "flag 'offload_reference'"),
        ('grpo', 'GRPOSettings', ['env=calculator', 'beta=0'], '--offload_reference: --env with --beta=0'),
    ],
)
def test_it_is_refused_where_there_is_no_reference(script, name, flags, message):
    module = load_script(SCRIPTS / f'{script}.py')
    with pytest.raises(InputError, match=message):
        settings = parse(getattr(module, name), [f'--{flag}' for flag in (*flags, 'offload_reference')])
        module.check(settings)
