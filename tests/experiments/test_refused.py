"""What flags and records show to be wrong before anything is sampled or compiled, in every script that takes them."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlax_ft.errors import InputError
from rlax_ft.harness.command_line import parse
from rlax_ft.harness.comparisons import check_alone
from rlax_ft.harness.loading import check_pair_loss, check_token_loss, load_loss, load_script
from rlax_ft.harness.rewards import make_reward

SCRIPTS = Path(__file__).parents[2] / 'experiments'
SETTINGS = {
    'dpo': 'DPOSettings',
    'ppo': 'PPOSettings',
    'grpo': 'GRPOSettings',
    'kto': 'KTOSettings',
    'online_dpo': 'OnlineDPOSettings',
    'ppo_env': 'EnvSettings',
    'distill': 'DistillSettings',
    'sft': 'SFTSettings',
    'collect': 'CollectSettings',
}


def checked(script, *arguments):
    """What the script does with its flags before it opens a folder."""
    module = load_script(SCRIPTS / f'{script}.py')
    settings = parse(getattr(module, SETTINGS[script]), [f'--{argument}' for argument in arguments])
    module.check(settings)
    home = 'policy_gradient' if script in ('ppo', 'grpo') else 'preference'
    if script in ('ppo', 'grpo', 'dpo') and settings.loss != 'plackett_luce':
        loss = load_loss(settings, settings.loss, f'rlax_ft.losses.{home}', settings.loss_args)
        (check_pair_loss if script == 'dpo' else check_token_loss)(loss, settings.loss)
    if script == 'online_dpo':
        module.make_objective(settings, SimpleNamespace(apply=None))


@pytest.mark.parametrize(
    ('script', 'arguments', 'message'),
    [
        ('dpo', ['loss=plackett_luce', 'labels=preference_model'], '--labels=preference_model: .*no use for it'),
        ('dpo', ['loss=plackett_luce', 'nll_coef=0.5'], '--nll_coef=0.5: .*no use for it'),
        ('dpo', ['loss=plackett_luce', 'wpo'], '--wpo=True: .*no use for it'),
        ('dpo', ['reward=x'], '--reward=x: is read by --labels=preference_model only'),
        ('online_dpo', ['loss=plackett_luce', 'judgement=soft'], '--judgement=soft: compares two answers'),
        ('online_dpo', ['loss=plackett_luce', 'nll_coef=1'], '--nll_coef=1.0: .*no use for it'),
        ('online_dpo', ['loss=aot'], '--loss=aot: sorts the pairs of a batch, and a judgement belongs to one pair'),
        ('online_dpo', ['loss=aot_unpaired'], '--loss=aot_unpaired: sorts the pairs of a batch'),
        (
            'online_dpo',
            ['sync_reference=8', 'sync_share=0.1', 'param_dtype=bfloat16'],
            '--sync_share=0.1: --param_dtype=bfloat16 rounds most of it away',
        ),
        ('dpo', ['lora_rank=4', 'param_dtype=bfloat16'], '--param_dtype=bfloat16: has no effect beside --lora_rank'),
        ('ppo', ['beta=0', 'target_kl=0.5'], '--target_kl=0.5: has no effect without --beta'),
        ('ppo', ['batch_size=16', 'minibatches=2', 'micro_batches=16'], '--micro_batches=16: does not divide'),
        ('grpo', ['batch_size=16', 'minibatches=2', 'micro_batches=16'], '--micro_batches=16: does not divide'),
        ('online_dpo', ['batch_size=16', 'group_size=2', 'micro_batches=16'], '--micro_batches=16: does not divide'),
    ],
)
def test_flags_that_do_not_go_together(script, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        checked(script, *arguments)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('script', ['dpo', 'ppo', 'grpo', 'kto', 'online_dpo'])
@pytest.mark.parametrize(
    'given', ['os:getcwd', 'math:floor', ':', 'a:', 'no.such:thing', 'os:path', 'builtins:print', 'json:dumps']
)
def test_a_loss_that_is_none(script, given):
    with pytest.raises(InputError, match=f'^--loss={given}') as caught:
        checked(script, f'loss={given}')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'body, message',
    [
        ('raise SystemExit(0)  # before f', 'SystemExit: 0'),
        ('def f(pair, *, beta=0.1):\n    raise SystemExit(0)', 'SystemExit: 0'),
        ('def f(pair, *, beta=0.1):\n    return pair.chosen > 0', 'gives bool, which has no gradient'),
        ('def f(pair, *, beta=0.1):\n    return __import__("jax").numpy.ones(3)', 'nothing'),
    ],
)
def test_a_loss_of_ones_own_that_ends_the_program_or_teaches_nothing(tmp_path, body, message):
    (tmp_path / 'mine.py').write_text(body)
    with pytest.raises(InputError, match=f'mine.py:f: .*{message}'):
        checked('dpo', f'loss={tmp_path}/mine.py:f')


def test_a_function_that_ends_the_program_is_one_line():
    # In a process of its own: what logs, listens and caches there would stay here.
    script = (
        'import sys\nfrom rlax_ft.harness.command_line import run_script\n'
        'from rlax_ft.harness.settings import RunSettings\nrun_script(RunSettings, lambda settings: sys.exit(0))'
    )
    ended = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    said = 'error: sys.exit(0) was called by what a flag names; take it out there\n'
    assert (ended.returncode, ended.stderr.splitlines()[-1] + '\n') == (2, said)


@pytest.mark.parametrize('script', ['dpo', 'ppo', 'grpo', 'kto', 'online_dpo'])
@pytest.mark.parametrize('given', ['clip_low=abc', 'logps=1', 'pair=1', '=1', 'x', 'clip_low=nan', 'beta=nan'])
def test_arguments_of_a_loss_that_are_none(script, given):
    with pytest.raises(InputError, match=f'^--loss_args={given}') as caught:
        checked(script, f'loss_args={given}')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('given', ['math:floor', 'os:getcwd', ':', 'no.such:thing', 'os:path'])
def test_a_reward_that_is_none(given):
    with pytest.raises(InputError) as caught:
        reward = make_reward(given, None, None)
        reward(None, [{'prompt': 'a'}] * 2, lambda: ['b', 'c'])
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('script', ['ppo', 'grpo', 'online_dpo', 'kto', 'dpo'])
@pytest.mark.parametrize('given', ['temperature=-1', 'temperature=0', 'beta=-1', 'temperature=nan', 'beta=inf'])
def test_no_sampling_at_no_temperature(script, given):
    name = given.partition('=')[0]
    settings = getattr(load_script(SCRIPTS / f'{script}.py'), SETTINGS[script])
    if not hasattr(settings, name):
        pytest.skip(f'{script}.py has no --{name}')
    with pytest.raises(InputError, match=f'^--{name}='):
        checked(script, given)


def test_pairs_that_are_sorted_have_neither_soft_labels_nor_weights():
    settings = SimpleNamespace(loss='aot', packing=False, labels='human')
    plain = {'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}
    check_alone(settings, [plain, {**plain, 'label': 1.0, 'weight': 1.0}])
    for wrong, message in (
        ({'label': 0.75}, 'field "label" below 1: --loss=aot sorts the pairs of a batch'),
        ({'weight': 2}, 'field "weight": --loss=aot sorts the pairs of a batch, and a weight belongs to one pair'),
    ):
        with pytest.raises(InputError, match=message):
            check_alone(settings, [plain, {**plain, **wrong}])
    for labels in ('preference_model', 'gold', 'agreement'):
        with pytest.raises(InputError, match=f'--labels={labels}: --loss=aot sorts'):
            check_alone(SimpleNamespace(loss='aot', packing=False, labels=labels), [plain])


@pytest.mark.parametrize(
    ('script', 'given', 'message'),
    [
        ('ppo', 'reward=nosuch.py:f', 'nosuch.py: no such file'),
        ('grpo', 'reward=mine.py:g*0.5,maths', "mine.py has no function 'g'"),
        ('grpo', 'reward=mathz', 'no such rule or folder'),
        ('grpo', 'reward=runs/none', 'holds no model'),
        ('grpo', 'env=nosuch.py:f', 'nosuch.py: no such file'),
        ('grpo', 'process_reward=runs/none', 'holds no model'),
        ('online_dpo', 'reward=runs/none', 'holds no model'),
        ('dpo', 'reward=runs/none', 'holds no model'),
        ('dpo', 'loss=nosuch.py:f', 'nosuch.py: no such file'),
        ('kto', 'optimizer=nosuch.py:f', 'nosuch.py: no such file'),
        ('sft', 'evaluate=mine.py:g', "mine.py has no function 'g'"),
        ('distill', 'teacher=none', 'holds no model'),
        ('ppo_env', 'env=nosuch.py:f', 'nosuch.py: no such file'),
        ('collect', 'annotator=nosuch.py:f', 'nosuch.py: no such file'),
        ('collect', 'annotator=runs/none', 'no such annotator or folder'),
    ],
)
def test_a_name_that_is_none_is_refused_before_anything_is_made(script, given, message, tmp_path, monkeypatch):
    """Loading a model of billions of parameters first would take minutes, and leave a run's folder behind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.py').write_text('def f(prompt, completion):\n    return 1.0\n')
    module = load_script(SCRIPTS / f'{script}.py')
    more = ['labels=preference_model'] if (script, given) == ('dpo', 'reward=runs/none') else []
    more += ['init_from=runs/sft'] if script == 'collect' else []
    monkeypatch.setattr(module, 'open_run', lambda *_: pytest.fail('opened a folder'), raising=False)
    with pytest.raises(InputError, match=message) as caught:
        settings = parse(getattr(module, SETTINGS[script]), [f'--{x}' for x in (given, *more)])
        (getattr(module, 'train', None) or module.collect)(settings)
    assert str(caught.value).startswith(f'--{given.partition("=")[0]}=')
