"""The report on a step that was compiled from shapes, against counts made by hand."""

import dataclasses
import math
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from rlax_ft.errors import InputError
from rlax_ft.harness.loading import load_script
from rlax_ft.harness.preflight_report import decoding_table, shard_bytes, table
from rlax_ft.models.shapes import SHAPES, named_config
from rlax_ft.models.transformer import init_params
from rlax_ft.parallel.hlo import between_slices
from rlax_ft.parallel.mesh import AXES, compiling_for, tree_shardings
from rlax_ft.parallel.roofline import CHIPS, estimate

preflight = load_script(Path(__file__).parents[2] / 'launch/preflight.py')
TOY = dict(
    vocab_size=256, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp_width=128, max_length=64, tied=False
)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(SHAPES, 'toy', TOY)


def report(script, *flags, chip=CHIPS['h100'], how=preflight.compile_one):
    given = preflight.OWN | {'script': script, 'devices': '8', 'model': 'toy', 'length': '32'}
    with compiling_for(jax.devices()):
        return how(given, ['--batch_size=8', '--mesh=fsdp=8', *flags], chip)


def count(config):
    leaves = jax.tree.leaves(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    return sum(math.prod(leaf.shape) for leaf in leaves)


def test_state_flops_and_verdict():
    found = report('sft', '--remat=full')
    norms = (2 * 2 + 1) * 64  # Whole on every device; matrices are split eight ways.
    bytes_of_one = 4 * ((count(named_config('toy')) - norms) / 8 + norms)
    assert found['state']['parameters'] == bytes_of_one
    assert found['state']['optimiser'] == pytest.approx(2 * bytes_of_one, rel=1e-3)
    assert found['peak'] > 3 * bytes_of_one and found['fits'] and not found['advice']
    matrices = 2 * (64 * 16 * 12 + 3 * 64 * 128) + 64 * 256
    assert found['model_flops'] == 3 * 8 * 32 * (2 * matrices + 2 * 2 * 4 * 16 * 32) / 8
    assert found['done_flops'] == pytest.approx(found['model_flops'] * 4 / 3)
    assert {row['kind'] for row in found['collectives']} >= {'all-gather'}
    assert 'fits' in table(found)


def test_what_does_not_fit_says_what_would_make_it():
    found = report('ppo', chip=dataclasses.replace(CHIPS['h100'], memory=1e5))
    assert not found['fits'] and set(found['state']) == {'parameters', 'optimiser', 'reward model', 'reference'}
    assert any('--remat=full' in line for line in found['advice'])
    assert 'DOES NOT FIT' in table(found)


def test_what_saves_memory_counts_for_what_it_saves():
    small = dataclasses.replace(CHIPS['h100'], memory=1e5)
    plain = report('dpo', chip=small)
    parts = {name: size for name, size in plain['state'].items()}
    for name in ('--moment_dtype=int8', '--param_dtype=bfloat16', '--offload_reference'):
        assert any(line.startswith(name) for line in plain['advice'])
    found = report('dpo', '--offload_reference', chip=small)
    assert set(found['state']) == {'parameters', 'optimiser'} and found['host'] == parts['reference']
    assert plain['peak'] - found['peak'] == pytest.approx(parts['reference'], rel=1e-3)
    assert not any('offload_reference' in line for line in found['advice'])
    found = report('dpo', '--param_dtype=bfloat16', '--moment_dtype=int8', chip=small)
    assert found['state']['parameters'] == parts['parameters'] / 2 == found['state']['reference']
    # A row of 64 columns or more: a byte a number, and a scale for 64 of them; of fewer, for those.
    assert 0.25 < found['state']['optimiser'] / parts['optimiser'] < 0.36
    assert not any(line.startswith(('--moment_dtype', '--param_dtype')) for line in found['advice'])


def test_the_update_of_grpo_counts_its_prompts_once():
    found = report('grpo', '--batch_size=16', '--group_size=2', '--beta=0.01')
    assert set(found['state']) == {'parameters', 'optimiser', 'reference'} and found['fits']
    matrices = 2 * (64 * 16 * 12 + 3 * 64 * 128) + 64 * 256
    tokens = 8 * (1 + 2) * 16
    assert found['model_flops'] == 3 * tokens * (2 * matrices + 2 * 2 * 4 * 16 * 32) / 8


@pytest.mark.parametrize('room', [True, False])
def test_decoding_keeps_weights_whole_where_there_is_room(room):
    chip = CHIPS['h100'] if room else dataclasses.replace(CHIPS['h100'], memory=1e6)
    found = report('grpo', chip=chip, how=preflight.compile_decoding)
    norms, size = (2 * 2 + 1) * 64, count(named_config('toy'))
    assert found['gathered'] == room
    assert found['state']['weights'] == 4 * (size if room else (size - norms) / 8 + norms)
    assert found['state']['keys and values'] == 4 * 2 * 2 * 2 * 16 * 32  # Both, of layers, heads, width and slots.
    assert found['peak'] > sum(found['state'].values()) and found['over_weights'] > 1
    assert 'tokens/s a chip' in decoding_table(found)


@pytest.mark.parametrize('model', ['llama3-8b', 'llama3-70b', 'qwen3-30b-a3b'])
def test_the_share_of_a_chip_falls_with_their_number(model):
    config = named_config(model)
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    shares = []
    for chips in (16, 64, 256):
        mesh = AbstractMesh((1, chips, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 5)
        shares.append(chips * shard_bytes(params, tree_shardings(params, mesh)))
    assert shares[2] < 1.01 * shares[0], 'more than norms and biases stays whole'


def test_a_base_in_four_bits_is_counted_as_such():
    half = report('sft', '--lora_rank=2', '--dtype=bfloat16')['state']
    coded = report('sft', '--lora_rank=2', '--dtype=bfloat16', '--base_dtype=nf4')['state']
    assert coded['parameters'] == half['parameters'] and coded['optimiser'] == half['optimiser']
    norms = 2 * (2 * 2 + 1) * 64
    # Embedding and head, 256 x 64 each, stay; of the rest 4.5 bits in place of 16, matrices of 64 and 128 inputs.
    others, rest = norms + 2 * 2 * 256 * 64 / 8, half['frozen base']
    assert coded['frozen base'] == pytest.approx(others + (rest - others) * (4 + 32 / 64) / 16)


def test_the_roofline_by_hand():
    chip = dataclasses.replace(CHIPS['v5p'], flops=100.0, bandwidth=10.0, links=5.0)
    ours = estimate(chip, model_flops=30.0, done_flops=40.0, traffic=1.0, moved=4.0, efficiency=0.5)
    assert (ours.compute, ours.memory, ours.network) == (0.8, 0.1, 0.8)
    far = dataclasses.replace(chip, across=2.0)
    apart = estimate(far, model_flops=30.0, done_flops=40.0, traffic=1.0, moved=4.0, moved_across=2.0, efficiency=0.5)
    assert apart.across == apart.step == 1.0 and apart.bound == 'across' and ours.across == 0.0
    assert ours.step == 0.8 and ours.mfu == pytest.approx(30 / 80) and ours.serial == pytest.approx(1.7)


def test_what_travels_between_slices_by_hand():
    send = '{} = (bf16[8,128], u32[], token[]) send(%part, %token), is_host_transfer=true, '
    how = 'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}'
    text = f'ENTRY %main (part: bf16[8,128]) -> bf16[8,128] {{\n  %{send.format("a")}{how}\n'
    text += f'  %{send.format("b")}{how.replace("REDUCE", "GATHER")}\n  %{send.format("c")}\n}}\n'
    reduced, gathered = between_slices(text, 4)
    assert (reduced.kind, gathered.kind) == ('all-reduce', 'all-gather') and reduced.axes == ('slices',)
    # A ring of four: three quarters of the part, there and back; a gather sends the own part on three times.
    assert reduced.moved == 2 * 0.75 * 2048 and gathered.moved == 3 * 2048


def test_mistakes():
    with pytest.raises(InputError, match=r'--script=evaluate: use one of sft'):
        report('evaluate')
    with pytest.raises(InputError, match=r'--model=nobody: no config\.json and no named shape'):
        preflight.shape_of(preflight.OWN | {'model': 'nobody'}, preflight.settings_of({'script': 'sft'}, []))
    for slices, told in (('2', 'has no effect without --topology'), ('0', 'give how many')):
        with pytest.raises(InputError, match=f'--slices={slices}: {told}'):
            preflight.target(preflight.OWN | {'devices': '8', 'slices': slices})
    with pytest.raises(InputError, match=r'give --topology=CHIP:SHAPE or --devices=N'):
        preflight.preflight(dict(preflight.OWN), [])


def test_a_search_stops_at_what_no_combination_mends(monkeypatch, tmp_path):
    tried = []

    def refuse(given, rest, chip):
        tried.append(rest)
        raise InputError('--model=x: no named shape')

    monkeypatch.setattr(preflight, 'compile_one', refuse)
    with pytest.raises(InputError, match='no named shape'):
        preflight.search({'search': str(tmp_path / 'best.flags')}, [], None, 4)
    assert len(tried) == 2 and not (tmp_path / 'best.flags').exists()


@pytest.mark.parametrize(
    ('script', 'flags', 'message'),
    [
        ('sft', [], '--decode: --script=sft draws no batches; use one of ppo, grpo'),
        ('grpo', ['--engine_rows=4'], '--engine_rows=4: --decode compiles rows that are drawn together; leave it out'),
    ],
)
def test_decoding_that_is_not_what_is_compiled_is_refused(script, flags, message):
    with pytest.raises(InputError, match=message):
        report(script, *flags, how=preflight.compile_decoding)
