"""Which collectives an optimised HLO program has: kind, bytes, times in loops, and the mesh axes that they run over.

Reads the text that `compiled.as_text()` gives. A loop's body counts as often as the loop turns; where that depends on
the data, it counts once and the loop is named. Leaves out what a collective costs in time (roofline.py).
"""

import dataclasses
import math
import re

import numpy as np

KINDS = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'ragged-all-to-all', 'collective-permute')

_BYTES = {'pred': 1, 'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8, 'c64': 8, 'c128': 16, 's4': 0.5, 'u4': 0.5}
_HEAD = re.compile(r'^(ENTRY )?%?([^\s(]+) \(.*\{\s*$')
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([^\s=]+) = (.*)$')
_SHAPE = re.compile(r'([a-z]\w*)\[([\d,]*)\]')
_CALLED = re.compile(r'(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: one of KINDS.
      shapes: (dtype, dims) of its result, one for each array.
      payload: bytes of the whole array: what is gathered to, or reduced from, on each device.
      ways: devices in a group.
      axes: mesh axes that a group spans; empty where no mesh was given.
      times: how often it runs in a call of the program.
      source: the operation that it came from, as jax names it.
    """

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    payload: float
    ways: int
    axes: tuple[str, ...]
    times: int
    source: str

    @property
    def moved(self) -> float:
        """Bytes that a device sends in a call, as a ring does: (n - 1) / n of the payload, twice for all-reduce."""
        share = (self.ways - 1) / self.ways if self.kind != 'collective-permute' else 1.0
        return self.times * share * self.payload * (2.0 if self.kind == 'all-reduce' else 1.0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation."""

    name: str
    type: str
    opcode: str
    rest: str


def collectives(text: str, mesh=None) -> list[Collective]:
    """Every collective between several devices in an optimised program.

    Args:
      text: of `compiled.as_text()`.
      mesh: whose axes replica groups are named by.
    """
    computations, entry = parse(text)
    found: dict[object, Collective] = {}
    for name, times in multiplicities(computations, entry).items():
        for instruction in computations[name]:
            kind = _kind(instruction, name)
            if kind is None:
                continue
            ways, axes = _group(instruction.rest, mesh)
            if ways > 1:
                shapes = _shapes(instruction.type)
                shapes = shapes[len(shapes) // 2 :] if instruction.opcode == 'all-gather-start' else shapes
                shapes = shapes[1:2] if instruction.opcode == 'collective-permute-start' else shapes
                size = sum(array_bytes(*shape) for shape in shapes)
                scattered = kind == 'reduce-scatter' and instruction.opcode.startswith('reduce-scatter')
                source = re.search(r'op_name="([^"]*)"', instruction.rest)
                channel = re.search(r'channel_id=(\d+)', instruction.rest)
                one = Collective(
                    kind,
                    tuple(shapes),
                    size * ways if scattered else size,
                    ways,
                    axes,
                    times,
                    source.group(1) if source else '',
                )
                # The TPU compiler spreads one collective over the fusions that it runs beside: they share a channel,
                # and the one that starts it runs least often.
                key = (channel.group(1), kind, one.shapes) if channel else len(found)
                if key not in found or times < found[key].times:
                    found[key] = one
    return list(found.values())


def between_slices(text: str, slices: int) -> list[Collective]:
    """What the chips of several TPU slices send each other over the data centre's network, in an optimised program.

    The compiler reduces or gathers within a slice first, and hands each chip's part to the runtime as a `send`.

    Args:
      text: of `compiled.as_text()`.
      slices: how many there are.
    """
    computations, entry = parse(text)
    found = []
    for name, times in multiplicities(computations, entry).items():
        for instruction in computations[name]:
            how = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
            if instruction.opcode == 'send' and how:
                shapes, kind = _shapes(instruction.type)[:1], how.group(1).lower().replace('_', '-')
                size = array_bytes(*shapes[0]) * (1 if kind == 'all-reduce' else slices)
                found.append(Collective(kind, tuple(shapes), size, slices, ('slices',), times, ''))
    return found


def unbounded_loops(text: str) -> list[str]:
    """Names of loops that hold a collective and whose number of turns the program does not say."""
    computations, entry = parse(text)
    reached = multiplicities(computations, entry)
    return [
        instruction.name
        for name in reached
        for instruction in computations[name]
        if instruction.opcode == 'while'
        and _trips(instruction, computations) is None
        and any(_kind(inner, body) for body in _below(computations, instruction) for inner in computations[body])
    ]


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """(instructions by computation, name of the entry)."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = '', None
    for line in text.splitlines():
        if current is None:
            head = _HEAD.match(line)
            if head and not line.startswith('HloModule'):
                current = computations.setdefault(head.group(2), [])
                entry = head.group(2) if head.group(1) else entry
        elif line.rstrip() == '}' or line.startswith('}, execution_thread'):
            current = None
        elif match := _INSTRUCTION.match(line):
            kind, rest = _split_type(match.group(2))
            opcode = re.match(r'([\w\-]+)\(', rest)
            if opcode:
                current.append(Instruction(match.group(1), kind, opcode.group(1), rest))
    return computations, entry


def multiplicities(computations: dict[str, list[Instruction]], entry: str) -> dict[str, int]:
    """How often each computation runs in one call; a loop of unknown length turns once, both branches are taken."""
    times: dict[str, int] = {}

    def visit(name, count):
        if name not in computations:
            return
        times[name] = times.get(name, 0) + count
        for instruction in computations[name]:
            inner = count
            if instruction.opcode == 'while':
                inner = count * (_trips(instruction, computations) or 1)
            for other in _called(instruction):
                visit(other, inner)

    visit(entry, 1)
    return times


def array_bytes(dtype: str, dims: tuple[int, ...]) -> float:
    """Bytes of an array of HLO's dtype and dimensions."""
    width = _BYTES.get(dtype)
    if width is None:
        digits = re.match(r'[a-z]+(\d+)', dtype)
        width = int(digits.group(1)) / 8 if digits else 0
    return width * math.prod(dims)


def _split_type(text):
    """('(f32[2], s32[])', 'while(...)...') of what stands after the equals sign."""
    if not text.startswith('('):
        kind, _, rest = text.partition(' ')
        return kind, rest
    depth = 0
    for place, character in enumerate(text):
        depth += (character == '(') - (character == ')')
        if not depth:
            return text[: place + 1], text[place + 1 :].strip()
    return text, ''


def _shapes(kind):
    return [(dtype, tuple(int(d) for d in dims.split(',') if d)) for dtype, dims in _SHAPE.findall(kind)]


def _kind(instruction, computation):
    kind = instruction.opcode.removesuffix('-start')
    if kind not in KINDS or instruction.opcode.endswith('-done'):
        return None
    # The TPU compiler writes a reduce-scatter as a fusion of this name around an all-reduce and a slice.
    return 'reduce-scatter' if kind == 'all-reduce' and 'all-reduce-scatter' in computation else kind


def _called(instruction):
    names = _CALLED.findall(instruction.rest)
    for group in _BRANCHES.findall(instruction.rest):
        names += [name.strip().lstrip('%') for name in group.split(',')]
    return names + [name for name in re.findall(r'body=%?([\w.\-]+)', instruction.rest)]


def _below(computations, instruction):
    seen, todo = set(), _called(instruction)
    while todo:
        name = todo.pop()
        if name in computations and name not in seen:
            seen.add(name)
            todo += [other for inner in computations[name] for other in _called(inner)]
    return seen


def _trips(instruction, computations):
    """How often a loop turns: as the compiler has noted, or as its condition and its counter's step say; None else."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.rest)
    if known:
        return int(known.group(1))
    condition, body = (re.search(rf'{name}=%?([\w.\-]+)', instruction.rest) for name in ('condition', 'body'))
    lines = computations.get(condition.group(1), []) if condition else []
    limits = [value for line in lines if (value := _constant(line)) is not None]
    if not limits:
        return None
    return -(-max(limits) // _step(lines, computations.get(body.group(1), []) if body else []))


def _step(condition, body):
    """By how much the number that a condition looks at grows in a turn; 1 where that cannot be seen."""
    test = next((line for line in condition if line.opcode == 'compare'), None)
    looked_at = {line.name: line for line in condition if line.opcode == 'get-tuple-element'}
    counter = next((looked_at[name] for name in _operands(test) if name in looked_at), None) if test else None
    place = counter and re.search(r'index=(\d+)', counter.rest)
    lines = {line.name: line for line in body}
    results = _operands(body[-1]) if body and body[-1].opcode == 'tuple' else []
    if not place or int(place.group(1)) >= len(results):
        return 1
    grown = lines.get(results[int(place.group(1))])
    steps = [_constant(lines[name]) for name in _operands(grown) if name in lines] if grown else []
    steps = [step for step in steps if step]
    return steps[0] if grown is not None and grown.opcode == 'add' and len(steps) == 1 else 1


def _operands(instruction):
    """Names of an instruction's operands, in order."""
    inside = re.match(r'[\w\-]+\(([^)]*)\)', instruction.rest)
    return re.findall(r'%([\w.\-]+)', re.sub(r'/\*[^*]*\*/', '', inside.group(1))) if inside else []


def _constant(instruction):
    value = re.match(r'constant\((\d+)\)', instruction.rest) if instruction.opcode == 'constant' else None
    return int(value.group(1)) if value else None


def _group(rest, mesh):
    """(devices in a group, mesh axes that it spans)."""
    iota = re.search(r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', rest)
    named = re.search(r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([\d,]+)\))? *\{([^}]*)\}', rest)
    listed = re.search(r'(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}', rest)
    if iota:
        dims = [int(d) for d in iota.group(3).split(',')]
        ids = np.arange(math.prod(dims)).reshape(dims)
        ids = ids.transpose([int(d) for d in iota.group(4).split(',')]) if iota.group(4) else ids
        group = ids.reshape(int(iota.group(1)), int(iota.group(2)))[0]
    elif named and ':(' not in named.group(3):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named.group(1)))
        across = re.findall(r"'(\w+)'", named.group(3))
        ids = np.arange(math.prod(int(size) for size in sizes.values()))
        ids = np.asarray([int(i) for i in named.group(2).split(',')]) if named.group(2) else ids
        ids = ids.reshape([int(size) for size in sizes.values()])
        group = ids[tuple(slice(None) if name in across else 0 for name in sizes)].reshape(-1)
    elif listed:
        group = np.asarray([int(i) for i in listed.group(1).split(',') if i], int)
    else:
        group = np.arange(mesh.size if mesh is not None else 0)
    if mesh is None or not len(group):
        return len(group), ()
    places = np.unravel_index(group, tuple(mesh.shape.values()))
    return len(group), tuple(axis for axis, where in zip(mesh.shape, places) if len(set(where.tolist())) > 1)
