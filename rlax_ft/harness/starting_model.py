"""What a run learns with: the task, the tokenizer and its lengths, the starting model, and writing a model out.

Leaves out the run folder (run.py) and the training step (step.py).
"""

import dataclasses
import logging
import shutil
from pathlib import Path

import jax

from rlax_ft.data.codec import Codec
from rlax_ft.data.templates import set_chat_template, template_tokens
from rlax_ft.data.tokenizers import train_tokenizer, word_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.harness.run import Run
from rlax_ft.harness.settings import LoRASettings, Settings
from rlax_ft.harness.step import place_state
from rlax_ft.hf.folder import check_vocabulary, load_pretrained, read_config, read_tokenizer, save_config
from rlax_ft.models.config import SIZES, ModelConfig, embedded_config
from rlax_ft.models.quantized import quantize_base
from rlax_ft.models.transformer import init_params
from rlax_ft.parallel.hosts import from_first, on_first
from rlax_ft.parallel.mesh import make_mesh
from rlax_ft.tasks import Task, get_task
from rlax_ft.training.checkpoint import Checkpoints

# Tokens of a prompt, and of a response, where neither flags nor a shorter context say otherwise.
LONGEST = 1024


def task_of(settings) -> Task | None:
    """The embedded task, or None where --data or a text environment says what to learn."""
    other = settings.data or getattr(settings, 'env', '')
    return get_task(settings.task or 'reviews') if settings.task or not other else None


def make_codec(settings, run: Run, texts) -> Codec:
    """Tokenizer and lengths: those of the starting model if it brings a tokenizer, of the task, or trained on `texts`.

    Args:
      settings: of the script.
      run: its folder; a tokenizer trained before is read from there.
      texts: called for the data's texts where a tokenizer must be trained.

    Raises:
      InputError: a flag that has no effect here, or a model of another vocabulary than the task's.
    """
    task = task_of(settings)
    source = model_source(settings)
    if (source or task) and settings.tokenizer != type(settings).tokenizer:
        owner = f'the model in {source}' if source else f'--task={task.name}'
        raise InputError(f'--tokenizer={settings.tokenizer}: {owner} brings its own; leave it out')
    config = read_config(source) if source else None
    max_prompt, max_new_tokens = _lengths(settings, task, config)
    if source:
        tokenizer = read_tokenizer(source)
        if task and tokenizer.get_vocab() != word_tokenizer(task.words).get_vocab():
            raise InputError(f'--task={task.name}: the model in {source} was made for another vocabulary')
    elif task:
        tokenizer = word_tokenizer(task.words)
    else:
        tokenizer = _trained_tokenizer(settings, run.folder / 'tokenizer', texts)
    if settings.chat_template:
        set_chat_template(tokenizer, settings.chat_template)
    return Codec(
        tokenizer,
        max_prompt,
        max_new_tokens,
        ends=task.ends if task else True,
        truncate=settings.truncate,
        vocab_size=config.vocab_size if config else None,
        cut_off=task is not None,
    )


def _trained_tokenizer(settings, folder, texts):
    """The tokenizer in the run's folder, trained now where none can be read; written whole or not at all."""

    def is_there():
        if not (folder / 'tokenizer.json').exists():
            return False
        try:
            return read_tokenizer(folder) is not None
        except InputError as error:
            logging.warning('%s; it is trained anew', error)
            return False

    def train():
        temporary = folder.with_name(folder.name + '.tmp')
        for old in (temporary, folder):
            shutil.rmtree(old, ignore_errors=True)
        train_tokenizer(settings.tokenizer, texts(), template_tokens(settings.chat_template)).save_pretrained(temporary)
        temporary.rename(folder)

    if not from_first(is_there):
        on_first(train, 'tokenizer')
    return read_tokenizer(folder)


