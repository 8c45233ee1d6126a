"""What stands in other people's folders, read without trust: JSON of any kind, and only files that lie inside.

Leaves out what the entries mean (folder.py, weights.py, peft.py).
"""

import fnmatch
import json
import math
from pathlib import Path, PurePosixPath

from rlax_ft.data.sources import kind
from rlax_ft.errors import InputError

# What is read of a folder, or downloaded from the hub; other formats of the same weights stay there.
READ = ('*.json', 'model*.safetensors', 'tokenizer*', '*.model', 'merges.txt', '*.jinja', 'additional_chat_templates')
_LARGEST_JSON = 32 * 2**20  # Bytes; the index of a model of a hundred thousand tensors has ten million.

# Entries of config.json by which transformers, or a table of ours, is as large as they say.
_BOUNDS = {
    **dict.fromkeys(('num_hidden_layers', 'n_layer', 'max_window_layers'), 10_000),
    **dict.fromkeys(
        ('num_experts', 'num_local_experts', 'num_attention_heads', 'num_key_value_heads', 'n_head'), 2**16
    ),
    **dict.fromkeys(('head_dim', 'hidden_size', 'n_embd', 'intermediate_size', 'n_inner'), 2**20),
    **dict.fromkeys(('vocab_size', 'moe_intermediate_size', 'max_position_embeddings', 'n_positions'), 2**31 - 1),
}


def read_json(path: Path) -> dict:
    """The object in a JSON file.

    Raises:
      InputError: the file is missing, too large, not JSON, or holds something else.
    """
    try:
        size = path.stat().st_size if path.is_file() or not path.exists() else -1
        content = path.read_bytes() if 0 <= size <= _LARGEST_JSON else b''
    except FileNotFoundError as error:
        raise InputError(f'{path}: no such file; give a folder that transformers or this package wrote') from error
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from error
    if size < 0 or size > _LARGEST_JSON:
        found = 'is no file' if size < 0 else f'has {size:,} bytes'
        raise InputError(f'{path}: {found}; a file of at most {_LARGEST_JSON:,} bytes was expected')
    try:
        value = json.loads(content.decode('utf-8-sig'))
    except (ValueError, RecursionError) as error:  # Also bytes that are no UTF-8, and numbers of thousands of digits.
        raise InputError(f'{path}: not JSON ({error})') from error
    if not isinstance(value, dict):
        raise InputError(f'{path}: holds {kind(value)} where an object was expected')
    return value


def file_inside(folder: Path, name: str, named_by: str) -> Path:
    """The file of that name in the folder, or in the blobs that a snapshot of the hub's cache links to.

    Args:
      folder: of the model.
      name: as another file gives it, with `/` between folders.
      named_by: who says so, for messages, such as `model.safetensors.index.json says that it holds lm_head.weight`.

    Raises:
      InputError: it lies outside, or there is no such file.
    """
    relative, path = PurePosixPath(name), folder / name
    if relative.is_absolute() or '..' in relative.parts or '\\' in name or not name:
        raise InputError(f'{name[:200]}: is not in {folder}, though {named_by}; only files inside the folder are read')
    try:
        found = path.is_file()
    except (OSError, ValueError):  # A name that no file can have.
        found = False
    if not found:
        raise InputError(f'{folder}/{name[:200]}: no such file, though {named_by}')
    _check_target(folder, path)
    return path


def check_links(folder: Path) -> None:
    """Refuses a folder with a link that leads out of it, but for the links of the hub's cache to its blobs.

    Raises:
      InputError: naming the link.
    """
    try:
        named = [
            path for path in folder.iterdir() if any(fnmatch.fnmatch(path.name, kind) for kind in (*READ, 'adapter*'))
        ]
        inner = [path for outer in named if outer.is_dir() for path in outer.iterdir()]
    except OSError as error:
        raise InputError(f'{folder}: cannot be read ({error.strerror})') from error
    for path in sorted(named + inner):
        if path.is_symlink():
            _check_target(folder, path)


def _check_target(folder, path):
    try:
        root, target = folder.resolve(), path.resolve()
    except (OSError, RuntimeError) as error:  # A link to itself.
        raise InputError(f'{path}: a link that leads nowhere') from error
    cached = root.parent.name == 'snapshots' and target.is_relative_to(root.parent.parent / 'blobs')
    if not (target.is_relative_to(root) or cached):
        raise InputError(f'{path}: leads out of the folder, to {target}; only files inside are read')


def check_entries(raw: dict) -> None:
    """Refuses entries of config.json that no model has, before anything is made as large as they say.

    Raises:
      InputError: naming the entry.
    """
    for name, largest in _BOUNDS.items():
        value = raw.get(name)
        # Of another type it is refused by transformers.
        least = 0 if name == 'max_window_layers' else 1
        if isinstance(value, int | float) and not least <= value <= largest:
            raise InputError(f'{name} is {str(value)[:20]}; 1 to {largest:,} was expected')
    if raw.get('quantization_config'):
        raise InputError('quantization_config: quantised weights are not read; give the model as float32 or bfloat16')


def check_config(config) -> None:
    """Refuses a ModelConfig whose sizes fit no model, or whose numbers are not finite.

    Raises:
      InputError: naming the field.
    """
    for name in ('vocab_size', 'width', 'layers', 'heads', 'kv_heads', 'head_dim', 'mlp_width', 'max_length'):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise InputError(f'{name} is {value!r}; a whole number of at least 1 was expected')
    if config.heads % config.kv_heads:
        raise InputError(f'{config.heads} heads are no multiple of {config.kv_heads} key and value heads')
    if config.experts and not 1 <= config.experts_per_token <= config.experts:
        raise InputError(f'{config.experts_per_token!r} of {config.experts} experts a token')
    numbers = {name: getattr(config, name) for name in ('rope_theta', 'norm_eps', 'rotary_fraction')}
    optional = ('local_rope_theta', 'attention_scale', 'attention_soft_cap', 'final_soft_cap', 'window')
    numbers |= {name: getattr(config, name) for name in optional if getattr(config, name) is not None}
    numbers |= {name: value for name, value in config.rope_scaling if not isinstance(value, bool | str)}
    for name, value in numbers.items():
        least = 0 if name in ('norm_eps', 'rotary_fraction') else 1 if name == 'window' else 1e-30
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
            raise InputError(f'{name} is {value!r}; a finite number was expected')
    if config.rotary_fraction > 1:
        raise InputError(f'partial_rotary_factor is {config.rotary_fraction}; at most 1 was expected')
    for name in ('local_layers', 'nope_layers'):
        if len(getattr(config, name)) not in (0, config.layers):
            raise InputError(f'{len(getattr(config, name))} layers have a kind, and the model {config.layers} layers')
