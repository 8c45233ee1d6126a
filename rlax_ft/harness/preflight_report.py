"""The compiler's report on a planned program as numbers, and as text for people.

Leaves out which program (preflight.py, preflight_decode.py) and the command (launch/preflight.py).
"""

import fcntl
import math
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from rlax_ft.harness.preflight_decode import PlannedDecoding
from rlax_ft.models.config import ModelConfig
from rlax_ft.parallel.hlo import between_slices, collectives
from rlax_ft.parallel.mesh import make_mesh, slice_count
from rlax_ft.parallel.roofline import Chip
from rlax_ft.training.performance import forward_flops


def decoding_report(
    planned: PlannedDecoding, settings, config: ModelConfig, length: int, chip: Chip, *, efficiency: float, names: dict
) -> dict:
    """The report on a sampler.

    Args:
      planned: of `plan_decoding`.
      settings: of the script.
      config: of the model.
      length: tokens of prompt and completion.
      chip: what it runs on.
      efficiency: share of the peak rate that large matrix products reach.
      names: `script`, `model` and `target`, for the reader.
    """
    mesh = make_mesh(settings.mesh)
    weights = shard_bytes(planned.weights, planned.shardings)
    cache = sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(planned.cache), jax.tree.leaves(planned.cache_shardings))
    )
    report = {
        **names,
        'layers': config.layers,
        'mesh': {axis: size for axis, size in mesh.shape.items() if size > 1},
        'batch': [planned.rows, planned.prompt, planned.new],
        'capacity': chip.memory,
        'gathered': planned.whole,
        'state': {'weights': weights, 'keys and values': cache},
    }
    compiled, needs = compiled_or_needs(planned.lower)
    if compiled is None:
        return report | {'peak': needs, 'fits': False}
    peak = peak_bytes(compiled.memory_analysis())
    found = collectives(compiled.as_text(), mesh)
    across = between_slices(compiled.as_text(), slice_count(mesh.devices.flat))
    moved, moved_across = (sum(collective.moved for collective in group) / planned.new for group in (found, across))
    flops = forward_flops(config, planned.rows, length) / mesh.size
    seconds = {
        'compute': flops / (chip.flops * efficiency),
        'memory': (weights + cache) / chip.bandwidth,
        'network': moved / chip.links,
        **({'across': moved_across / chip.across} if across else {}),
    }
    return report | {
        'peak': peak,
        'fits': peak <= chip.memory,
        'over_weights': (peak - cache) / weights,
        'collectives': grouped(found + across),
        'moved': moved,
        'token': seconds,
        'tokens_per_second': planned.rows / mesh.size / max(seconds.values()),
        'chip_source': chip.source,
    }


def compiled_or_needs(lower: Callable):
    """(the compiled program, 0), or (None, the bytes that the compiler says it needs of a chip)."""
    with open(Path(tempfile.gettempdir()) / 'rlax_ft_preflight.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # One compilation at a time: each takes gigabytes.
        try:
            return lower().compile(), 0.0
        except jax.errors.JaxRuntimeError as error:
            needs = re.search(r'[Uu]sed ([\d.]+)([GM]) of', str(error))
            if 'RESOURCE_EXHAUSTED' not in str(error) or needs is None:
                raise
            return None, float(needs.group(1)) * {'G': 2**30, 'M': 2**20}[needs.group(2)]


def peak_bytes(memory) -> int:
    """Bytes of a chip at a program's peak."""
    arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return arguments + memory.temp_size_in_bytes


def shard_bytes(tree, shardings) -> int:
    """Bytes of a tree on one device."""
    is_number = lambda leaf: not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return sum(
        int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings))
        if is_number(leaf)
    )


def grouped(found) -> list[dict]:
    """Collectives by kind and mesh axes, the most bytes first."""
    groups: dict[tuple, list] = {}
    for collective in found:
        group = groups.setdefault((collective.kind, collective.axes), [0, 0.0])
        group[0] += collective.times
        group[1] += collective.moved
    rows = [
        {'kind': kind, 'axes': list(axes), 'times': times, 'moved': moved}
        for (kind, axes), (times, moved) in groups.items()
    ]
    return sorted(rows, key=lambda row: -row['moved'])


