"""Methods over betas, seeds and amounts of comparisons: which runs a comparison consists of, and with which flags.

Leaves out measuring and drawing (policies.py, evaluate/).
"""

import dataclasses
import itertools
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from rlax_ft.errors import InputError
from rlax_ft.harness.command_line import parse
from rlax_ft.harness.stages import Stage, make_stage, samples_per_step, script_parts, seconds_used, takes
from rlax_ft.rewards.learned import load_reward_model
from rlax_ft.training.metrics import read_records

# Steps of the trial that says how many fit into a budget of seconds; the first of them compile.
_TRIAL_STEPS, _COMPILING = 8, 3


@dataclasses.dataclass(frozen=True)
class Method:
    """A script with a recipe.

    Attributes:
      label: in tables and figures.
      script: its file.
      recipe: its flag file.
      betas: weights of the KL term, each a run.
    """

    label: str
    script: Path
    recipe: Path
    betas: tuple[float, ...]

    def learns_from_comparisons(self) -> bool:
        """Whether comparisons are its data."""
        return takes(script_parts(self.script)[1], 'comparisons')

    def uses_reward(self) -> bool:
        """Whether it asks a reward model: what samples does, and what takes its labels from one."""
        settings_class = script_parts(self.script)[1]
        if not takes(settings_class, 'reward'):
            return False
        if not takes(settings_class, 'labels'):
            return True
        settings: Any = parse(settings_class, [f'--flagfile={self.recipe}'])
        return settings.labels == 'preference_model'


def parse_methods(text: str, experiments: Path, betas: tuple[float, ...]) -> list[Method]:
    """The methods of `[LABEL=]SCRIPT:RECIPE[@BETA+BETA..]`, several with commas between.

    Args:
      text: of --methods.
      experiments: the folder of scripts, and of recipes/.
      betas: of methods that name none.

    Raises:
      InputError: a part of another form, a script or recipe that is not there, or a label that stands there twice.
    """
    methods = []
    for part in filter(None, map(str.strip, text.split(','))):
        match = re.fullmatch(r'(?:(?P<label>[^=]+)=)?(?P<script>[^:@=]+):(?P<recipe>[^@]+)(?:@(?P<betas>.+))?', part)
        if match is None:
            raise InputError(
                f'--methods={text}: {part!r} is no [LABEL=]SCRIPT:RECIPE[@BETA+BETA], such as ppo:reviews_ppo'
            )
        script, recipe = Path(match['script']), find_recipe(match['recipe'], experiments, 'methods')
        script = script if script.suffix == '.py' else experiments / f'{script}.py'
        if not script.is_file():
            raise InputError(f'--methods={text}: no script {script}; give the name of one, such as ppo, or a .py file')
        if not takes(script_parts(script)[1], 'beta'):
            raise InputError(f'--methods={text}: {script.name} has no --beta, so it has no curve over KL')
        own = parse_numbers(match['betas'].replace('+', ','), 'methods', above=0.0) if match['betas'] else betas
        methods.append(Method(match['label'] or recipe.stem, script, recipe, own))
    labels = [method.label for method in methods]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f'--methods={text}: {label!r} stands there twice; give LABEL=SCRIPT:RECIPE')
    if not methods:
        raise InputError('--methods: give at least one, such as PPO=ppo:reviews_ppo')
    return methods


@dataclasses.dataclass(frozen=True)
class RewardRecipe:
    """A reward model that is trained from each size and seed of comparisons.

    Attributes:
      label: in tables and figures.
      recipe: flag file of reward_model.py.
      reduction: of an ensemble: mean, min or lcb=K; '' for a single model.
    """

    label: str
    recipe: Path
    reduction: str = ''

    def folder(self, home: Path) -> Path:
        """Its run folder beside the comparisons; several reductions share one."""
        return home / slug(self.recipe.stem)

    def flag(self, home: Path) -> str:
        """What --reward takes."""
        return f'{self.folder(home)}:{self.reduction}' if self.reduction else str(self.folder(home))

    def load(self, home: Path):
        """The trained model, as a function of rows."""
        how = {'reduction': self.reduction} if self.reduction else {}
        return load_reward_model(self.folder(home) / 'model', **how)[0]


def parse_rewards(text: str, experiments: Path) -> list[RewardRecipe]:
    """The reward models of `[LABEL=]RECIPE[:REDUCTION]`, several with commas between.

    Raises:
      InputError: a recipe that is not there, or a label that stands there twice.
    """
    found: list[RewardRecipe] = []
    for part in filter(None, map(str.strip, text.split(','))):
        match = re.fullmatch(r'(?:(?P<label>[^=:]+)=)?(?P<recipe>[^:]+)(?::(?P<reduction>.+))?', part)
        if match is None:
            raise InputError(f'--reward_models={text}: {part!r} is no [LABEL=]RECIPE[:REDUCTION]')
        recipe, reduction = find_recipe(match['recipe'], experiments, 'reward_models'), match['reduction'] or ''
        label = match['label'] or ' '.join(filter(None, (recipe.stem, reduction)))
        if label in [other.label for other in found]:
            raise InputError(f'--reward_models={text}: {label!r} stands there twice; give LABEL=RECIPE')
        found.append(RewardRecipe(label, recipe, reduction))
    return found


