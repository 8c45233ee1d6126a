"""Hugging Face folders in and out: config.json, safetensors and tokenizer, as transformers reads and writes them.

families.py says how a family's configuration and names map to ours, weights.py moves the tensors. Leaves out remote
code and any format but safetensors.
"""

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rlax_ft.data.templates import stop_ids
from rlax_ft.errors import InputError
from rlax_ft.hf.families import FAMILIES, to_config, to_entries
from rlax_ft.hf.reading import READ, check_config, check_entries, check_links, read_json
from rlax_ft.hf.weights import read_params, write_params
from rlax_ft.models.config import ModelConfig
from rlax_ft.models.heads import ScalarModel
from rlax_ft.models.transformer import Transformer
from rlax_ft.types import Params

if TYPE_CHECKING:  # Slow to import.
    from transformers import PreTrainedTokenizerBase

# Special tokens that serve as PAD where a tokenizer has them, in the order in which they are tried.
_PADS = ('<pad>', '[PAD]', '<|pad|>', '<PAD>')
_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id')


def load_pretrained(
    path_or_repo: str | Path, *, mesh=None, dtype=None
) -> tuple[ModelConfig, Params, 'PreTrainedTokenizerBase | None']:
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
    try:
        shapes = param_shapes(config, scalar=scalar)
    except Exception as error:  # flax and jax have many ways of refusing sizes that fit no model.
        reason = ' '.join(str(error).split())[:200]
        raise InputError(f'{folder}/config.json: describes no model that can be made ({reason})') from error
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

    As `further_ends` it has the ids that end a text by the folder's generation_config.json, or else its config.json.

    Raises:
      InputError: there is none that transformers can read.
    """
    from transformers import AutoTokenizer

    folder = _folder(path_or_repo)
    try:
        # Code of the folder's own is never run, and never asked about.
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer('a b')
        special = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id]
        if not all(i is None or isinstance(i, int) for i in special):
            raise ValueError('PAD, BOS and EOS must be one token each')
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # Its readers raise whatever they like, in Rust also what is no Exception.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f'{path_or_repo}: no tokenizer that transformers can read ({reason[:200]})') from error
    if tokenizer.pad_token_id is None:
        # What fills a row is masked; any token serves.
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.further_ends = _listed_ends(folder)
    return tokenizer


def _listed_ends(folder):
    """What transformers' own sampler stops at."""
    for name in ('generation_config.json', 'config.json'):
        path = folder / name
        ends = read_json(path).get('eos_token_id') if path.is_file() else None
        if ends is not None:
            ids = ends if isinstance(ends, list) else [ends]
            if not all(isinstance(i, int) and not isinstance(i, bool) and i < 2**31 for i in ids):
                raise InputError(f'{path}: eos_token_id is {str(ends)[:40]}; an id or a list of ids was expected')
            return tuple(i for i in ids if i >= 0)
    return ()


def read_config(path_or_repo: str | Path) -> ModelConfig:
    """The configuration of a model folder or hub id, as in `load_pretrained`, without its weights."""
    return _read_config(_folder(path_or_repo))[0]


def _read_config(folder: Path) -> tuple[ModelConfig, bool]:
    path = folder / 'config.json'
    raw = read_json(path)
    model_type = raw.get('model_type')
    if not isinstance(model_type, str) or model_type not in FAMILIES:
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
        check_entries(raw)
        config = to_config(raw['model_type'], AutoConfig.for_model(raw['model_type'], **given).to_dict())
        check_config(config)
        return config
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
    if scalar and tokenizer is not None:
        config, params, tokenizer = _with_own_pad(config, params, tokenizer)
    # transformers reads all tensors as the one dtype that config.json names.
    dtype = max((leaf.dtype for leaf in jax.tree.leaves(params)), key=lambda kind: kind.itemsize).name
    save_config(path, config, tokenizer, scalar=scalar, extra={'dtype': dtype, **(extra or {})})
    write_params(Path(path), config, params)


def _with_own_pad(config, params, tokenizer):
    """A reward model with a PAD that ends no text.

    transformers reads the score at the last token that is not PAD: where that is EOS, one token early.
    """
    ends = stop_ids(tokenizer)
    fits = lambda i: i is not None and i not in ends and i < config.vocab_size  # noqa: E731
    if fits(tokenizer.pad_token_id):
        return config, params, tokenizer
    known, tokenizer = tokenizer.get_vocab(), copy.deepcopy(tokenizer)
    name = next((name for name in _PADS if fits(known.get(name))), None)
    name = name or next(name for name in ('<|pad|>', '<|pad_of_rows|>') if known.get(name) not in ends)
    tokenizer.add_special_tokens({'pad_token': name})
    missing = tokenizer.pad_token_id + 1 - config.vocab_size
    if missing > 0:
        backbone = params['backbone']
        rows = jnp.pad(backbone['embed']['embedding'], ((0, missing), (0, 0)))
        params = {**params, 'backbone': {**backbone, 'embed': {'embedding': rows}}}
        config = dataclasses.replace(config, vocab_size=config.vocab_size + missing)
    return config, params, tokenizer


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
        if (ends := _all_ends(generation.get('eos_token_id'), tokenizer, config)) is not None:
            generation['eos_token_id'] = ends
    if scalar:
        ends = _all_ends(entries.get('eos_token_id'), tokenizer, config)
        pad = entries.get('pad_token_id') if tokenizer is None else tokenizer.pad_token_id
        # At PAD the score would not be read; without any, transformers reads rows one by one.
        entries['pad_token_id'] = None if pad in (ends if isinstance(ends, list) else [ends]) else pad
    _check_written(folder / 'config.json', entries, config)
    if generation and not scalar:
        (folder / 'generation_config.json').write_text(json.dumps(generation, indent=2) + '\n')
    (folder / 'config.json').write_text(json.dumps(entries, indent=2) + '\n')


def _all_ends(given, tokenizer, config):
    """An id, or a list of ids, or None: what is given, and what our sampler stops at besides."""
    own = [] if tokenizer is None else [i for i in stop_ids(tokenizer) if i is not None and i < config.vocab_size]
    ends = list(dict.fromkeys([*(given if isinstance(given, list) else [given]), *own]))
    ends = [i for i in ends if i is not None]
    return ends if len(ends) > 1 else next(iter(ends), None)


def _check_written(path, entries, config):
    """Reads the entries back: what the family cannot say would otherwise be lost without a word."""
    again = _parse(path, entries)
    for field in dataclasses.fields(config):
        was, found = getattr(config, field.name), getattr(again, field.name)
        if field.name in ('dtype', 'remat', 'kernel', 'matmul', 'lora', 'notes') or was == found:
            continue
        if not (isinstance(was, float) and isinstance(found, float) and math.isclose(was, found, rel_tol=1e-6)):
            raise InputError(f'{path}: a {config.family} model has no way to say {field.name}={was!r}')


def _folder(path_or_repo):
    if Path(path_or_repo).is_dir():
        check_links(Path(path_or_repo))
        return Path(path_or_repo)
    text = str(path_or_repo)
    if text.count('/') != 1 or text.startswith(('.', '/')):
        raise InputError(f'{text}: no such folder, and not a hub id such as OWNER/NAME')
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=list(READ)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f'{text}: no such folder, and the hub did not give it ({first})') from error
