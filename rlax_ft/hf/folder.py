"""Hugging Face folders in and out: config.json, safetensors and tokenizer, as transformers reads and writes them.

families.py says how a family's configuration and names map to ours, weights.py moves the tensors. Leaves out remote
code and any format but safetensors.
"""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp

from rlax_ft.errors import InputError
from rlax_ft.hf.families import FAMILIES, to_config, to_entries
from rlax_ft.hf.weights import read_params, write_params
from rlax_ft.models.config import ModelConfig
from rlax_ft.models.heads import ScalarModel
from rlax_ft.models.transformer import Transformer
from rlax_ft.types import Params

# Other formats of the same weights, in folders below or under other names, stay on the hub.
_DOWNLOADED = ['*.json', 'model*.safetensors', 'tokenizer*', '*.model', 'merges.txt', '*.jinja']
_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id')


def load_pretrained(path_or_repo: str | Path, *, mesh=None, dtype=None) -> tuple[ModelConfig, Params, object]:
    """Reads a language model or a reward model from a folder that transformers wrote.

    Each tensor goes straight to where the mesh has it; beside the parameters themselves, host memory holds one tensor
    of one layer.

    Args:
      path_or_repo: a folder, or the id of a repository on the hub.
      mesh: where parameters go, by its path rules; the default device when absent.
      dtype: of the parameters; float32 when absent.

    Returns:
      (config, params, tokenizer): params are those of `Transformer`, or of `ScalarModel` where the folder holds a
      sequence classifier; the tokenizer is None where the folder has none.

    Raises:
      InputError: a missing or broken file, an unknown family, a tensor whose shape the configuration denies or whose
        numbers are not finite, or a tokenizer of more tokens than the model has.
    """
    folder = _folder(path_or_repo)
    config, scalar = _read_config(folder)
    has_tokenizer = any((folder / name).is_file() for name in ('tokenizer.json', 'tokenizer.model', 'vocab.json'))
    tokenizer = read_tokenizer(folder) if has_tokenizer else None
    if tokenizer is not None:
        check_vocabulary(tokenizer, config, folder)
    shapes = param_shapes(config, scalar=scalar)
    return config, read_params(folder, config, shapes, mesh=mesh, dtype=dtype or jnp.float32), tokenizer


def check_vocabulary(tokenizer, config: ModelConfig, source) -> None:
    """Refuses a tokenizer with words that the model has no embedding for.

    Special tokens beyond the embedding are let through: some text models share the tokenizer of a larger one and never
    see its image tokens.

    Raises:
      InputError: an ordinary token has an id that is too large.
    """
    if len(tokenizer) <= config.vocab_size:
        return
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = {index: word for word, index in tokenizer.get_vocab().items() if index >= config.vocab_size}
    if ordinary := beyond.keys() - special:
        raise InputError(
            f'{source}: its tokenizer has {len(tokenizer)} tokens, more than the {config.vocab_size} rows of '
            f'{FAMILIES[config.family].names["embed/embedding"]}; the first without one is {beyond[min(ordinary)]!r}'
        )


