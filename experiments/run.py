"""What every script sets up before its loop: the run folder, the codec, the model, the compiled step.

Leaves out the loops.
"""

import dataclasses
import importlib
import inspect
import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import jax
import settings as flags_of
from settings import RunSettings, Settings

from rlax_ft.data.batches import Codec
from rlax_ft.data.tasks import Task, get_task
from rlax_ft.data.tokenizers import train_tokenizer, word_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.models.config import SIZES, ModelConfig, embedded_config
from rlax_ft.models.hf import load_pretrained, read_config, save_config, save_pretrained
from rlax_ft.models.transformer import init_params
from rlax_ft.parallel.compile import PMAP_AXIS, compile_step
from rlax_ft.parallel.mesh import make_mesh, shard_batch, shard_state
from rlax_ft.training.checkpoint import Checkpoints
from rlax_ft.training.optimizer import make_optimizer
from rlax_ft.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Run:
    """An open run folder.

    Attributes:
      folder: of the run.
      checkpoints: under it.
      summary: what the run ended with, or None where it has not ended.
    """

    folder: Path
    checkpoints: Checkpoints
    summary: dict | None

    def finish(self, summary: dict) -> dict:
        """Writes summary.json, the last thing that a run does, and prints it."""
        self.checkpoints.close()
        write_json(self.folder / 'summary.json', summary)
        print(f'{self.folder}: ' + ', '.join(f'{k} {v:.4g}' for k, v in summary.items() if isinstance(v, int | float)))
        return summary


