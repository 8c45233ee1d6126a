"""Mutated command lines: each is taken, or refused in one line that a user can act on.

What a script does with its flags before it reads data is done here in this process: parsing, flag files, the loss, the
reward, the mesh, what must fit together.
"""

import dataclasses
import random
from pathlib import Path
from types import SimpleNamespace

import jax

from rlax_ft.errors import InputError
from rlax_ft.harness.command_line import help_text, parse
from rlax_ft.harness.conversations import text_environment
from rlax_ft.harness.env_setup import agent_for, boundaries, check, hyper_of, layout_of, make_envs, runs_of
from rlax_ft.harness.grid import parse_methods, parse_numbers, parse_rewards
from rlax_ft.harness.group_setup import make_loss
from rlax_ft.harness.learner import lora_config
from rlax_ft.harness.loading import check_pair_loss, check_token_loss, find_function, load_loss, load_script
from rlax_ft.harness.rewards import make_reward
from rlax_ft.harness.rollouts import check_groups
from rlax_ft.harness.step import compile_training
from rlax_ft.models.lora import init_adapter
from rlax_ft.parallel.mesh import make_mesh

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    'sft': 'SFTSettings',
    'collect': 'CollectSettings',
    'reward_model': 'RewardModelSettings',
    'dpo': 'DPOSettings',
    'ppo': 'PPOSettings',
    'rlhf': 'RLHFSettings',
    'grpo': 'GRPOSettings',
    'kto': 'KTOSettings',
    'online_dpo': 'OnlineDPOSettings',
    'distill': 'DistillSettings',
    'converse': 'ConverseSettings',
    'evaluate': 'EvaluateSettings',
    'compare': 'CompareSettings',
    'collect_feedback': 'CollectFeedbackSettings',
    'feedback_report': 'ReportSettings',
    'ppo_env': 'EnvSettings',
    'inspect_data': 'InspectSettings',
}

_NUMBERS = ['-1', '0', '1', '2', '3', '7', '-0', '0.5', '1e-9', '1e38', '1e400', '-1e38', 'nan', 'inf', '-inf', 'NaN']
_ODD = ['', ' ', '0x10', '1_000', '٣', '1e', '--', '=', ':', '::', 'a:b', '.', '..', '/', '~', '\x00', '\ud83d', '\n']
_NAMES = [
    'true',
    'None',
    'null',
    '[]',
    '{}',
    'os:getcwd',
    'math:floor',
    'sys:path',
    'no.such:thing',
    'x.py:f',
    '%s',
    'calculator',
    'grid_words',
    'gold',
    'self',
    'math=a,code=b',
    'a=,=b',
    'length=0.5,maths',
]
_WORDS = ['x' * 5000, '9' * 400, 'data=8', 'data=-1', 'data=2,data=2', 'fsdp=99', 'tensor=x', 'attention(', '(a+)+$']
_LOSS_ARGS = [
    'clip_low=abc',
    'clip_low=nan',
    'clip_high=-1',
    'logps=1',
    'gamma=0.5',
    'beta=2',
    '=1',
    'label_smoothing=2',
]
_LISTS = ['64,64', '64,,64', ',', '0', '-1', '1e-4,1e-3', 'a', '1e-4,nan', '99999999999', '0,0']
VALUES = [*_NUMBERS, *_ODD, *_NAMES, *_WORDS, *_LOSS_ARGS, *_LISTS]


