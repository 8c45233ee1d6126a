"""Tensors of a Hugging Face folder: which of them make up our parameters, read piece by piece, and written in shards.

Nothing is read before its place on the devices is known, and never more than one tensor of one layer is on its way.
Leaves out config.json and tokenizers (hf.py).
"""

import dataclasses
import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rlax_ft.data.sources import kind
from rlax_ft.errors import InputError
from rlax_ft.hf.families import FAMILIES, Family
from rlax_ft.hf.leftovers import check_unread
from rlax_ft.hf.reading import file_inside, read_json
from rlax_ft.models.config import ModelConfig
from rlax_ft.parallel.mesh import tree_shardings
from rlax_ft.types import Params

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
SHARD_BYTES = 5 * 10**9
_FLOATS = ('F32', 'BF16', 'F16', 'F64')


class Weights:
    """The tensors of one folder by name: shapes at once, numbers when asked for.

    A file is open only while one tensor is read from it, so that the pages of earlier ones do not pile up in memory.
    """

    def __init__(self, folder: Path):
        """Reads the headers.

        Raises:
          InputError: a file is missing, or ends before its last tensor does.
        """
        self.folder = folder
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.kinds: dict[str, str] = {}
        paths, places = _weight_files(folder)
        for path in paths:
            try:
                with safe_open(path, framework='numpy') as file:
                    for name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                        if places.get(name, path) != path:
                            continue  # The index says that another shard has it.
                        self._files[name] = path
                        part = file.get_slice(name)
                        self.shapes[name], self.kinds[name] = tuple(part.get_shape()), part.get_dtype()
            except (SafetensorError, OSError, ValueError) as error:
                reason = _what_is_cut_off(path) or ' '.join(str(error).split())[:200]
                raise InputError(f'{path}: a broken safetensors file ({reason})') from error

    def find(self, name: str) -> str:
        """The name under which a tensor is there: its own, or that without the prefix of a bare base model.

        Raises:
          InputError: neither is there.
        """
        for candidate in (name, name.partition('.')[2]):
            if candidate in self.shapes:
                return candidate
        raise InputError(f'{self.folder}/{WEIGHTS}: no tensor {name}, which config.json asks for')

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._files[name]

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """A tensor, or a rectangle of it.

        Raises:
          InputError: a number in it is not finite.
        """
        with safe_open(self._files[name], framework='numpy') as file:
            array = file.get_tensor(name) if index is None else file.get_slice(name)[index]
        if not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise InputError(f'{self._files[name]}: {name} holds {bad} numbers that are NaN or infinite')
        return array


def _weight_files(folder):
    """(files of the folder, the file of each tensor that an index names)."""
    index = folder / INDEX
    # Beside a whole file transformers does not look at an index.
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS], {}
    if not index.is_file():
        raise InputError(f'{folder}/{WEIGHTS}: no such file; the folder holds no weights as safetensors')
    places = read_json(index).get('weight_map')
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise InputError(f'{index}: "weight_map" is {kind(places)}; tensor names with their file names were expected')
    first = {file: name for name, file in reversed(places.items())}
    paths = {file: file_inside(folder, file, f'{INDEX} says that it holds {first[file]}') for file in sorted(first)}
    return list(paths.values()), {name: paths[file] for name, file in places.items()}


