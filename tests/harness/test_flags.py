"""Flags: none without an effect, bounds with each, help by group, flag files whose paths stand beside them."""

import ast
import dataclasses
import functools
import math
import re
from pathlib import Path

import pytest

from rlax_ft.errors import InputError
from rlax_ft.harness.command_line import help_text, parse, with_flag
from rlax_ft.harness.loading import load_script
from rlax_ft.harness.settings import flag_groups

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    'sft': 'SFTSettings',
    'collect': 'CollectSettings',
    'reward_model': 'RewardModelSettings',
    'dpo': 'DPOSettings',
    'kto': 'KTOSettings',
    'online_dpo': 'OnlineDPOSettings',
    'ppo': 'PPOSettings',
    'grpo': 'GRPOSettings',
    'distill': 'DistillSettings',
    'converse': 'ConverseSettings',
    'rlhf': 'RLHFSettings',
    'ppo_env': 'EnvSettings',
    'inspect_data': 'InspectSettings',
    'compare': 'CompareSettings',
    'evaluate': 'EvaluateSettings',
    'collect_feedback': 'CollectFeedbackSettings',
    'feedback_report': 'ReportSettings',
}


def settings_of(script):
    return getattr(load_script(ROOT / f'experiments/{script}.py'), SCRIPTS[script])


@functools.cache
def top_of(path):
    """What stands at the top of a file, by name, and (file, name) of what it imports from the harness."""
    defined, imported = {'': ast.Module([], [])}, {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign):
            defined |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('rlax_ft.harness.'):
            module = (ROOT / Path(*node.module.split('.'))).with_suffix('.py')
            imported |= {alias.asname or alias.name: (module, alias.name) for alias in node.names}
        elif isinstance(node, ast.If):
            defined[''].body.append(node)
    return defined, imported


def read_from(path, name, seen):
    """Attributes and texts that a function or class holds, and all that it refers to, as deep as it goes."""
    defined, imported = top_of(path)
    if (path, name) in seen or name not in defined:
        return set()
    seen.add((path, name))
    # A class's fields say what flags are; that is no reading of them.
    body = defined[name].body if isinstance(defined[name], ast.ClassDef) else []
    fields = {inner for node in body if isinstance(node, ast.AnnAssign) for inner in ast.walk(node)}
    read = set()
    for node in set(ast.walk(defined[name])) - fields:
        if isinstance(node, ast.Attribute):
            read.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            read.add(node.value)  # getattr(settings, name)
        elif isinstance(node, ast.Name):
            read |= read_from(*imported.get(node.id, (path, node.id)), seen)
    return read


@pytest.mark.parametrize('script', SCRIPTS)
def test_every_flag_is_read_by_what_its_script_calls(script):
    path = ROOT / f'experiments/{script}.py'
    seen = set()
    read = set().union(*(read_from(path, name, seen) for name in top_of(path)[0]))
    unread = {field.name for field in dataclasses.fields(settings_of(script))} - read
    assert not unread, f'flags that nothing reads: {sorted(unread)}'


@pytest.mark.parametrize('script', SCRIPTS)
@pytest.mark.parametrize('value', ['nan', 'inf', '-1'])
def test_no_number_is_taken_that_makes_no_sense(script, value):
    """Each float at nan, inf and -1, each integer at -2: one line that names the flag, or a value with a meaning."""
    settings_class = settings_of(script)
    for field in dataclasses.fields(settings_class):
        kind = type(field.default)
        if kind not in (int, float) or (kind is int and value != '-1'):
            continue
        given = '-2' if kind is int else value
        if field.name in ('nll_coef', 'log_std_init') and value == '-1':
            continue  # -1 has a meaning of its own.
        with pytest.raises(InputError, match=rf'--{field.name}=') as caught:
            parse(settings_class, [f'--{field.name}={given}'])
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_has_every_flag_once_by_group_with_its_default(script):
    settings_class = settings_of(script)
    about = load_script(ROOT / f'experiments/{script}.py').__doc__
    # A command that goes on in the next line says so: its backslash is not lost with the line's end.
    assert not [line for line in about.splitlines() if re.search(r'\S {5,}--', line)]
    text = help_text(settings_class, 'About.')
    for field in dataclasses.fields(settings_class):
        assert text.count(f'\n  --{field.name}=') == 1
    assert set(flag_groups(settings_class).values()) <= {
        line[:-1] for line in text.splitlines() if line.endswith(':') and not line.startswith(' ')
    }


@pytest.mark.parametrize('script', SCRIPTS)
def test_numbers_whose_products_float32_cannot_hold_are_refused(script):
    flags = [f for f in dataclasses.fields(settings_of(script)) if isinstance(f.default, float)]
    for name, value in [(f.name, v) for f in flags for v in ('1e38', '-1e38', 'inf', 'nan')]:
        with pytest.raises(InputError, match=rf'^--{name}=\S+: must be '):
            parse(settings_of(script), [f'--{name}={value}'])
    name = 'data' if script == 'inspect_data' else 'out'
    with pytest.raises(InputError, match=rf'^--{name}=.*: has a NUL character'):
        parse(settings_of(script), [f'--{name}=a\0b'])