def line(report: dict) -> str:
    """A report in one line."""
    fits = 'fits' if report['fits'] else 'does not fit'
    text = f'{fits}, {gib(report["peak"])} of {gib(report["capacity"])} GiB'
    if 'roofline' in report:
        roof = report['roofline']
        text += f', {report["moved"] / 1e9:.1f} GB moved, step {roof["step"]:.3f} s, MFU {roof["mfu"]:.0%}'
    return text


def table(report: dict) -> str:
    """A report for people."""
    mesh = ','.join(f'{axis}={size}' for axis, size in report['mesh'].items()) or 'one chip'
    rows, length = report['batch']
    lines = [f'{report["script"]} of {report["model"]} ({report["layers"]} layers) on {report["target"]}, {mesh}']
    lines += [f'{rows} x {length:,} tokens a step', '', 'a chip, GiB']
    lines += [f'  {name:<28}{gib(size):>10}' for name, size in report['state'].items()]
    if report['host']:
        way = 'brought to the chip in a step, which the times below leave out'
        lines.append(f'  {"on the host":<28}{gib(report["host"]):>10} {way}')
    if 'temporaries' in report:
        lines.append(f'  {"temporaries":<28}{gib(report["temporaries"]):>10}')
    verdict = 'fits' if report['fits'] else 'DOES NOT FIT'
    lines.append(f'  {"peak":<28}{gib(report["peak"]):>10} of {gib(report["capacity"])}: {verdict}')
    if report['collectives']:
        lines += ['', f'{"collectives":<20}{"axes":<16}{"times":>8}{"GB sent a chip":>18}']
        lines += [
            f'  {row["kind"]:<18}{"+".join(row["axes"]):<16}{row["times"]:>8}{row["moved"] / 1e9:>18.3f}'
            for row in report['collectives']
        ]
    for name in report['unbounded_loops']:
        lines.append(f'  loop {name} is counted once: its length depends on the data')
    if 'roofline' in report:
        roof = report['roofline']
        lines += ['', f'{report["model_flops"] / 1e12:.1f} model TFLOPs a chip, {report["done_flops"] / 1e12:.1f} done']
        lines += [f'  {name:<10}{roof[name]:>9.4f} s' for name in ('compute', 'memory', 'network')]
        if roof['across']:
            lines.append(f'  {"slices":<10}{roof["across"]:>9.4f} s between them')
        lines.append(f'  step      {roof["step"]:>9.4f} s, MFU {roof["mfu"]:.1%}; bound by {roof["bound"]}')
        lines.append(f'  serial    {roof["serial"]:>9.4f} s, MFU {roof["mfu_serial"]:.1%}')
        lines += ['', f'rates: {report["chip_source"]}', *(f'assumed: {text}' for text in roof['assumptions'])]
    if report['advice']:
        lines += ['', 'what would make it fit:', *(f'  {text}' for text in report['advice'])]
    return '\n'.join(lines)


def decoding_table(report: dict) -> str:
    """A report on the sampler for people."""
    mesh = ','.join(f'{axis}={size}' for axis, size in report['mesh'].items()) or 'one chip'
    rows, prompt, new = report['batch']
    lines = [f'{report["script"]}, of {report["model"]} ({report["layers"]} layers) on {report["target"]}, {mesh}']
    lines += [f'{rows} rows at once, prompts of {prompt:,} tokens, {new:,} drawn', '', 'a chip, GiB']
    lines += [f'  {name:<28}{gib(size):>10}' for name, size in report['state'].items()]
    verdict = 'fits' if report['fits'] else 'DOES NOT FIT'
    lines.append(f'  {"peak":<28}{gib(report["peak"]):>10} of {gib(report["capacity"])}: {verdict}')
    if 'token' not in report:
        return '\n'.join(lines)
    where = 'gathered once' if report['gathered'] else 'where training has them'
    lines += [f'peak without keys and values: {report["over_weights"]:.2f} of the weights, which are {where}', '']
    lines += [f'  {name:<10}{seconds:>9.5f} s a token' for name, seconds in report['token'].items()]
    lines += [f'  {report["tokens_per_second"]:,.0f} tokens/s a chip, if these overlap and the cache is full']
    lines += [
        '',
        f'rates: {report["chip_source"]}',
        "assumed: a token's share of the network is that of the whole call",
    ]
    return '\n'.join(lines)


def gib(count) -> str:
    """Bytes as GiB."""
    return f'{count / 2**30:.2f}'