def _what_is_cut_off(path):
    """Says which tensor a truncated file breaks off in; None where that is not what is wrong."""
    try:
        size = path.stat().st_size
        with open(path, 'rb') as file:
            length = struct.unpack('<Q', file.read(8))[0]
            if length > size - 8:
                return 'it ends within its header'
            header = json.loads(file.read(length))
        header.pop('__metadata__', None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]['data_offsets'][1]):
            if 8 + length + entry['data_offsets'][1] > size:
                return f'it ends at byte {size}, within {name}'
    except struct.error:
        return 'it ends within its header'
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OSError):
        return None  # The header is none: safetensors' own words say more.
    return None


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our parameters and the tensors that it is made of.

    Attributes:
      path: ours, such as ('layers', 'mlp', 'up', 'kernel').
      shape: ours, with the leading axis of layers where it has one.
      template: their name, with `{layer}` and `{expert}`.
      flipped: they store the transpose.
      part: which of `sizes` it is.
      sizes: widths along the output axis of all that share the tensor; one alone where nobody does.
      heads: how many times the parts alternate; 1 where each is in one piece.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    template: str
    flipped: bool
    part: int
    sizes: tuple[int, ...]
    heads: int

    @property
    def layers(self) -> int | None:
        """Number of layers that are stacked, None for a parameter outside the layers."""
        return self.shape[0] if '{layer}' in self.template else None

    @property
    def experts(self) -> int | None:
        """Number of experts that are stacked, None where there are none."""
        return self.shape[-3] if '{expert}' in self.template else None

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Shape of one of their tensors."""
        dims = self.shape[(self.layers is not None) + (self.experts is not None) :]
        dims = (*dims[:-1], sum(self.sizes))
        return dims[::-1] if self.flipped else dims


def leaves_of(config: ModelConfig, shapes: Params) -> list[Leaf]:
    """Where each parameter of a model is in its family's files.

    Args:
      config: of the model.
      shapes: its parameters, or anything with their tree and shapes; `backbone` and `head` for a reward model.

    Raises:
      InputError: the family has no place for a parameter.
    """
    family = FAMILIES[config.family]
    flat = {
        tuple(key.key for key in path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]
    }
    named = {path: _their_name(family, path, 'backbone' in shapes) for path in flat}
    leaves = []
    for path, template in named.items():
        order = list(family.names)
        sharing = [other for other, theirs in named.items() if theirs == template]
        if len(sharing) > 1:
            sharing = sorted(sharing, key=lambda other: order.index(_our_name(other)))
        # Heads outside the layers are plain linear maps in every family.
        flipped = (path[-1] == 'kernel' and (family.transposed or path[0] == 'head')) or path[-1] == 'head'
        leaves.append(
            Leaf(
                path=path,
                shape=flat[path],
                template=template,
                flipped=flipped,
                part=sharing.index(path),
                sizes=tuple(flat[other][-1] for other in sharing),
                heads=config.heads if family.parts_by_head and len(sharing) > 1 else 1,
            )
        )
    return leaves


def _our_name(path):
    return '/'.join(path[1:] if path[0] == 'backbone' else path)


def _their_name(family: Family, path, scalar):
    if scalar and path == ('head', 'kernel'):
        return 'score.weight'
    name = _our_name(path)
    if name not in family.names:
        raise InputError(f'{family.architecture} has no tensor for our {name}')
    return family.names[name]


def read_params(folder: Path, config: ModelConfig, shapes: Params, *, mesh, dtype) -> Params:
    """The parameters of a folder, each read and placed as the mesh shards it, layer by layer.

    Args:
      folder: with model.safetensors or its shards.
      config: of the model.
      shapes: what the model's parameters look like, from `jax.eval_shape`.
      mesh: whose path rules say what goes where; the default device when absent.
      dtype: of the parameters.

    Raises:
      InputError: a file or a tensor is missing, cut off, of another shape than config.json says, or not finite.
    """
    weights = Weights(folder)
    leaves = leaves_of(config, shapes)
    for leaf in leaves:
        _check_shape(weights, leaf)
    check_unread(weights, config, leaves)
    # Without a mesh nothing is bound to a device: what follows may move it where it likes.
    shardings = None if mesh is None else tree_shardings(shapes, mesh)
    params: dict = {}
    for leaf in leaves:
        at, sharding = params, shardings
        for part in leaf.path[:-1]:
            at = at.setdefault(part, {})
        for part in leaf.path if shardings else ():
            sharding = sharding[part]
        at[leaf.path[-1]] = _place(weights, leaf, sharding, dtype)
    return params


def _check_shape(weights, leaf):
    for layer in range(leaf.layers or 1):
        for expert in range(leaf.experts or 1):
            name = weights.find(leaf.template.format(layer=layer, expert=expert))
            if weights.shapes[name] != leaf.their_shape:
                raise InputError(
                    f'{weights.file_of(name)}: {name} is {weights.shapes[name]} where config.json says '
                    f'{leaf.their_shape}'
                )
            if weights.kinds[name] not in _FLOATS:
                raise InputError(
                    f'{weights.file_of(name)}: {name} holds {weights.kinds[name]}; {", ".join(_FLOATS)} are read'
                )


def _place(weights, leaf, sharding, dtype):
    """One parameter on its devices; the layers of a stack are written into it one after another, in place."""

    def put(layer, shape, sharding):
        read = lambda index: _read_part(weights, leaf, layer, index).astype(dtype)  # noqa: E731
        if sharding is None:
            return jnp.asarray(read((slice(None),) * len(shape)))
        return jax.make_array_from_callback(shape, sharding, read)

    if leaf.layers is None:
        return put(0, leaf.shape, sharding)
    # The rules never split the axis of layers.
    one = sharding and sharding.update(spec=jax.sharding.PartitionSpec(*sharding.spec[1:]))
    stack = jax.jit(lambda: jnp.zeros(leaf.shape, dtype), out_shardings=sharding)()
    write = jax.jit(jax.lax.dynamic_update_index_in_dim, static_argnums=3, donate_argnums=0, out_shardings=sharding)
    for layer in range(leaf.layers):
        stack = write(stack, put(layer, leaf.shape[1:], one), layer, 0)
        # Without a wait, all layers would be on their way at once.
        stack.block_until_ready()
    return stack


def _read_part(weights, leaf, layer, index, expert=None):
    """A rectangle of one layer of our parameter, in our orientation; experts are its leading axis."""
    if leaf.experts and expert is None:
        chosen = range(*index[0].indices(leaf.experts))
        return np.stack([_read_part(weights, leaf, layer, index[1:], e) for e in chosen])
    name = weights.find(leaf.template.format(layer=layer, expert=expert))
    if len(leaf.sizes) == 1:
        array = weights.read(name, index[::-1] if leaf.flipped else index)
        return array.T if leaf.flipped else array
    whole = weights.read(name)
    return split_parts(whole.T if leaf.flipped else whole, leaf.sizes, leaf.heads)[leaf.part][index]


def split_parts(array: np.ndarray, sizes: tuple[int, ...], heads: int) -> list[np.ndarray]:
    """[..., sum(sizes)] -> one [..., size] for each of `sizes`; with `heads`, their parts alternate head by head."""
    by_head = array.reshape(*array.shape[:-1], heads, -1)
    places = np.cumsum([size // heads for size in sizes])[:-1]
    return [part.reshape(*array.shape[:-1], -1) for part in np.split(by_head, places, axis=-1)]


def join_parts(parts: list[np.ndarray], heads: int) -> np.ndarray:
    """The reverse of `split_parts`."""
    by_head = [part.reshape(*part.shape[:-1], heads, -1) for part in parts]
    return np.concatenate(by_head, axis=-1).reshape(*parts[0].shape[:-1], -1)


def their_tensors(leaves: list[Leaf], params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of every tensor as the family's files have it, one at a time."""
    groups: dict[str, list[Leaf]] = {}
    for leaf in leaves:
        groups.setdefault(leaf.template, []).append(leaf)
    for template, sharing in groups.items():
        sharing.sort(key=lambda leaf: leaf.part)
        for layer in range(sharing[0].layers or 1):
            arrays = [_host_array(leaf, params, layer) for leaf in sharing]
            widest = max((array.dtype for array in arrays), key=lambda dtype: dtype.itemsize)
            arrays = [array.astype(widest, copy=False) for array in arrays]
            whole = arrays[0] if len(arrays) == 1 else join_parts(arrays, sharing[0].heads)
            for expert in range(sharing[0].experts or 1):
                array = whole[expert] if sharing[0].experts else whole
                name = template.format(layer=layer, expert=expert)
                yield name, np.ascontiguousarray(array.T if sharing[0].flipped else array)


