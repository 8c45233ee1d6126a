"""Compiles the step of a script for chips that are not here, from shapes alone: what it needs, and what it costs.

    python launch/preflight.py --script=sft --topology=v5p:4x4x4 --mesh=fsdp=64 --model=llama3-8b --batch_size=64 \\
        --length=4096 --dtype=bfloat16 --remat=full
    python launch/preflight.py --script=dpo --devices=8 --chip=h100 --mesh=fsdp=8 --model=FOLDER --length=2048

    --script=NAME      sft, reward, dpo, ppo or grpo; all other flags are that script's own
    --decode           of ppo and grpo: the sampling in place of the update, --batch_size rows at once
    --topology=CHIP:SHAPE  a TPU slice, such as v5e:4x4, v5p:4x4x4 or v6e:16x16, compiled by the TPU's compiler (pip
                       install 'rlax_ft[preflight]', best into an environment of its own)
    --slices=N         N of these slices, with the data centre's network between them; --mesh=data=N,... crosses it
    --devices=N        in place of a topology: N virtual devices, compiled by the CPU's compiler, with the memory and
                       the rates of --chip
    --chip=NAME        v4, v5e, v5p, v6e, a100, h100, h200; the topology's when left out
    --model=NAME       llama3-8b, llama3-70b, llama3.2-1b, llama3.2-3b, qwen3-0.6b, qwen3-8b, qwen3-30b-a3b,
                       mixtral-8x7b, a folder or a config.json
    --layers=N         of them, to compile sooner; memory and times are then of such a model
    --length=N         tokens of a row; of pairs and rollouts half of it is the prompt
    --efficiency=X     share of the peak rate that large matrix products reach, for the roofline (0.7)
    --search=FILE      tries meshes, micro-batches and remat, ranks them, and writes the flags of the best to FILE
    --json             one JSON object in place of the table

Exit code 1: it does not fit. Memory and collectives are the compiler's, FLOPs are counted from shapes, times are a
roofline with the assumptions that it prints.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

OWN = {'script': '', 'topology': '', 'devices': '0', 'chip': '', 'model': '', 'layers': '0', 'length': '0'}
OWN |= {'slices': '1', 'efficiency': '0.7', 'search': '', 'json': 'false', 'decode': 'false'}
ROOT = Path(__file__).resolve().parents[1]


def own_flags(arguments) -> tuple[dict, list[str]]:
    """(this program's flags, the script's)."""
    given, rest = dict(OWN), []
    for argument in arguments:
        name, equals, value = argument.lstrip('-').partition('=')
        if argument.startswith('--') and name in OWN:
            given[name] = value if equals else 'true'
        else:
            rest.append(argument)
    return given, rest


def main() -> int:
    """Runs; returns the exit code."""
    arguments = sys.argv[1:]
    if not arguments or {'--help', '-h'} & set(arguments):
        print(__doc__.strip())
        return 0
    given, rest = own_flags(arguments)
    # Before jax is imported: no chip is looked for, and virtual devices are made.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    # libtpu lets one process at a time in, as if each would take a chip; compilations wait for each other themselves.
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    os.environ['JAX_PLATFORMS'] = 'cpu'
    if given['devices'].isdigit() and int(given['devices']):
        count = f'--xla_force_host_platform_device_count={given["devices"]}'
        os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {count}'
    sys.path.insert(0, str(ROOT))
    from rlax_ft.errors import InputError

    try:
        return preflight(given, rest)
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def preflight(given, rest) -> int:
    """Compiles one step, or those of a search."""
    from rlax_ft.errors import InputError
    from rlax_ft.harness.preflight_report import decoding_table, table
    from rlax_ft.parallel.mesh import compiling_for

    if bool(given['topology']) == (given['devices'] != '0'):
        raise InputError('give --topology=CHIP:SHAPE or --devices=N, one of them')
    devices, chip = target(given)
    with compiling_for(devices):
        if given['search']:
            return search(given, rest, chip, len(devices))
        decodes = given['decode'] != 'false'
        report = (compile_decoding if decodes else compile_one)(given, rest, chip)
    shown = decoding_table if decodes else table
    print(json.dumps(report, indent=2) if given['json'] != 'false' else shown(report))
    return 0 if report['fits'] else 1


def target(given):
    """(devices to compile for, their chip)."""
    import jax

    from rlax_ft.errors import InputError
    from rlax_ft.parallel.roofline import find_chip

    if not given['slices'].isdigit() or given['slices'] == '0':
        raise InputError(f'--slices={given["slices"]}: give how many there are')
    if not given['topology'] and given['slices'] != '1':
        raise InputError(f'--slices={given["slices"]}: has no effect without --topology; give that')
    if not given['topology']:
        return jax.devices(), find_chip(given['chip'] or 'h100')
    chip = find_chip(given['chip'] or given['topology'].partition(':')[0])
    more = {'num_slices': int(given['slices'])} if given['slices'] != '1' else {}
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform='tpu', topology_name=given['topology'], **more).devices, chip
    except Exception as error:  # The plug-in raises what it likes.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f'--topology={given["topology"]}: no such slice, or no TPU compiler here ({reason}); pip install libtpu'
        ) from error


def shape_of(given, settings):
    """The configuration to compile, with the script's flags."""
    from rlax_ft.errors import InputError
    from rlax_ft.harness.learner import lora_config
    from rlax_ft.hf.folder import read_config
    from rlax_ft.models.shapes import named_config

    path, how = Path(given['model']), dict(dtype=settings.dtype, kernel=settings.attention, remat=settings.remat)
    if path.name == 'config.json' or (path / 'config.json').is_file():
        config = read_config(path.parent if path.name == 'config.json' else path)
    else:
        config = named_config(given['model'])
    if given['layers'] != '0':
        layers = int(given['layers'])
        cut = {name: getattr(config, name)[:layers] for name in ('local_layers', 'nope_layers')}
        config = dataclasses.replace(config, layers=layers, **cut)
    length = int(given['length']) if given['length'].isdigit() else 0
    if not 0 < length <= config.max_length:
        raise InputError(f'--length={given["length"]}: give the tokens of a row, up to {config.max_length}')
    return dataclasses.replace(config, lora=lora_config(settings), matmul=settings.matmul_dtype, **how), length