def _lengths(settings, task, config):
    """(longest prompt, longest response): what the flags say, or the task, or an even share of the context."""
    prompt, new = settings.max_prompt_tokens, settings.max_new_tokens
    if task:
        return prompt or task.max_prompt_tokens, new or task.max_new_tokens
    context = config.max_length if config else 2 * LONGEST
    rest = lambda other: max(1, min(LONGEST, context - (other or context // 2)))  # noqa: E731
    return prompt or rest(new), new or rest(prompt)


def model_source(settings: Settings) -> str:
    """The folder or hub id that the model comes from; empty for a new model."""
    if settings.init_from:
        if settings.model != type(settings).model:
            raise InputError(
                f'--model={settings.model}: has no effect beside --init_from={settings.init_from}; give one'
            )
        return str(model_folder(settings.init_from))
    if settings.model in SIZES:
        return ''
    if settings.model.count('/') != 1 and not Path(settings.model).is_dir():
        raise InputError(f'--model={settings.model}: no such folder, size ({", ".join(SIZES)}) or hub id (OWNER/NAME)')
    return settings.model


def model_folder(path: str, flag: str = 'init_from') -> Path:
    """Where a run folder, or one of its checkpoints, or a model folder, keeps config.json."""
    for folder in (Path(path) / 'model', Path(path), Path(path).parent.parent / 'model'):
        if (folder / 'config.json').exists():
            return folder
    raise InputError(f'--{flag}={path}: holds no model; give a run folder, its checkpoints/STEP, or a model folder')


def starting_model(settings: Settings, codec: Codec) -> tuple[ModelConfig, dict]:
    """Configuration and parameters to start from.

    Raises:
      InputError: the model has too small a vocabulary or context for the data.
    """
    config, params = _starting_model(settings, codec)
    params = place_state(settings, params)
    dtype = _kept_dtype(settings)
    if dtype is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    if _frozen(settings) and settings.base_dtype:
        params = place_state(settings, quantize_base(params, settings.base_dtype))
    return dataclasses.replace(config, dtype=settings.dtype, kernel=settings.attention), params


def _starting_model(settings, codec):
    source = model_source(settings)
    if not source:
        config = embedded_config(settings.model, vocab_size=len(codec.tokenizer), max_length=codec.max_length)
        return config, init_params(config, jax.random.key(settings.seed))
    if Path(settings.init_from).parent.name == 'checkpoints':
        config = read_config(source)
        params = checkpoint_params(settings.init_from)
    else:
        mesh = make_mesh(settings.mesh) if settings.backend == 'jit' else None
        config, params, _ = load_pretrained(source, mesh=mesh, dtype=_kept_dtype(settings))
    if 'backbone' in params:
        raise InputError(f'{source}: a reward model where a language model is needed')
    check_vocabulary(codec.tokenizer, config, source)
    if codec.max_length > config.max_length:
        raise InputError(
            f'--max_prompt_tokens={codec.max_prompt} --max_new_tokens={codec.max_new_tokens}: together more than the '
            f'{config.max_length} tokens that the model in {source} reads'
        )
    return config, params


def _kept_dtype(settings):
    """Of the parameters in memory; None: as they come. A frozen base need not be more exact than what it computes."""
    return settings.dtype if _frozen(settings) else getattr(settings, 'param_dtype', None)


def _frozen(settings):
    return isinstance(settings, LoRASettings) and settings.lora_rank > 0


def checkpoint_params(path: str):
    """The policy's parameters in checkpoints/STEP of a run folder."""
    folder = Path(path)
    state = Checkpoints(folder.parent).read(int(folder.name) if folder.name.isdigit() else -1)
    # PPO keeps the KL coefficient beside its state, and a value function beside its policy.
    state = state[0] if isinstance(state, list) and state else state
    params = state.get('params') if isinstance(state, dict) else None
    if not isinstance(params, dict):
        raise InputError(f'--init_from={path}: a checkpoint of something else than a language model')
    params = params.get('policy', params)
    if 'lora' in params:
        raise InputError(
            f'--init_from={path}: a checkpoint of --lora_rank, which holds the adapter alone; '
            'give the folder of the run once it has ended'
        )
    return params


def announce_model(run: Run, config, codec: Codec) -> None:
    """Writes all of model/ but weights, so that the run's checkpoints can be read before it has ended."""
    on_first(lambda: save_config(run.folder / 'model', config, codec.tokenizer), 'model folder')