def mutation(rng: random.Random, workdir: Path) -> str:
    """One mutated command line: `fine`, or `one line` where it is refused.

    Args:
      rng: decides what.
      workdir: a folder for files.

    Raises:
      Exception: a fault, which is any error but an InputError.
    """
    script = rng.choice(list(SCRIPTS))
    settings_class = getattr(load_script(ROOT / f'experiments/{script}.py'), SCRIPTS[script])
    arguments = [_argument(rng, settings_class) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.2:
        arguments = [f'--flagfile={_flag_file(rng, Path(workdir), arguments)}']
    try:
        settings = parse(settings_class, arguments)
        try_settings(script, settings)
        help_text(settings_class, '')
    except InputError as error:
        line = ' '.join(str(error).split())  # As run_script prints it.
        assert line, f'{script} {arguments}: an error without a word'
        return 'one line'
    return 'fine'


def try_settings(script: str, settings) -> None:
    """What the script does with its flags alone."""
    module = load_script(ROOT / f'experiments/{script}.py')
    if script == 'ppo_env':
        _try_environment(settings)
        return
    if hasattr(settings, 'mesh'):
        make_mesh(settings.mesh)
    if getattr(settings, 'evaluate', ''):
        find_function(settings.evaluate, 'evaluate')
    if script in NEWER:
        NEWER[script](module, settings)
        return
    if script in ('dpo', 'reward_model', 'ppo'):
        by_rank = module.check(settings)
        if script == 'dpo' and not by_rank:
            home = 'rlax_ft.losses.preference'
            check_pair_loss(
                load_loss(settings, settings.loss, home, settings.loss_args, beta=settings.beta), settings.loss
            )
    if script == 'ppo':
        check_groups(settings)
        home = 'rlax_ft.losses.policy_gradient'
        check_token_loss(load_loss(settings, settings.loss, home, settings.loss_args), settings.loss)
        if settings.reward != 'gold':
            make_reward(settings.reward, None, None)
    if hasattr(settings, 'optimizer'):
        _try_optimizer(settings)


def _try_groups(module, settings):
    module.check(settings)
    make_loss(settings)
    if settings.env:
        text_environment(settings.env)
    elif settings.reward != 'gold':
        make_reward(settings.reward, None, None)
    _try_optimizer(settings)


def _try_online(module, settings):
    module.check(settings)
    module.make_objective(settings, SimpleNamespace(apply=None))
    if settings.reward != 'gold':
        make_reward(settings.reward, None, None)
    _try_optimizer(settings)


def _try_checked(module, settings):
    module.check(settings)
    if hasattr(settings, 'optimizer'):
        _try_optimizer(settings)


def _try_conversations(module, settings):
    env = text_environment(settings.env)
    if settings.demonstrations:
        env.demonstrations(min(settings.demonstrations, 8), settings.seed)
    elif settings.conversations < 1000:
        module.conversation_records(settings, env)


def _try_evaluation(module, settings):
    module.check(settings)
    if settings.pass_at:
        parse_numbers(settings.pass_at, 'pass_at', above=0, whole=True)
    for name in filter(None, (settings.judge, settings.reward)):
        find_function(name, 'judge')


def _try_grid(module, settings):
    parse_numbers(settings.sizes, 'sizes', above=1, whole=True)
    parse_numbers(settings.at_kl, 'at_kl', above=0.0)
    parse_methods(settings.methods, module.HERE, parse_numbers(settings.betas, 'betas', above=0.0))
    parse_rewards(settings.reward_models, module.HERE)


# What the scripts do that stand for algorithms of their own, or train nothing.
NEWER = {
    'grpo': _try_groups,
    'kto': _try_checked,
    'online_dpo': _try_online,
    'distill': _try_checked,
    'converse': _try_conversations,
    'evaluate': _try_evaluation,
    'compare': _try_grid,
    'collect_feedback': _try_checked,
    'feedback_report': lambda module, settings: None,
}


def _try_optimizer(settings):
    compile_training(settings, lambda params, batch, key: (0.0, {}))[0].init({'kernel': jax.numpy.ones((2, 2))})
    if settings.lora_rank and settings.lora_rank < 100:
        kernel = jax.ShapeDtypeStruct((1, 4, 4), 'float32')
        params = {'layers': {'attention': {'query': {'kernel': kernel}}}}
        init_adapter(params, lora_config(settings), jax.random.key(0))


def _try_environment(settings):
    """As ppo_env.py, on environments of few steps: the sizes are not what is tried."""
    check(settings)
    runs = runs_of(settings)
    layout_of(settings)
    hyper_of(runs)
    home = 'rlax_ft.losses.policy_gradient'
    check_token_loss(load_loss(settings, settings.loss, home, settings.loss_args), settings.loss)
    if settings.updates < 1e5:
        boundaries(settings, 0)
    if len(runs) * settings.num_envs < 1000:
        agent_for(settings, make_envs(settings))


def _argument(rng, settings_class):
    """A flag with a value of the list, or of its own mutated, or no flag at all."""
    field = rng.choice(dataclasses.fields(settings_class))
    kind = rng.random()
    if kind < 0.03:
        return rng.choice(['x', '--', '-', '--=', '--no', f'--{field.name}', f'-{field.name}', f'--no{field.name}'])
    if kind < 0.15:
        choices = [*field.metadata['choices'], str(field.default)]
        text = list(rng.choice(choices))
        text.insert(rng.randint(0, len(text)), rng.choice('0-.,:=/ xé'))
        return f'--{field.name}={"".join(text)}'
    return f'--{field.name}={rng.choice(VALUES)}'


def _flag_file(rng, folder, arguments):
    path = folder / 'mutated.flags'
    lines = [*arguments, *rng.choice([[], ['# a comment'], ['', '  '], [f'--flagfile={path}'], ['--flagfile=nowhere']])]
    text = '\n'.join(lines).encode('utf-8', 'surrogatepass')
    path.write_bytes(text if rng.random() < 0.8 else text + rng.randbytes(8))
    return path
