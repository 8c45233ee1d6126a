"""Flags: each script has one frozen dataclass of settings, and every field of it is an absl flag with its help.

A script's loop can so be called from another script with plain values, and from the shell with flags. Leaves out
what the settings are used for.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import ClassVar

import jax
from absl import app, flags, logging

from rlax_ft.errors import InputError
from rlax_ft.models.attention import KERNELS
from rlax_ft.parallel.mesh import start_distributed


def flag(default, help_text: str, choices: tuple[str, ...] = ()):
    """A field of a settings class that is also a flag."""
    return dataclasses.field(default=default, metadata={'help': help_text, 'choices': choices})


_DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What every script takes, whatever it trains."""

    length: ClassVar[str] = 'max_steps'  # The flag that says how long a run is.

    out: str = flag('', 'Run folder; runs/SCRIPT when empty. A run that was stopped goes on where it was.')
    resume: bool = flag(True, 'Go on with the run in --out. False starts again; the old folder is moved aside.')
    seed: int = flag(0, 'Seed of everything random: the same seed gives the same run.')
    mesh: str = flag('', 'Device mesh such as data=4,fsdp=2; empty puts all devices on data.')
    backend: str = flag('jit', 'jit over the mesh, or pmap over the local devices.', ('jit', 'pmap'))


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """What every script on language takes."""

    task: str = flag('', 'Embedded task: reviews, exact or sort; reviews when there is no --data either.')
    data: str = flag(
        '',
        'Records to learn from: a .jsonl, .json (both also .gz) or .parquet file, or OWNER/NAME[:[CONFIG:]SPLIT] of '
        "the hub; with --task, in place of the task's own.",
    )
    eval_data: str = flag('', 'The same, to measure on; when empty, a tenth of --data is held out.')
    model: str = flag('small', 'tiny, small, medium or large for a new model, or a Hugging Face folder or hub id.')
    init_from: str = flag('', 'Run folder, or its checkpoints/STEP, whose model to start from, in place of --model.')
    dtype: str = flag('float32', 'Of activations, and of a frozen base; what is trained stays float32.', _DTYPES)
    attention: str = flag('auto', 'What computes attention; auto is what suits the platform.', KERNELS)
    remat: str = flag('none', 'What the backward pass computes again, to save memory.', ('none', 'dots', 'full'))
    lora_rank: int = flag(0, 'Train a low-rank adapter of this rank beside the frozen model; 0 trains all of it.')
    lora_alpha: float = flag(16.0, "The adapter's output is scaled by alpha / rank.")
    lora_dropout: float = flag(0.0, "Share of the adapter's inputs that training sets to 0.")
    lora_targets: str = flag('attention|mlp', 'Regular expression on what is adapted: attention/query ... mlp/down.')
    rslora: bool = flag(False, 'Scale the adapter by alpha / sqrt(rank) instead.')
    tokenizer: str = flag('bpe:2048', 'For a new model on --data: bytes, or bpe:SIZE trained on the data.')
    chat_template: str = flag('', "For message lists: plain, chatml or a file; empty: the tokenizer's own, or plain.")
    max_prompt_tokens: int = flag(
        0, 'Longest prompt in tokens; 0: as the task needs, 256, or half of a shorter context.'
    )
    max_new_tokens: int = flag(0, 'Longest response in tokens, EOS included; 0: the same.')
    truncate: bool = flag(True, 'Cut long prompts at the front and leave out records with long responses; else refuse.')
    max_steps: int = flag(1000, 'Number of training steps; 0 saves the starting model.')
    batch_size: int = flag(64, 'Rows (pairs, rankings, prompts) in a step, over all devices together.')
    micro_batches: int = flag(1, 'Parts in which a step goes through its batch, to save memory; never changes results.')
    learning_rate: float = flag(1e-3, 'Peak learning rate of AdamW.')
    schedule: str = flag('linear', 'Learning rate over the run.', ('linear', 'cosine', 'constant'))
    warmup_steps: int = flag(0, 'Steps over which the learning rate rises to its peak.')
    clip_norm: float = flag(1.0, 'Largest norm of the gradient; 0 does not clip.')
    weight_decay: float = flag(0.0, "AdamW's decoupled weight decay.")
    save_every: int = flag(200, 'Steps between checkpoints.')
    eval_every: int = flag(0, 'Steps between evaluations during training; 0 evaluates at the end only.')
    profile_steps: str = flag('', 'FIRST:LAST, steps of which a trace is written to profile/ in the run folder.')