def open_run(settings: RunSettings, name: str) -> Run:
    """Opens the run folder, new or to be gone on with, and writes its flags.txt.

    Raises:
      InputError: the folder holds a run of other settings.
    """
    folder = Path(settings.out or f'runs/{name}')
    flags_file = folder / 'flags.txt'
    if flags_file.exists() and not settings.resume:
        number = next(n for n in range(1, 10_000) if not folder.with_name(f'{folder.name}.{n}').exists())
        folder.rename(folder.with_name(f'{folder.name}.{number}'))
    if folder.exists() and not folder.is_dir():
        raise InputError(f'--out={folder}: is a file; give a folder')
    checkpoints, summary_file = Checkpoints(folder / 'checkpoints'), folder / 'summary.json'
    saved = flags_file.read_text().splitlines() if flags_file.exists() else []
    summary = None
    if saved and (summary_file.exists() or checkpoints.latest_step() is not None):
        flags_of.check_same(settings, saved, folder)
        if summary_file.exists() and f'--{settings.length}={getattr(settings, settings.length)}' in saved:
            summary = json.loads(summary_file.read_text())
    elif saved and saved != flags_of.flag_lines(settings):
        # The run stopped before its first step, perhaps over a flag: what it had prepared goes.
        (folder / 'judgements.jsonl').unlink(missing_ok=True)
        shutil.rmtree(folder / 'tokenizer', ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(flags_file, '\n'.join(flags_of.flag_lines(settings)) + '\n')
    return Run(folder, checkpoints, summary)


def task_of(settings: Settings) -> Task | None:
    """The embedded task, or None where --data alone says what to learn."""
    return get_task(settings.task or 'reviews') if settings.task or not settings.data else None


def make_codec(settings: Settings, run: Run, texts) -> Codec:
    """Tokenizer and lengths: those of the starting model if it brings a tokenizer, of the task, or trained on `texts`.

    Args:
      settings: of the script.
      run: its folder; a tokenizer trained before is read from there.
      texts: called for the data's texts where a tokenizer must be trained.
    """
    task = task_of(settings)
    limits = {
        'max_prompt': settings.max_prompt_tokens or (task.max_prompt_tokens if task else 128),
        'max_new_tokens': settings.max_new_tokens or (task.max_new_tokens if task else 128),
        'ends': task.ends if task else True,
        'truncate': settings.truncate,
    }
    source = model_source(settings)
    if source:
        tokenizer = load_pretrained_tokenizer(source)
        if task and len(tokenizer) != len(word_tokenizer(task.words)):
            raise InputError(f'--task={task.name}: the model in {source} was made for another vocabulary')
    elif task:
        tokenizer = word_tokenizer(task.words)
    else:
        folder = run.folder / 'tokenizer'
        if not (folder / 'tokenizer.json').exists():
            train_tokenizer(settings.tokenizer, texts()).save_pretrained(folder)
        tokenizer = load_pretrained_tokenizer(folder)
    return Codec(tokenizer, **limits)


def model_source(settings: Settings) -> str:
    """The folder or hub id that the model comes from; empty for a new model."""
    if settings.init_from:
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


def load_pretrained_tokenizer(folder):
    """The tokenizer of a model folder.

    Raises:
      InputError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f'{folder}: no tokenizer that transformers can read ({str(error).splitlines()[0]})') from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def starting_model(settings: Settings, codec: Codec) -> tuple[ModelConfig, dict]:
    """Configuration and parameters to start from.

    Raises:
      InputError: the model has too small a vocabulary or context for the data.
    """
    config, params = _starting_model(settings, codec)
    params = place_state(settings, params)
    return config, params


def _starting_model(settings, codec):
    source = model_source(settings)
    if not source:
        config = embedded_config(settings.model, vocab_size=len(codec.tokenizer), max_length=codec.max_length)
        return config, init_params(config, jax.random.key(settings.seed))
    if Path(settings.init_from).parent.name == 'checkpoints':
        config = read_config(source)
        params = checkpoint_params(settings.init_from)
    else:
        config, params, _ = load_pretrained(source)
    if 'backbone' in params:
        raise InputError(f'{source}: a reward model where a language model is needed')
    if len(codec.tokenizer) > config.vocab_size:
        raise InputError(f'{source}: the tokenizer has {len(codec.tokenizer)} tokens, the model {config.vocab_size}')
    if codec.max_length > config.max_length:
        raise InputError(
            f'--max_prompt_tokens={codec.max_prompt} --max_new_tokens={codec.max_new_tokens}: together more than the '
            f'{config.max_length} tokens that the model in {source} reads'
        )
    return config, params


def checkpoint_params(path: str):
    """The policy's parameters in checkpoints/STEP of a run folder."""
    folder = Path(path)
    state = Checkpoints(folder.parent).read(int(folder.name) if folder.name.isdigit() else -1)
    # PPO keeps the KL coefficient beside its state, and a value function beside its policy.
    params = (state[0] if isinstance(state, list) else state)['params']
    return params.get('policy', params)


def train_setup(settings: Settings, objective, *, max_updates: int | None = None, eps: float = 1e-8):
    """(optimizer, compiled step) for an objective, as the flags say.

    Args:
      settings: of the script.
      objective: `loss_fn(params, batch, key)`.
      max_updates: length of the learning rate's schedule; --max_steps when absent.
      eps: Adam's epsilon.
    """
    optimizer = make_optimizer(
        settings.learning_rate,
        max_steps=max_updates or settings.max_steps,
        schedule=settings.schedule,
        warmup_steps=settings.warmup_steps,
        clip_norm=settings.clip_norm,
        eps=eps,
        weight_decay=settings.weight_decay,
    )
    pmap = settings.backend == 'pmap'
    step = make_train_step(
        objective, optimizer, micro_batches=settings.micro_batches, axis_name=PMAP_AXIS if pmap else None
    )
    mesh = None if pmap else make_mesh(settings.mesh)
    return optimizer, compile_step(step, mesh=mesh, backend=settings.backend)


def place_state(settings: Settings, state):
    """A state where the compiled step wants it: by path rules on the mesh, or whole on every device under pmap."""
    if settings.backend == 'pmap':
        return shard_state(state, make_mesh(), rules=())
    return shard_state(state, make_mesh(settings.mesh))


def resume(settings: Settings, run: Run, state):
    """(state, steps already done): as the newest checkpoint has it, or as given where there is none."""
    start = run.checkpoints.latest_step() or 0
    if start:
        state, _ = run.checkpoints.restore(state)
    return place_state(settings, state), start


def placement(settings: Settings):
    """How a batch that is sampled or scored goes to the devices: split over the mesh, under jit."""
    return partial(shard_batch, mesh=make_mesh(settings.mesh)) if settings.backend == 'jit' else lambda batch: batch


def load_loss(settings: Settings, name: str, module: str, arguments: str = '', **given):
    """The loss that --loss names, with the hyperparameters that it takes bound.

    Args:
      settings: of the script; a loss that takes `axis_name` reads the whole batch, over all devices.
      name: of a function in `module`, without its `_loss`; or `my_module:my_loss`, found from the working directory.
      module: such as rlax_ft.losses.preference.
      arguments: further hyperparameters as text, `label_smoothing=0.1,gamma=0.5`.
      **given: hyperparameters from flags; those that the loss does not take are left out.

    Raises:
      InputError: no such loss, or an argument that it does not take.
    """
    if ':' in name:
        loss = find_function(name, 'loss')
    else:
        home = importlib.import_module(module)
        known = [n[:-5] for n, _ in inspect.getmembers(home, inspect.isfunction) if n.endswith('_loss')]
        if name not in known:
            raise InputError(f'--loss={name}: no such loss; use MODULE:FUNCTION or one of {", ".join(known)}')
        loss = getattr(home, f'{name}_loss')
    takes = inspect.signature(loss).parameters
    bound = {key: value for key, value in given.items() if key in takes}
    if 'axis_name' in takes:
        if settings.micro_batches > 1:
            raise InputError(f'--micro_batches={settings.micro_batches}: --loss={name} reads the whole batch; give 1')
        bound['axis_name'] = PMAP_AXIS if settings.backend == 'pmap' else None
    for part in filter(None, arguments.split(',')):
        key, _, value = part.partition('=')
        if key not in takes:
            raise InputError(f'--loss_args={arguments}: {name} takes no {key!r}; it takes {", ".join(list(takes)[1:])}')
        bound[key] = _parse_value(value)
    return partial(loss, **bound)


def find_function(name: str, flag: str):
    """The function that MODULE:FUNCTION names; modules are looked up in the working directory, too.

    Raises:
      InputError: there is none.
    """
    module, _, attribute = name.rpartition(':')
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f'--{flag}={name}: {error}; give MODULE:FUNCTION') from error


def announce_model(run: Run, config, codec: Codec) -> None:
    """Writes all of model/ but weights, so that the run's checkpoints can be read before it has ended."""
    save_config(run.folder / 'model', config, codec.tokenizer)


def export_model(run: Run, config, params, codec: Codec) -> None:
    """Writes the run's model/ as a folder that transformers opens."""
    save_pretrained(run.folder / 'model', config, params, codec.tokenizer)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, value) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + '\n')


def _parse_value(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