def _host_array(leaf, params, layer):
    for part in leaf.path:
        params = params[part]
    return np.asarray(params if leaf.layers is None else params[layer])


def write_params(folder: Path, config: ModelConfig, params: Params, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes model.safetensors, or numbered shards of at most `shard_bytes` and their index.

    Each file appears whole or not at all.
    """
    leaves = leaves_of(config, params)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    count = max(1, math.ceil(total / shard_bytes))
    if count == 1:
        _write_file(folder / WEIGHTS, dict(their_tensors(leaves, params)))
        (folder / INDEX).unlink(missing_ok=True)
        return
    shards: list[list[str]] = [[]]
    pending: dict[str, np.ndarray] = {}
    for name, array in their_tensors(leaves, params):
        if pending and sum(a.nbytes for a in pending.values()) + array.nbytes > shard_bytes:
            _write_file(folder / f'part-{len(shards)}', pending)
            pending = {}
            shards.append([])
        pending[name] = array
        shards[-1].append(name)
    _write_file(folder / f'part-{len(shards)}', pending)
    places: dict[str, str] = {}
    for i, names in enumerate(shards, start=1):
        file = f'model-{i:05d}-of-{len(shards):05d}.safetensors'
        os.replace(folder / f'part-{i}', folder / file)
        places |= dict.fromkeys(names, file)
    index = {'metadata': {'total_size': total}, 'weight_map': places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + '\n')
    (folder / WEIGHTS).unlink(missing_ok=True)


def _write_file(path, tensors):
    temporary = path.with_name(path.name + '.tmp')
    save_file(tensors, temporary, metadata={'format': 'pt'})
    os.replace(temporary, path)
