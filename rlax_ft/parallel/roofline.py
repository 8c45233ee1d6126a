"""What a step would take on a chip: arithmetic, memory traffic and collectives against the chip's rates.

An estimate from counts, not a measurement; `Estimate.assumptions` says what it rests on.
"""

import dataclasses

from rlax_ft.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Rates of one chip.

    Attributes:
      flops: dense bfloat16 FLOP/s.
      memory: bytes that a program may use.
      bandwidth: of that memory, bytes/s.
      links: bytes/s that it sends to its neighbours over all links together, one way.
      across: bytes/s a chip between slices (or nodes).
      source: where the numbers stand.
    """

    flops: float
    memory: float
    bandwidth: float
    links: float
    across: float
    source: str


GIB = 2.0**30

# Memory is what the compiler lets a program have, where it says so; ICI rates are the data sheets' two-way sums halved.
CHIPS = {
    'v4': Chip(275e12, 32 * GIB, 1228e9, 150e9, 6.25e9, 'cloud.google.com/tpu/docs/v4'),
    'v5e': Chip(197e12, 15.75 * GIB, 819e9, 100e9, 6.25e9, 'cloud.google.com/tpu/docs/v5e'),
    'v5p': Chip(459e12, 95.74 * GIB, 2765e9, 300e9, 6.25e9, 'cloud.google.com/tpu/docs/v5p'),
    'v6e': Chip(918e12, 31.25 * GIB, 1640e9, 224e9, 12.5e9, 'cloud.google.com/tpu/docs/v6e'),
    'a100': Chip(312e12, 80e9, 2039e9, 300e9, 25e9, 'NVIDIA A100 80GB SXM data sheet'),
    'h100': Chip(989e12, 80e9, 3350e9, 450e9, 50e9, 'NVIDIA H100 SXM data sheet'),
    'h200': Chip(989e12, 141e9, 4800e9, 450e9, 50e9, 'NVIDIA H200 SXM data sheet'),
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step, by what they are spent on.

    Attributes:
      compute: arithmetic.
      memory: traffic to the chip's memory.
      network: collectives within a slice.
      across: collectives between slices.
      step: the longest of them.
      serial: their sum.
      mfu: model FLOPs over what the chip could do in `step`.
      mfu_serial: the same in `serial`.
      bound: which of them is longest.
      assumptions: what the estimate rests on.
    """

    compute: float
    memory: float
    network: float
    across: float
    step: float
    serial: float
    mfu: float
    mfu_serial: float
    bound: str
    assumptions: tuple[str, ...]


def find_chip(name: str) -> Chip:
    """A chip of the table.

    Raises:
      InputError: it is not there.
    """
    if name not in CHIPS:
        raise InputError(f'--chip={name}: not in the table, which has {", ".join(CHIPS)}')
    return CHIPS[name]


def estimate(
    chip: Chip,
    *,
    model_flops: float,
    done_flops: float,
    traffic: float,
    moved: float,
    moved_across: float = 0.0,
    efficiency: float = 0.7,
) -> Estimate:
    """The time of a step on each of many equal chips.

    Args:
      chip: its rates.
      model_flops: of the model on one chip's share, without what is computed twice.
      done_flops: with it.
      traffic: bytes between the chip and its memory.
      moved: bytes that the chip sends in collectives within a slice.
      moved_across: bytes that it sends to other slices.
      efficiency: share of the peak rate that large matrix products reach.
    """
    parts = {
        'compute': done_flops / (chip.flops * efficiency),
        'memory': traffic / chip.bandwidth,
        'network': moved / chip.links,
        'across': moved_across / chip.across,
    }
    longest, serial = max(parts.values()), sum(parts.values())
    return Estimate(
        **parts,
        step=longest,
        serial=serial,
        mfu=model_flops / (longest * chip.flops),
        mfu_serial=model_flops / (serial * chip.flops),
        bound=max(parts, key=parts.__getitem__),
        assumptions=(
            f'matrix products reach {efficiency:.0%} of the peak rate, and nothing but them is counted as arithmetic',
            'collectives use all links of a chip at once, in rings, and wait for nobody',
            'step: arithmetic, memory and collectives overlap wholly; serial: not at all',
        ),
    )