@dataclasses.dataclass(frozen=True)
class FeedbackSettings(Settings):
    """Flags of every script that learns from comparisons; with --task they are collected first."""

    comparisons: int = flag(1024, 'With --task: how many prompts to have judged.')
    candidates: int = flag(4, 'With --task: completions of each prompt that the annotator ranks.')
    packing: bool = flag(False, 'Several pairs in a row of full length; --batch_size then counts such rows.')
    annotator_noise: float = flag(1.0, 'With --task: temperature of the simulated annotator; 0 never errs.')


# A resumed run may go on longer, on other devices, and save more or less often; nothing else of it may change.
_MAY_CHANGE = {'out', 'resume', 'max_steps', 'mesh', 'backend', 'micro_batches', 'save_every', 'eval_every'}
_MAY_CHANGE |= {'profile_steps', 'remat', 'attention'}
_MAY_CHANGE |= {'total_steps', 'log_every', 'eval_episodes', 'eval_mode', 'render'}


def flag_lines(settings: RunSettings) -> list[str]:
    """The settings as lines of a flag file."""
    return [f'--{field.name}={getattr(settings, field.name)}' for field in dataclasses.fields(settings)]


def check_same(settings: RunSettings, saved: list[str], path) -> None:
    """Refuses to go on with a run under other settings.

    Raises:
      InputError: naming the first flag that differs.
    """
    before = dict(line[2:].split('=', 1) for line in saved if line.startswith('--'))
    for line in flag_lines(settings):
        name, value = line[2:].split('=', 1)
        if name in before and name not in _MAY_CHANGE and before[name] != value:
            raise InputError(
                f'--{name}={value}: the run in {path} was begun with --{name}={before[name]}; '
                'give that, another --out, or --resume=false to start again'
            )


def run_script(settings_class: type[RunSettings], main: Callable[[RunSettings], object]) -> None:
    """Defines the flags, parses the command line and calls `main`; a user's mistake is one line and exit code 2."""
    define = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
    for field in dataclasses.fields(settings_class):
        arguments = dict(name=field.name, default=field.default, help=field.metadata['help'], module_name=sys.argv[0])
        if field.metadata['choices']:
            flags.DEFINE_enum(enum_values=list(field.metadata['choices']), **arguments)
        else:
            define[type(field.default)](**arguments)

    def parse(argv):
        try:
            rest = flags.FLAGS(argv)
            if rest[1:]:
                raise flags.Error(f'found {rest[1]!r}, which is no flag; flags are --name=value')
            return rest
        except flags.Error as error:
            _fail(error)

    def run(_):
        logging.set_verbosity(max(flags.FLAGS.verbosity, -1) if flags.FLAGS['verbosity'].present else logging.WARNING)
        values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(settings_class)}
        _cache_compilations()
        start_distributed()
        try:
            settings = settings_class(**values)
            _check_numbers(settings)
            main(settings)
        except InputError as error:
            _fail(error)

    app.run(run, flags_parser=parse)


def _cache_compilations():
    # A program that was compiled once is read from disk the next time, in this run or another.
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    jax.config.update('jax_compilation_cache_dir', os.path.join(home, 'rlax_ft', 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def _check_numbers(settings):
    smallest = {'batch_size': 1, 'micro_batches': 1, 'save_every': 1, 'max_steps': 0, 'eval_every': 0, 'lora_rank': 0}
    smallest |= dict.fromkeys(('num_envs', 'num_steps', 'num_seeds', 'epochs', 'minibatches', 'eval_episodes'), 1)
    for field in dataclasses.fields(settings):
        value, least = getattr(settings, field.name), smallest.get(field.name)
        if least is not None and value < least:
            raise InputError(f'--{field.name}={value}: must be at least {least}')
    if not isinstance(settings, Settings):
        return
    if not 0 <= settings.lora_dropout < 1:
        raise InputError(f'--lora_dropout={settings.lora_dropout}: must be at least 0 and below 1')
    if settings.batch_size % settings.micro_batches:
        raise InputError(
            f'--micro_batches={settings.micro_batches}: does not divide --batch_size={settings.batch_size}'
        )


def _fail(error):
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    sys.exit(2)
