"""No flag is taken and then not looked at: each is read by a run of its script, or refused, or its user is told.

A script runs here from its first line to its last with every compiled program replaced by its shapes: programs are
traced and never compiled, so that a run takes a second or two. Which fields of the settings are read meanwhile is
recorded. A flag that nothing read is then set, and the script begun again as far as its first step: it must say so.
Reads that only check a value, or write it down, do not count. What reading a flag does to the numbers is held by the
tests of each script; compare.py and rlhf.py hand their flags to these scripts as command lines.
"""

import dataclasses
import logging
import sys
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.data.records import write_records
from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.harness.command_line import parse
from rlax_ft.harness.env_setup import check as check_environments
from rlax_ft.harness.loading import load_script
from rlax_ft.hf.folder import save_pretrained
from rlax_ft.models.config import ModelConfig
from rlax_ft.models.transformer import init_params
from rlax_ft.tasks import get_task

WORDS = get_task('reviews').words
SCRIPTS = Path(__file__).parents[2] / 'experiments'


class Traced:
    """What stands for `jax.jit(function)`: it traces, and gives arrays of the right shapes."""

    def __init__(self, function, **how):
        self._compiled = REAL_JIT(function, **how)

    def __call__(self, *args, **kwargs):
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs))):
            return self._compiled(*args, **kwargs)
        return jax.tree.map(filled, self._compiled.eval_shape(*args, **kwargs))


REAL_JIT = jax.jit


