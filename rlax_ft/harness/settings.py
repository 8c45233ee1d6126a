"""Flags: each script has one frozen dataclass of settings, and every field of it is an absl flag with its help.

Bounds, choices, what a flag needs to have an effect, and whether it may change when a run resumes stand with the flag's
definition. A script's loop can so be called with plain values, and from the shell. Leaves out what settings are used
for; command_line.py reads them from the shell.
"""

import dataclasses
import inspect
from typing import ClassVar

from rlax_ft.errors import InputError
from rlax_ft.harness.flag_values import check_value
from rlax_ft.models.attention import KERNELS
from rlax_ft.models.quantized import KINDS


def flag(
    default,
    help_text: str,
    choices: tuple[str, ...] = (),
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    may_change: bool = False,
    needs: str = '',
    beside: str = '',
):
    """A field of a settings class that is also a flag.

    Args:
      default: its value when it is not given; its type is the flag's.
      help_text: for --help.
      choices: the values it may have; empty allows all.
      at_least, above, at_most: bounds of a number, which must be finite.
      may_change: a run that resumes may have another value.
      needs: another flag that must be set (differ from 0, False and '') for this one to have an effect, or NAME=VALUE:
        that must have this value.
      beside: another flag that must not be set for this one to have an effect.
    """
    metadata = dict(help=help_text, choices=choices, may_change=may_change, needs=needs, beside=beside)
    return dataclasses.field(default=default, metadata={**metadata, 'bounds': (at_least, above, at_most)})


_DTYPES = ('float32', 'bfloat16')


class Checked:
    """Settings whose values are checked when they are made."""

    def __post_init__(self):
        """Checks every value.

        Raises:
          InputError: naming the flag, what it was and what would be right.
        """
        for field in dataclasses.fields(self):
            check_value(self, field)


@dataclasses.dataclass(frozen=True)
class RunSettings(Checked):
    """What every script takes that writes a run folder."""

    group: ClassVar[str] = 'run'
    length: ClassVar[tuple[str, ...]] = ()  # The flags that say how long a run is.

    out: str = flag('', 'Run folder; when empty, a new one runs/SCRIPT. The same command resumes.', may_change=True)
    resume: bool = flag(True, 'Resume the run in --out. False starts anew; the old folder is renamed.', may_change=True)
    seed: int = flag(0, 'Seed of everything random: the same seed gives the same run.', at_least=0)

    @property
    def last_step(self) -> int | None:
        """The step that the run ends with; None where its flags do not say."""
        return None


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """What every script takes that trains in a loop."""

    group: ClassVar[str] = 'run'

    save_every: int = flag(200, 'Steps between checkpoints.', at_least=1, may_change=True)
    save_minutes: float = flag(
        10.0, 'Minutes after which a checkpoint is saved all the same; 0: by steps only.', at_least=0, may_change=True
    )
    skip_bad_steps: int = flag(
        0,
        'Steps with a loss or gradient that is not finite to skip, with a count; one more stops the run.',
        at_least=0,
        may_change=True,
    )
    report_to: str = flag(
        'tensorboard',
        'Where metrics go beside metrics.jsonl: tensorboard, wandb, trackio, several with commas; empty: nowhere else.',
        may_change=True,
    )


@dataclasses.dataclass(frozen=True)
class DeviceSettings:
    """Where it runs."""

    group: ClassVar[str] = 'devices'

    mesh: str = flag(
        '', 'Device mesh such as data=4,fsdp=2, or fsdp=-1 for all; empty puts all devices on data.', may_change=True
    )
    backend: str = flag('jit', 'jit over the mesh, or pmap over the local devices.', ('jit', 'pmap'), may_change=True)
    coordinator: str = flag(
        '',
        'HOST:PORT of process 0 of a run of several; srun, TPU slices and JAX_* variables need none.',
        may_change=True,
    )
    num_processes: int = flag(0, 'How many processes the run has.', at_least=0, may_change=True, needs='coordinator')
    process_id: int = flag(
        -1, 'Which of them this one is, from 0; -1: not given.', at_least=-1, may_change=True, needs='coordinator'
    )