def settings_of(given, rest):
    """The script's settings."""
    from rlax_ft.errors import InputError
    from rlax_ft.harness.command_line import parse
    from rlax_ft.harness.loading import load_script
    from rlax_ft.harness.preflight import FILES

    if given['script'] not in FILES:
        raise InputError(f'--script={given["script"]}: use one of {", ".join(FILES)}')
    file, name = FILES[given['script']]
    return parse(getattr(load_script(ROOT / f'experiments/{file}.py'), name), rest)


def compile_one(given, rest, chip) -> dict:
    """The report on one step."""
    from rlax_ft.harness.preflight import plan
    from rlax_ft.harness.preflight_report import compiled_or_needs, grouped, peak_bytes, shard_bytes
    from rlax_ft.parallel.hlo import between_slices, collectives, unbounded_loops
    from rlax_ft.parallel.mesh import make_mesh, slice_count, tree_shardings
    from rlax_ft.parallel.roofline import estimate
    from rlax_ft.training.performance import forward_flops

    settings = settings_of(given, rest)
    config, length = shape_of(given, settings)
    planned, mesh = plan(given['script'], settings, config, length), make_mesh(settings.mesh)
    share = lambda tree: shard_bytes(tree, tree_shardings(tree, mesh))  # noqa: E731
    params, moments = share(planned.state.params), share(planned.state.opt_state)
    offload = settings.offload_optimizer
    others = {name: share(tree) for name, tree in planned.resident.items()}
    base = {} if planned.frozen is None else {'frozen base': share(planned.frozen)}
    forward = planned.models * forward_flops(config, planned.tokens, length) / mesh.size
    passes = {'none': 3, 'dots': 3, 'full': 4}[settings.remat]
    report = {
        'script': given['script'],
        'model': given['model'],
        'layers': config.layers,
        'target': target_name(given),
        'mesh': {axis: size for axis, size in mesh.shape.items() if size > 1},
        'batch': [settings.batch_size, length],
        'model_flops': 3 * forward,
        'done_flops': passes * forward,
        'capacity': chip.memory,
        'state': {'parameters': params, **({} if offload else {'optimiser': moments}), **base, **others},
        'host': (moments if offload else 0) + sum(share(tree) for tree in planned.on_host.values()),
    }
    compiled, needs = compiled_or_needs(planned.lower)
    if compiled is None:
        report |= {'peak': needs + sum(others.values()), 'fits': False, 'collectives': [], 'unbounded_loops': []}
        return report | {'advice': advice(settings, report)}
    memory, text = compiled.memory_analysis(), compiled.as_text()
    peak = peak_bytes(memory)
    found, across = collectives(text, mesh), between_slices(text, slice_count(mesh.devices.flat))
    weights = param_bytes(planned.state.params if planned.frozen is None else planned.frozen, settings.dtype)
    # Weights are written where they are gathered, and read; the state is read and written.
    traffic = 2.0 * passes * planned.models * weights / max(mesh.shape['tensor'], 1) + 2.0 * (params + moments)
    moved, moved_across = (sum(c.moved for c in group) for group in (found, across))
    report |= {
        'temporaries': memory.temp_size_in_bytes,
        'peak': peak + sum(others.values()),
        'fits': peak + sum(others.values()) <= chip.memory,
        'collectives': grouped(found + across),
        'moved': moved,
        'moved_across': moved_across,
        'traffic': traffic,
        'unbounded_loops': unbounded_loops(text),
        'roofline': dataclasses.asdict(
            estimate(
                chip,
                model_flops=report['model_flops'],
                done_flops=report['done_flops'],
                traffic=traffic,
                moved=moved,
                moved_across=moved_across,
                efficiency=float(given['efficiency']),
            )
        ),
        'chip_source': chip.source,
    }
    return report | {'advice': [] if report['fits'] else advice(settings, report)}