def test_a_flag_without_what_it_needs_is_refused():
    sft = settings_of('sft')
    with pytest.raises(InputError, match=r'--lora_alpha=4.0: has no effect without --lora_rank'):
        parse(sft, ['--lora_alpha=4'])
    assert parse(sft, ['--lora_alpha=4', '--lora_rank=2']).lora_alpha == 4
    with pytest.raises(InputError, match=r'--epochs=2.0: has no effect beside --max_steps=5'):
        parse(sft, ['--epochs=2', '--max_steps=5'])
    with pytest.raises(InputError, match=r'--kl_horizon=5.0: has no effect without --target_kl'):
        parse(settings_of('ppo'), ['--kl_horizon=5'])
    with pytest.raises(InputError, match=r'--annotator_noise=0.5: has no effect without --annotator=simulated'):
        parse(settings_of('collect'), ['--annotator=human', '--annotator_noise=0.5'])
    for script in ('collect', 'rlhf'):
        with pytest.raises(InputError, match=r'--enough=3: has no effect without --annotator=human'):
            parse(settings_of(script), ['--enough=3'])
        assert parse(settings_of(script), ['--enough=3', '--annotator=human']).enough == 3


@pytest.mark.parametrize(
    ('script', 'flags'),
    [
        *((script, '--prompts=5') for script in ('ppo', 'grpo', 'online_dpo', 'distill')),
        *((script, f'--{flag}') for script in ('dpo', 'reward_model', 'kto')
          for flag in ('comparisons=9', 'candidates=2', 'annotator=mine:f', 'annotator_noise=0')),
        ('sft', '--demonstrations=9'),
    ],
)  # fmt: skip
def test_what_is_asked_of_a_task_is_refused_beside_data(script, flags):
    with pytest.raises(InputError, match=rf'{flags[:8]}.*: has no effect beside --data=x.jsonl; leave one out'):
        parse(settings_of(script), [flags, '--data=x.jsonl'])
    parse(settings_of(script), [flags])


def test_a_turn_has_a_length_in_conversations_only():
    with pytest.raises(InputError, match=r'--turn_tokens=7: has no effect without --env'):
        parse(settings_of('grpo'), ['--turn_tokens=7', '--data=x.jsonl'])


def test_what_collect_asks_of_data_is_not_refused():
    assert parse(settings_of('collect'), ['--comparisons=9', '--candidates=2', '--data=x.jsonl']).comparisons == 9


def test_paths_in_a_flag_file_may_stand_beside_it(tmp_path, monkeypatch):
    folder = tmp_path / 'recipes'
    folder.mkdir()
    (folder / 'prompts.jsonl').write_text('{"prompt": "a"}\n')
    (folder / 'rules.py').write_text('def good(prompt, completion):\n    return 1.0\n')
    lines = ['# a comment', '--data=prompts.jsonl', '--reward=rules.py:good', '--beta=0.2']
    (folder / 'ppo.flags').write_text('\n'.join(lines) + '\n')
    monkeypatch.chdir(tmp_path)
    settings = parse(settings_of('ppo'), ['--flagfile=recipes/ppo.flags', '--beta=0.3'])
    assert settings.data == 'recipes/prompts.jsonl' and settings.reward == 'recipes/rules.py:good'
    assert math.isclose(settings.beta, 0.3)  # what comes later wins
    with pytest.raises(InputError, match=r'--flagfile=nowhere: cannot be read'):
        parse(settings_of('ppo'), ['--flagfile=nowhere'])


RECIPES = sorted((ROOT / 'experiments/recipes').glob('*.flags'))


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_taken_by_its_script_from_anywhere(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = [name for name in SCRIPTS if path.stem.endswith(f'_{name}')]
    script = 'ppo_env' if path.stem.startswith('ppo_') else max(named, key=len, default='dpo')
    script = 'grpo' if path.stem.startswith('grpo_') else script
    settings = parse(settings_of(script), [f'--flagfile={path}'])
    for name in ('data', 'reward'):
        value = getattr(settings, name, '').partition(':')[0]
        assert not value.endswith(('.py', '.jsonl')) or Path(value).exists()


def test_a_mistake_in_what_a_flag_names_names_the_flag(tmp_path):
    settings = parse(settings_of('distill'), ['--model=runs/x', '--teacher=a=runs/y,runs/z'])
    for text, expected in (
        ('runs/x: no such folder', '--model=runs/x: no such folder'),
        ('runs/y: no such folder', '--teacher=a=runs/y,runs/z: runs/y: no such folder'),
        ('--model=runs/x: no', '--model=runs/x: no'),
        ('other: no', 'other: no'),
    ):
        assert with_flag(text, settings) == expected
    (tmp_path / 'pairs.jsonl').touch()
    of_file = f'{tmp_path}/pairs.jsonl: line 3: no prompt'
    assert with_flag(of_file, dataclasses.replace(settings, data=f'{tmp_path}/pairs.jsonl')) == of_file
    assert with_flag('no prompt', None) == 'no prompt'