@dataclasses.dataclass(frozen=True)
class ComputeSettings(DeviceSettings):
    """How a language model is computed."""

    group: ClassVar[str] = 'devices'

    dtype: str = flag('float32', 'Of activations, and of a frozen base; of what is trained: --param_dtype.', _DTYPES)
    attention: str = flag('auto', 'What computes attention; auto is what suits the platform.', KERNELS, may_change=True)


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The model to start from, and its tokenizer."""

    group: ClassVar[str] = 'model'

    model: str = flag('small', 'tiny, small, medium or large for a new model, or a Hugging Face folder or hub id.')
    init_from: str = flag('', 'Run folder, or its checkpoints/STEP, whose model to start from, in place of --model.')
    tokenizer: str = flag('bpe:2048', 'For a new model on --data: bytes, or bpe:SIZE trained on the data.')
    chat_template: str = flag('', "For message lists: plain, chatml or a file; empty: the tokenizer's own, or plain.")


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """What is learned from."""

    group: ClassVar[str] = 'data'

    task: str = flag('', 'Embedded task: reviews, exact or sort; reviews when there is no --data either.')
    data: str = flag(
        '',
        'Records: a .jsonl, .json, .csv or .tsv (also .gz, .zst) or .parquet file, a folder, or '
        "OWNER/NAME[:[CONFIG:]SPLIT] of the hub; with --task, in place of the task's own.",
    )
    max_prompt_tokens: int = flag(
        0, "Longest prompt in tokens; 0: the task's, or half of --model's context, at most 1024.", at_least=0
    )
    max_new_tokens: int = flag(0, 'Longest response in tokens, EOS included; 0: as --max_prompt_tokens.', at_least=0)
    truncate: bool = flag(True, 'Cut long prompts at the front and leave out records with long responses; else refuse.')


@dataclasses.dataclass(frozen=True)
class HeldOutSettings:
    """What is measured on."""

    group: ClassVar[str] = 'data'

    eval_data: str = flag(
        '', 'Records to measure on, as --data; when empty, a tenth of --data is held out.', needs='data'
    )


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """What is measured on samples of a policy, beside its training."""

    group: ClassVar[str] = 'evaluation'

    eval_every: int = flag(
        0, 'Steps between evaluations in training; 0 evaluates at the end only.', at_least=0, may_change=True
    )
    eval_prompts: int = flag(64, 'Held-out prompts of --data that an evaluation samples.', at_least=1)
    evaluate: str = flag('', 'MODULE:FUNCTION(records, completions) -> numbers, measured on those samples.')


@dataclasses.dataclass(frozen=True)
class ReferenceSettings:
    """Where the starting model is kept beside what is trained: as the reference, and for the KL of evaluations."""

    group: ClassVar[str] = 'devices'

    offload_reference: bool = flag(
        False,
        "Keep the reference in the host's memory, and on the devices for its passes only: in each step of ppo, grpo, "
        'online_dpo, --loss=kto and --sync_reference; else once over the data before the first, and in evaluations.',
        may_change=True,
        beside='lora_rank',
    )


@dataclasses.dataclass(frozen=True)
class LanguageSettings(ComputeSettings, ModelSettings, DataSettings, RunSettings):
    """What every script on language takes."""


@dataclasses.dataclass(frozen=True)
class LoRASettings:
    """An adapter in place of the whole model."""

    group: ClassVar[str] = 'adapter'

    lora_rank: int = flag(0, 'Train a low-rank adapter of this rank beside the frozen model; 0 trains all.', at_least=0)
    lora_alpha: float = flag(16.0, "The adapter's output is scaled by alpha / rank.", above=0, needs='lora_rank')
    lora_dropout: float = flag(
        0.0, "Share of the adapter's inputs that training sets to 0.", at_least=0, at_most=0.99, needs='lora_rank'
    )
    lora_targets: str = flag(
        'attention|mlp', 'Regular expression on what is adapted: attention/query ... mlp/down.', needs='lora_rank'
    )
    base_dtype: str = flag(
        '', 'Of the frozen model: int8 or nf4 (QLoRA); empty: as --dtype.', ('', *KINDS), needs='lora_rank'
    )
    rslora: bool = flag(False, 'Scale the adapter by alpha / sqrt(rank) instead.', needs='lora_rank')


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """How it is trained."""

    group: ClassVar[str] = 'optimiser'

    max_steps: int = flag(
        -1, 'Steps; -1: as many as --epochs make; 0 saves the starting model.', at_least=-1, may_change=True
    )
    epochs: float = flag(1.0, 'Passes over the data, where --max_steps does not say.', above=0, may_change=True)
    batch_size: int = flag(
        32, 'Rows (pairs, rankings, answers, prompts) in a step, over all devices together.', at_least=1
    )
    micro_batches: int = flag(
        1, 'Parts in which a step goes through its batch, to save memory.', at_least=1, may_change=True
    )
    optimizer: str = flag('adamw', 'adamw, adafactor, lion, muon, or MODULE:FUNCTION(learning_rate) of optax kind.')
    param_dtype: str = flag(
        'float32', 'Of what is trained; bfloat16 halves it, rounded at random.', _DTYPES, beside='lora_rank'
    )
    matmul_dtype: str = flag(
        '',
        "Of the products with the layers' dense matrices: fp8, on chips that multiply it; empty: as --dtype.",
        ('', 'fp8'),
        may_change=True,
        beside='base_dtype',
    )
    moment_dtype: str = flag(
        'float32',
        "Of the optimiser's moments: bfloat16 halves the memory of the first; int8 takes a quarter for all.",
        ('float32', 'bfloat16', 'int8'),
    )
    offload_optimizer: bool = flag(
        False, "Keep the optimiser's state in the host's memory between updates, for models that else do not fit."
    )
    learning_rate: float = flag(1e-5, 'Peak learning rate.', above=0)
    schedule: str = flag('linear', 'Learning rate over the run.', ('linear', 'cosine', 'constant'))
    schedule_steps: int = flag(
        0,
        'Steps over which the schedule runs, more than --max_steps where a run is to be made longer later; 0: those.',
        at_least=0,
        may_change=True,
    )
    warmup_steps: int = flag(0, 'Steps over which the learning rate rises to its peak.', at_least=0)
    clip_norm: float = flag(1.0, 'Largest norm of the gradient; 0 does not clip.', at_least=0)
    weight_decay: float = flag(0.0, 'Decoupled weight decay of matrices; norms and biases have none.', at_least=0)
    remat: str = flag(
        'none', 'What the backward pass computes again, to save memory.', ('none', 'dots', 'full'), may_change=True
    )
    profile_steps: str = flag('', 'FIRST:LAST, steps traced to profile/ in the run folder.', may_change=True)


@dataclasses.dataclass(frozen=True)
class Settings(OptimizerSettings, LoopSettings, LoRASettings, HeldOutSettings, LanguageSettings):
    """What every script takes that trains a language model."""

    length: ClassVar[tuple[str, ...]] = ('max_steps', 'epochs')

    @property
    def last_step(self) -> int | None:
        """The step that the run ends with; None where the number of records decides."""
        return self.max_steps if self.max_steps >= 0 else None

    def __post_init__(self):
        """Checks every value, and those that must fit together.

        Raises:
          InputError: naming the flag.
        """
        super().__post_init__()
        if self.batch_size % self.micro_batches:
            raise InputError(f'--micro_batches={self.micro_batches}: does not divide --batch_size={self.batch_size}')
        if self.schedule_steps and self.schedule == 'constant':
            raise InputError(f'--schedule_steps={self.schedule_steps}: has no effect with --schedule=constant')
        if self.max_steps >= 0 and self.epochs != _default(self, 'epochs'):
            raise InputError(f'--epochs={self.epochs}: has no effect beside --max_steps={self.max_steps}; give one')
        if isinstance(self, ComparisonSettings) and self.data:  # Only collect.py asks for judgements of --data.
            for name in inspect.get_annotations(ComparisonSettings):
                value = getattr(self, name, None)
                if name != 'group' and value != _default(self, name):
                    raise InputError(f'--{name}={value}: has no effect beside --data={self.data}; leave one out')


@dataclasses.dataclass(frozen=True)
class ComparisonSettings:
    """Comparisons that an annotator makes of samples, where an embedded task brings none."""

    group: ClassVar[str] = 'data'

    comparisons: int = flag(1024, 'With --task: how many prompts to have judged.', at_least=2)
    candidates: int = flag(4, 'With --task: completions of each prompt that the annotator ranks.', at_least=2)
    annotator: str = flag(
        'simulated',
        'With --task: who ranks them: simulated, a MODULE:FUNCTION(records, candidates), the run folder of a reward '
        "model, a language model as judge(model='FOLDER'), or, in collect.py and rlhf.py, human.",
    )
    annotator_noise: float = flag(
        1.0,
        'With --task: temperature of the simulated annotator; 0 never errs.',
        at_least=0,
        needs='annotator=simulated',
    )


@dataclasses.dataclass(frozen=True)
class FeedbackSettings(ComparisonSettings, Settings):
    """What every script takes that learns from comparisons; with --task they are collected first."""

    packing: bool = flag(False, 'Several pairs in a row of full length; --batch_size then counts such rows.')
    annotator_weights: str = flag(
        'equal',
        "How the votes of several annotators become a soft label: equally, or by each one's reliability.",
        ('equal', 'dawid_skene'),
    )


def flag_groups(settings_class: type) -> dict[str, str]:
    """The group of each flag, by name: that of the class which defines it first."""
    groups: dict[str, str] = {}
    for owner in reversed(settings_class.__mro__):
        for name in inspect.get_annotations(owner):
            groups.setdefault(name, owner.__dict__.get('group', 'algorithm'))
    return {field.name: groups[field.name] for field in dataclasses.fields(settings_class)}


def flag_lines(settings: RunSettings) -> list[str]:
    """The settings as lines of a flag file."""
    return [f'--{field.name}={getattr(settings, field.name)}' for field in dataclasses.fields(settings)]


def differing(settings: RunSettings, saved: list[str]) -> tuple[str, str, str] | None:
    """(name, value now, value saved) of the first flag that may not change and has; None where there is none."""
    before = {line[2:].partition('=')[0]: line.partition('=')[2] for line in saved if line.startswith('--')}
    for field in dataclasses.fields(settings):
        value = str(getattr(settings, field.name))
        if not field.metadata['may_change'] and before.get(field.name, value) != value:
            return field.name, value, before[field.name]
    return None


def _default(settings, name):
    return next(field.default for field in dataclasses.fields(settings) if field.name == name)