def find_recipe(name: str, experiments: Path, flag: str) -> Path:
    """A flag file by its path, or by its name in recipes/.

    Raises:
      InputError: there is none.
    """
    paths = [Path(name), experiments / 'recipes' / name, experiments / 'recipes' / f'{name}.flags']
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise InputError(f'--{flag}: no flag file {name}, neither as a path nor in {experiments / "recipes"}')
    return found


def parse_numbers(text: str, flag: str, *, above: float, whole: bool = False) -> tuple:
    """Numbers with commas between.

    Raises:
      InputError: one of them is none, is out of bounds, or stands there twice; or there is none at all.
    """
    numbers = []
    for part in filter(None, map(str.strip, text.split(','))):
        try:
            number = int(part) if whole else float(part)
        except ValueError as error:
            kind = 'whole number' if whole else 'number'
            raise InputError(f'--{flag}={text}: {part!r} is no {kind}; give them with commas between') from error
        if not above < number < float('inf'):
            raise InputError(f'--{flag}={text}: {part} must be a finite number above {above:g}')
        if number in numbers:
            raise InputError(f'--{flag}={text}: {part} stands there twice')
        numbers.append(number)
    if not numbers:
        raise InputError(f'--{flag}: give at least one number')
    return tuple(numbers)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of the grid.

    Attributes:
      label: of the method, with its reward model where there are several.
      method: what runs.
      reward: the reward model that it asks, or that it is scored by where it asks none.
      asks: whether it asks.
      size: number of comparisons.
      seed: of the run.
      beta: weight of the KL term.
    """

    label: str
    method: Method
    reward: RewardRecipe
    asks: bool
    size: int
    seed: int
    beta: float

    @property
    def place(self) -> Path:
        """Where it is kept, within the folder of the comparison."""
        return data_folder(Path(), self.size, self.seed) / slug(self.label) / f'beta_{self.beta:g}'

    def record(self) -> dict:
        """What names its results."""
        names = {'method': self.label, 'size': self.size, 'seed': self.seed, 'beta': self.beta}
        return {**names, 'reward_model': self.reward.label, 'folder': str(self.place)}

    def salt(self) -> int:
        """A number of its own, for random keys: the same whatever else is in the grid."""
        return zlib.crc32(str(self.place).encode())


def make_jobs(methods: list[Method], rewards: list[RewardRecipe], sizes: tuple, seeds: range) -> list[Job]:
    """All runs, a method's side by side; a method that asks a reward model runs with each."""
    jobs = []
    for method in methods:
        asks = method.uses_reward()
        for reward in rewards if asks else rewards[:1]:
            label = f'{method.label}, {reward.label}' if asks and len(rewards) > 1 else method.label
            runs = itertools.product(sizes, seeds, method.betas)
            jobs += [Job(label, method, reward, asks, size, seed, beta) for size, seed, beta in runs]
    return jobs


def data_folder(out: Path, size: int, seed: int) -> Path:
    """Where what is learned from so many comparisons is kept."""
    return out / f'comparisons_{size}' / f'seed_{seed}'


def slug(label: str) -> str:
    """A label as a folder's name."""
    return re.sub(r'[^\w.-]+', '_', label)


def job_stage(job: Job, out: Path, start: Path, shared: dict) -> Stage:
    """The run of a job, from the common start.

    Args:
      job: of the grid.
      out: folder of the comparison.
      start: run folder of the reference.
      shared: flags that every stage is given.
    """
    home = data_folder(out, job.size, job.seed)
    given = {**shared, 'init_from': start, 'seed': job.seed, 'beta': job.beta, 'out': out / job.place}
    if job.method.learns_from_comparisons():
        given['data'] = home / 'feedback/judgements.jsonl'
    stage = make_stage(job.label, job.method.script, job.method.recipe, **given)
    # Before the recipe, whose own reward counts.
    reward = [f'--reward={job.reward.flag(home)}'] if job.asks else []
    return dataclasses.replace(stage, arguments=(*reward, *stage.arguments))


def budgeted(stage: Stage, trial: Path, *, samples: int = 0, seconds: float = 0.0, cap: int = 0) -> Stage:
    """The stage with as many steps as fit into every budget, at least 1; as it is where there is none.

    Args:
      stage: whose step is looked at.
      trial: run folder of the short run that is timed where seconds are given; it is timed once.
      samples: completions to learn from; 0 is no budget.
      seconds: of training; 0 is no budget.
      cap: most steps; 0 is no cap.
    """
    budgets = []
    if samples:
        budgets.append(samples // samples_per_step(stage.settings()))
    if seconds:
        if not (trial / 'summary.json').exists():
            stage.with_flags(out=trial, max_steps=_TRIAL_STEPS).run()
        records = read_records(trial / 'metrics.jsonl')[_COMPILING:]
        budgets.append(int(seconds / np.mean([record['perf/step_seconds'] for record in records])))
    if cap:
        own: Any = stage.settings()  # Of a script that trains, so it has --max_steps.
        budgets.append(cap if budgets or own.max_steps < 0 else min(cap, own.max_steps))
    return stage.with_flags(max_steps=max(min(budgets), 1)) if budgets else stage


def used(folder: Path, stage: Stage) -> dict[str, float]:
    """`steps`, `samples` (completions learned from) and `seconds` (of its steps) of a run that has ended."""
    records = read_records(folder / 'metrics.jsonl')
    steps = records[-1]['step'] if records else 0
    return {'steps': steps, 'samples': steps * samples_per_step(stage.settings()), 'seconds': seconds_used(folder)}