def compile_decoding(given, rest, chip) -> dict:
    """The report on the sampler."""
    from rlax_ft.harness.preflight_decode import plan_decoding
    from rlax_ft.harness.preflight_report import decoding_report

    settings = settings_of(given, rest)
    config, length = shape_of(given, settings)
    planned = plan_decoding(given['script'], settings, config, length, chip.memory)
    names = {'script': f'{given["script"]}, decoding', 'model': given['model'], 'target': target_name(given)}
    efficiency = float(given['efficiency'])
    return decoding_report(planned, settings, config, length, chip, efficiency=efficiency, names=names)


def target_name(given) -> str:
    """The slice, or how many of which chip."""
    if given['topology']:
        return given['topology'] if given['slices'] == '1' else f'{given["slices"]} slices of {given["topology"]}'
    return f'{given["devices"]} x {given["chip"] or "h100"}'


def param_bytes(tree, dtype) -> int:
    """Bytes of the weights as they are used."""
    import jax
    import numpy as np

    # Two 4-bit codes stand in a byte.
    count = sum(int(np.prod(leaf.shape)) * (2 if leaf.dtype == 'uint8' else 1) for leaf in jax.tree.leaves(tree))
    return count * (2 if dtype == 'bfloat16' else 4)


def advice(settings, report) -> list[str]:
    """What would make it fit, the cheapest first."""
    lines = []
    if settings.remat != 'full':
        lines.append('--remat=full: activations of one layer at a time, for a third more arithmetic')
    if settings.dtype != 'bfloat16':
        lines.append('--dtype=bfloat16: activations and gathered weights of half the size')
    rows = settings.batch_size // max(settings.micro_batches, 1)
    ways = 1
    for axis in ('data', 'fsdp', 'expert'):
        ways *= report['mesh'].get(axis, 1)
    if rows > ways:
        lines.append(f'--micro_batches={settings.micro_batches * (rows // ways)}: one row a chip at a time')
    if report['mesh'].get('data', 1) > 1:
        lines.append('--mesh=fsdp=-1: parameters and optimiser split over all chips')
    if not settings.lora_rank:
        lines.append('--lora_rank=16: no optimiser state for the base')
        if settings.param_dtype != 'bfloat16':
            lines.append('--param_dtype=bfloat16: parameters of half the size, updates rounded at random')
        if settings.optimizer in ('adamw', 'lion', 'muon') and settings.moment_dtype != 'int8':
            lines.append('--moment_dtype=int8: moments of a quarter of their size (bfloat16: half of the first)')
        if settings.optimizer == 'adamw':
            lines.append("--offload_optimizer: its state in the host's memory between updates")
            lines.append('--optimizer=lion or adafactor: one moment, or none of full size, in place of two')
        if 'reference' in report['state']:
            lines.append("--offload_reference: the reference in the host's memory between its passes")
    elif not settings.base_dtype:
        lines.append('--base_dtype=nf4: 4 bits for each number of the frozen base')
    state = sum(report['state'].values())
    if state > report['capacity']:
        lines.append(f'more chips: the state alone is {state / report["capacity"]:.1f} times what a chip holds')
    return lines


def search(given, rest, chip, count) -> int:
    """Compiles the combinations of meshes, micro-batches and remat, and ranks them."""
    from rlax_ft.errors import InputError
    from rlax_ft.harness.preflight_report import line, table

    taken = {argument.lstrip('-').partition('=')[0] for argument in rest}
    tensors = [1] if 'mesh' in taken else [t for t in (1, 2, 4, 8) if count % t == 0 and t <= count]
    ranked, refused = [], set()
    for tensor in tensors:
        for micro_batches in [None] if 'micro_batches' in taken else (1, 2, 4):
            for remat in [None] if 'remat' in taken else ('none', 'full'):
                chosen = {'mesh': None if 'mesh' in taken else f'fsdp={count // tensor},tensor={tensor}'}
                chosen |= {'micro_batches': micro_batches, 'remat': remat}
                flags = [f'--{name}={value}' for name, value in chosen.items() if value is not None]
                try:
                    report = compile_one(given, [*rest, *flags], chip)
                except InputError as error:
                    if refused == {str(error)} and not ranked:
                        raise  # It is no fault of the combination.
                    refused.add(str(error))
                    print(f'{" ".join(flags)}: {error}')
                    continue
                step = report.get('roofline', {}).get('step', float('inf'))
                ranked.append((not report['fits'], step, report['peak'], flags, report))
                print(f'{" ".join(flags)}: {line(report)}', flush=True)
    ranked.sort(key=lambda entry: entry[:3])
    if not ranked or ranked[0][0]:
        print('none fits')
        return 1
    flags = ranked[0][3]
    Path(given['search']).write_text('\n'.join([*rest, *flags]) + '\n')
    print(f'\nbest: {" ".join(flags)} ({given["search"]})\n')
    print(table(ranked[0][4]))
    return 0


if __name__ == '__main__':
    sys.exit(main())