def read_tokenizer(path_or_repo: str | Path):
    """The tokenizer of a model folder or hub id, with PAD: EOS where it has none of its own.

    Raises:
      InputError: there is none that transformers can read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path_or_repo)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f'{path_or_repo}: no tokenizer that transformers can read ({reason})') from error
    if tokenizer.pad_token_id is None:
        # What fills a row is masked; any token serves.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_config(path_or_repo: str | Path) -> ModelConfig:
    """The configuration of a model folder or hub id, as in `load_pretrained`, without its weights."""
    return _read_config(_folder(path_or_repo))[0]


def _read_config(folder: Path) -> tuple[ModelConfig, bool]:
    path = folder / 'config.json'
    raw = read_json(path)
    model_type = raw.get('model_type')
    if model_type not in FAMILIES:
        raise InputError(f'{path}: model_type {model_type!r}; known are {", ".join(FAMILIES)}')
    config = _parse(path, raw)
    generation = folder / 'generation_config.json'
    notes = {'config': raw, 'generation_config': read_json(generation) if generation.is_file() else {}}
    scalar = raw.get('architectures') == [FAMILIES[model_type].reward_architecture]
    return dataclasses.replace(config, notes=json.dumps(notes)), scalar


def _parse(path, raw):
    """ModelConfig of the entries of a config.json, after transformers has filled in what they leave out."""
    from transformers import AutoConfig

    given = {name: value for name, value in raw.items() if name not in ('model_type', 'architectures')}
    try:
        return to_config(raw['model_type'], AutoConfig.for_model(raw['model_type'], **given).to_dict())
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    except Exception as error:  # transformers has many ways of refusing a configuration.
        raise InputError(f'{path}: not a {raw["model_type"]} configuration ({" ".join(str(error).split())})') from error


def param_shapes(config: ModelConfig, *, scalar: bool = False) -> Params:
    """Shapes and dtypes of the parameters of a `Transformer`, or of a `ScalarModel`."""
    model = ScalarModel(config) if scalar else Transformer(config)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))['params']


def save_pretrained(path: str | Path, config: ModelConfig, params: Params, tokenizer=None, extra: dict | None = None):
    """Writes a folder that `AutoModelForCausalLM` (or, for a reward model, ...SequenceClassification) opens.

    Args:
      path: the folder; made if need be.
      config: of the model; what else the folder that it was read from said is written back.
      params: of `Transformer`, or of `ScalarModel`; they keep their dtype.
      tokenizer: a transformers tokenizer, or None.
      extra: further entries of config.json.

    Raises:
      InputError: the family has no place for something that the configuration says.
    """
    scalar = 'backbone' in params
    dtype = (params['backbone'] if scalar else params)['embed']['embedding'].dtype.name
    save_config(path, config, tokenizer, scalar=scalar, extra={'dtype': dtype, **(extra or {})})
    write_params(Path(path), config, params)


def save_config(path: str | Path, config: ModelConfig, tokenizer=None, *, scalar: bool = False, extra=None) -> None:
    """Writes what a model folder holds besides weights, so that checkpoints of a running run can be read."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    family = FAMILIES[config.family]
    notes = json.loads(config.notes or '{}')
    source, generation = notes.get('config', {}), notes.get('generation_config', {})
    entries = {
        **source,
        'model_type': config.family,
        'architectures': [family.reward_architecture if scalar else family.architecture],
        **to_entries(config),
        'dtype': 'float32',
        **({'num_labels': 1, 'id2label': {'0': 'score'}, 'label2id': {'score': 0}} if scalar else {}),
        **(extra or {}),
    }
    entries.pop('torch_dtype', None)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        ids = {name: getattr(tokenizer, name) for name in _IDS if getattr(tokenizer, name) is not None}
        # A model may end on more tokens than its tokenizer says: what it came with stays.
        entries |= {name: value for name, value in ids.items() if source.get(name) is None}
        generation = {**ids, **{name: value for name, value in generation.items() if value is not None}}
    _check_written(folder / 'config.json', entries, config)
    if generation and not scalar:
        (folder / 'generation_config.json').write_text(json.dumps(generation, indent=2) + '\n')
    (folder / 'config.json').write_text(json.dumps(entries, indent=2) + '\n')


def _check_written(path, entries, config):
    """Reads the entries back: what the family cannot say would otherwise be lost without a word."""
    again = _parse(path, entries)
    for field in dataclasses.fields(config):
        was, found = getattr(config, field.name), getattr(again, field.name)
        if field.name in ('dtype', 'remat', 'lora', 'notes') or was == found:
            continue
        if not (isinstance(was, float) and isinstance(found, float) and math.isclose(was, found, rel_tol=1e-6)):
            raise InputError(f'{path}: a {config.family} model has no way to say {field.name}={was!r}')


def read_json(path: Path) -> dict:
    """A JSON file.

    Raises:
      InputError: it is missing or broken.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f'{path}: no such file; give a folder that transformers or this package wrote') from error
    except json.JSONDecodeError as error:
        raise InputError(f'{path}: not JSON ({error})') from error


def _folder(path_or_repo):
    if Path(path_or_repo).is_dir():
        return Path(path_or_repo)
    text = str(path_or_repo)
    if text.count('/') != 1 or text.startswith(('.', '/')):
        raise InputError(f'{text}: no such folder, and not a hub id such as OWNER/NAME')
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=_DOWNLOADED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f'{text}: no such folder, and the hub did not give it ({first})') from error