def filled(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.asarray(np.ones(leaf.shape, leaf.dtype) if leaf.dtype == bool else np.zeros(leaf.shape, leaf.dtype))


class Begun(BaseException):
    """The first step would come now."""


def recording(settings_class):
    """(the class, noting which of its fields are read; the set of their names)."""
    names, read = {field.name for field in dataclasses.fields(settings_class)}, set()

    class Recorded(settings_class):
        def __getattribute__(self, name):
            if name in names and not _only_looks(sys._getframe(1)):
                read.add(name)
            return super().__getattribute__(name)

    return Recorded, read


def _only_looks(frame):
    """Whether a field is read there to be checked, copied or written down, and not to be used."""
    file, function = frame.f_code.co_filename, frame.f_code.co_name.lstrip('_')
    written = file.endswith(('harness/settings.py', 'dataclasses.py')) or file == '<string>'  # What dataclasses make.
    return written or function.startswith('check')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A model, records of every kind, a reward and an annotator."""
    folder = tmp_path_factory.mktemp('flags')
    tokenizer = word_tokenizer(WORDS)
    config = ModelConfig(len(tokenizer), 8, 1, 1, 1, 8, 8, max_length=64)
    save_pretrained(folder / 'start/model', config, init_params(config, jax.random.key(0)), tokenizer)
    word = WORDS[0]
    pairs = [{'prompt': f'{word} ' * (1 + i % 3), 'chosen': word, 'rejected': f'{word} {word}'} for i in range(20)]
    judged = [{'prompt': p['prompt'], 'completion': p['chosen'], 'label': i % 2 == 0} for i, p in enumerate(pairs)]
    for name, records in (('pairs', pairs), ('judged', judged)):
        write_records(folder / f'{name}.jsonl', records)
    (folder / 'mine.py').write_text(
        'def short(prompt, completion):\n    return -len(completion)\n\n\n'
        'def even(records, first, second):\n    return [0.5] * len(first)\n\n\n'
        'def first(records, candidates):\n    return [{"ranks": list(range(len(c)))} for c in candidates]\n'
    )
    return folder


START = '--init_from={folder}/start'
NEW = '--model=tiny --tokenizer=bytes'
LOOP = '--max_steps=1 --batch_size=16 --report_to='
SHORT = '--max_prompt_tokens=8 --max_new_tokens=4'
JUDGED, PAIRS = (f'{SHORT} --data={{folder}}/{name}.jsonl' for name in ('judged', 'pairs'))
MINE = '--reward={folder}/mine.py:short'
# The ways through a script that read other flags.
RUNS = {
    'sft': [f'{LOOP} {START} {JUDGED}', f'{LOOP} {START} --demonstrations=8', f'{LOOP} {NEW} {JUDGED} --packing'],
    'collect': [f'{START} --comparisons=4', f'{START} {JUDGED} --annotator={{folder}}/mine.py:first'],
    'reward_model': [f'{LOOP} {START} {PAIRS}', f'{LOOP} {START} {PAIRS} --ensemble=2'],
    'dpo': [
        f'{LOOP} {START} {PAIRS}',
        f'{LOOP} {START} {PAIRS} --loss=plackett_luce --sync_reference=1',
        f'{LOOP} {START} {PAIRS} --lora_rank=2',
    ],
    'kto': [f'{LOOP} {START} {JUDGED}', f'{LOOP} {START} {PAIRS} --loss=bco'],
    'online_dpo': [
        f'{LOOP} {START} {MINE} {JUDGED}',
        f'{LOOP} {START} {MINE} {JUDGED} --method=nash_md',
        f'{LOOP} {START} {MINE} {JUDGED} --loss=plackett_luce',
    ],
    'ppo': [f'{LOOP} {START} {MINE} {JUDGED}', f'{LOOP} {START} --prompts=8 --target_kl=1'],
    'grpo': [f'{LOOP} {START} {MINE} {JUDGED} --group_size=2', f'{LOOP} {NEW} --env=calculator --group_size=2'],
    'distill': [f'{LOOP} {START} {JUDGED} --teacher={{folder}}/start'],
    'evaluate': [
        f'--models={{folder}}/start {JUDGED} {MINE}',
        f'--models={{folder}}/start {JUDGED} {MINE} --judge={{folder}}/mine.py:even --pass_at=1 --samples=2',
        f'--on=pairs --models={{folder}}/start --reference={{folder}}/start {PAIRS}',
        '--on=pairs --judge={folder}/mine.py:even --data={folder}/pairs.jsonl',
    ],
    'converse': [f'{START} --env=calculator --conversations=8', '--env=calculator --demonstrations=4'],
}

# Read by whoever starts the processes, before the script's own first line.
OF_PROCESSES = {'coordinator', 'num_processes', 'process_id'}


def another(field):
    """A value, as text, that the flag has not by default and that it takes."""
    if field.metadata['choices']:
        return next(choice for choice in field.metadata['choices'] if choice not in ('', field.default))
    if isinstance(field.default, bool):
        return str(not field.default).lower()
    if isinstance(field.default, str):
        return 'x'
    at_most = field.metadata['bounds'][2]
    step = 1 if isinstance(field.default, int) else 0.5
    return str(field.default + step if at_most is None or field.default + step <= at_most else field.default - step)


@pytest.mark.parametrize(
    ('script', 'arguments'), [(name, line) for name, lines in RUNS.items() for line in lines], ids=str
)
def test_what_is_not_read_is_refused(folder, tmp_path, monkeypatch, caplog, script, arguments):
    module = load_script(SCRIPTS / f'{script}.py')
    main = next(getattr(module, name) for name in ('train', script) if hasattr(module, name))
    settings_class = typing.get_type_hints(main)['settings']
    given = arguments.format(folder=folder).split()
    monkeypatch.setattr(jax, 'jit', lambda function=None, **how: Traced(function, **how))
    recorded, read = recording(settings_class)
    main(parse(recorded, [*given, f'--out={tmp_path}/whole']))
    assert 'out' in read and 'num_processes' not in read  # It is recorded at all.

    def begun(*_, **__):
        raise Begun

    if hasattr(module, 'open_metrics'):
        monkeypatch.setattr(module, 'open_metrics', begun)
    silent = []
    there = {argument[2:].partition('=')[0] for argument in given}
    for field in dataclasses.fields(settings_class):
        if field.name in read | OF_PROCESSES | there:
            continue
        caplog.clear()
        try:
            with caplog.at_level(logging.WARNING):
                main(
                    parse(
                        settings_class, [*given, f'--out={tmp_path}/{field.name}', f'--{field.name}={another(field)}']
                    )
                )
        except InputError as error:
            assert f'--{field.name}' in str(error), error
            continue
        except Begun:
            pass
        if not any(f'--{field.name}' in record.getMessage() for record in caplog.records):
            silent.append(field.name)
    assert not silent, f'{script}.py takes these and reads them nowhere: {silent}'


@pytest.mark.parametrize(
    ('script', 'arguments', 'named'),
    [
        ('ppo_env', '--env=CartPole-v1 --log_std_init=-1', 'log_std_init'),
        ('compare', '--init_from=x --model=tiny', 'model'),
        ('collect_feedback', '--export=a.jsonl --judgements=b.jsonl', 'judgements'),
        ('evaluate', '--lm_eval=x --models=x --chat_template=plain', 'chat_template'),
    ],
)
def test_what_another_flag_takes_the_place_of_is_refused(tmp_path, script, arguments, named):
    module = load_script(SCRIPTS / f'{script}.py')
    main = next(getattr(module, name) for name in ('train', 'collect', script) if hasattr(module, name))
    out = tmp_path / ('out.sqlite' if script == 'collect_feedback' else 'out')
    with pytest.raises(InputError, match=f'^--{named}='):
        main(parse(typing.get_type_hints(main)['settings'], [*arguments.split(), f'--out={out}']))
    assert not out.exists()


@pytest.mark.parametrize('name', ['learning_rate', 'entropy_coef'])
def test_what_a_grid_takes_the_place_of_is_warned_of(caplog, name):
    # A warning: a recipe gives the one, and the command line the grid.
    settings = typing.get_type_hints(load_script(SCRIPTS / 'ppo_env.py').train)['settings']
    with caplog.at_level(logging.WARNING):
        check_environments(parse(settings, ['--env=CartPole-v1', f'--grid_{name}=0.001', f'--{name}=0.5']))
    assert f'--{name}=0.5: has no effect beside --grid_{name}=0.001' in caplog.text
