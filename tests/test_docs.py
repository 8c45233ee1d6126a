"""What the documentation says is so: its examples run, and the names in it exist."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.data import forms
from rlax_ft.data.records import read_pairs, write_records
from rlax_ft.data.tokenizers import train_tokenizer
from rlax_ft.hf import save_pretrained
from rlax_ft.models.config import embedded_config
from rlax_ft.models.transformer import init_params
from rlax_ft.training.step import init_state, make_train_step
from rlax_ft.types import PairLogps, PreferenceBatch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
PAIR = PairLogps(
    chosen=jnp.array([-3.0, -4.0]),
    rejected=jnp.array([-4.0, -4.0]),
    ref_chosen=jnp.array([-3.5, -4.0]),
    ref_rejected=jnp.array([-3.5, -4.0]),
)


def blocks(page: str) -> list[str]:
    return re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)


def example(page: str, file: str) -> dict:
    """The names that the page's example of a file defines."""
    (code,) = [block for block in blocks(page) if block.startswith(f'# {file}\n')]
    names = {}
    exec(compile(code, f'{page}: {file}', 'exec'), names)
    return names


def test_every_example_is_short():
    shown = [*blocks('README.md'), *blocks('CONTRIBUTING.md')]
    assert len(shown) == 9 and max(len(block.splitlines()) for block in shown) < 15


def test_rewards():
    right, short = example('README.md', 'my_rewards.py')['right'], example('CONTRIBUTING.md', 'my_rewards.py')['short']
    assert right([{'answer': '4'}] * 2, ['It is 4 ', 'It is 5']) == [1.0, 0.0]
    assert short([{'limit': 2}] * 2, ['yes', 'a b c d']) == [1.0, 0.5]


def test_losses():
    margin = example('README.md', 'my_losses.py')['margin_loss'](PAIR, beta=0.5)
    np.testing.assert_allclose(margin, [0.25, 1.0])  # r_w - r_l = 0.5 (1 - 0) and 0.
    exponential = example('CONTRIBUTING.md', 'my_losses.py')['exponential_loss'](PAIR, beta=0.5)
    np.testing.assert_allclose(exponential, [np.exp(-0.5), 1.0], rtol=1e-6)


def test_a_format(monkeypatch):
    (code,) = [block for block in blocks('CONTRIBUTING.md') if block.startswith('# rlax_ft/data/forms.py')]
    names = {**vars(forms)}
    exec(code, names)
    row = eval(re.search(r'# In _FORMS: (.*),$', code, re.MULTILINE)[1], names)
    monkeypatch.setattr(forms, '_FORMS', (*forms._FORMS, row[: len(forms._FORMS[0])]))
    record = forms.convert({'query': 'Two and two?', 'reply': 'Four.'}, 'data.jsonl, line 1')
    assert record['prompt'] == [{'role': 'user', 'content': 'Two and two?'}]
    assert record['completion'] == [{'role': 'assistant', 'content': 'Four.'}]


def test_an_environment():
    env = example('CONTRIBUTING.md', 'my_envs.py')['walk']()
    state, seen = env.reset(jax.random.key(0))
    ends = []
    for action in (0, 1, 1, 1):
        state, step = jax.jit(env.step)(jax.random.key(0), state, action)
        ends.append(bool(step.terminated))
    assert seen.shape == env.observation.shape and ends == [False, False, False, True]


def test_an_annotator(tmp_path):
    prefers_short = example('CONTRIBUTING.md', 'my_annotator.py')['prefers_short']
    write_records(tmp_path / 'judged.jsonl', prefers_short([{'prompt': 'p'}], [['a b', 'a', 'c d']]))
    pairs = [(pair['chosen'], pair['rejected']) for pair in read_pairs(tmp_path / 'judged.jsonl')]
    assert pairs == [('a', 'a b'), ('a', 'c d')]


def test_a_metric():
    objective = example('CONTRIBUTING.md', 'my_metrics.py')['with_soft_share'](lambda p, b, k: (1.0, {'loss': 1.0}))
    batch = PreferenceBatch(candidates=None, label=jnp.array([1.0, 0.7]))
    assert objective(None, (batch, 4), None)[1] == {'loss': 1.0, 'labels/soft': 0.25}


def test_an_optimiser():
    optimizer = example('CONTRIBUTING.md', 'my_optimizers.py')['signs'](0.5)
    step = make_train_step(lambda params, batch, key: (jnp.sum(params * batch), {}), optimizer)
    state, _ = step(init_state(jnp.zeros(2), optimizer, jax.random.key(0)), jnp.array([3.0, -0.1]))
    np.testing.assert_allclose(state.params, [-0.5, 0.5])


def test_as_a_library(tmp_path, capsys):
    tokenizer = train_tokenizer('bytes', [])
    config = embedded_config('tiny', vocab_size=len(tokenizer), max_length=128)
    save_pretrained(tmp_path, config, init_params(config, jax.random.key(0)), tokenizer)
    first, second = blocks('docs/library.md')
    lines = [line for line in first.splitlines() if line]
    imports = [line for line in lines if line.startswith(('import', 'from'))]
    assert len(imports) <= 4 and len(lines) - len(imports) < 12
    names = {}
    exec(first.replace('FOLDER_OR_ID', str(tmp_path)), names)
    assert float(names['metrics']['loss']) == pytest.approx(np.log(2.0), abs=1e-5) and capsys.readouterr().out
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), names['params'], names['state'].params)
    assert any(jax.tree.leaves(moved))
    exec(second, names)
    margin = 2.0 * (-4.0 / 3 + 6.0 / 4) - 0.5
    np.testing.assert_allclose(names['loss'], [np.log1p(np.exp(-margin))], rtol=1e-6)


def test_the_walk_to_the_gradient():
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    steps = re.findall(r'^\| `(\w+)` \| `(rlax_ft/[\w/]+\.py)` \|', text, re.MULTILINE)
    missing = [s for s in steps if not re.search(rf'^ *def {s[0]}\(', (ROOT / s[1]).read_text(), re.MULTILINE)]
    assert 15 <= len(steps) <= 25 and not missing
    assert len({file for _, file in steps}) <= 14


def test_the_table_of_losses_names_every_loss():
    table = re.findall(r'^\| `(\w+)` ', (ROOT / 'docs/losses.md').read_text(), re.MULTILINE)
    named = {name.removesuffix('_loss') for name in table}
    files = (ROOT / 'rlax_ft/losses').glob('[a-z]*.py')
    losses = {name for file in files for name in re.findall(r'^def ([a-z]\w*)_loss\(', file.read_text(), re.MULTILINE)}
    assert named == losses


def test_the_list_of_packages_is_whole():
    listed = re.findall(r'^      (\w+)/ ', (ROOT / 'docs/architecture.md').read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.parent.name for path in (ROOT / 'rlax_ft').glob('*/__init__.py'))


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split('.')
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module('.'.join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def test_names_and_files_exist():
    assert exists('rlax_ft.ops.kl.kl_estimate') and not exists('rlax_ft.ops.kl.nothing') and not exists('rlax_ft.no')
    wrong = []
    for page in PAGES:
        text = page.read_text()
        names = set(re.findall(r'`(rlax_ft(?:\.\w+)+)', text))
        files = set(re.findall(r'`?(experiments/(?:[\w]+/)*\w+\.(?:py|md|flags)|rlax_ft/[\w/]+\.py)', text))
        wrong += [(page.name, name) for name in sorted(names) if not exists(name)]
        wrong += [(page.name, file) for file in sorted(files) if not (ROOT / file).exists()]
    assert not wrong


def test_flags_exist():
    sources = [*(ROOT / 'experiments').glob('*.py'), *(ROOT / 'rlax_ft').rglob('*.py')]
    flags = set()
    for source in sources:
        flags |= set(re.findall(r'^    (\w+): \w+ = flag\(', source.read_text(), re.MULTILINE))
    for source in (ROOT / 'launch').glob('*.py'):
        flags |= set(re.findall(r"add_argument\('--(\w+)'|^    --(\w+)[= ]", source.read_text(), re.MULTILINE))
    flags = {name for flag in flags for name in (flag if isinstance(flag, tuple) else (flag,))}
    flags |= {'flagfile', 'help', 'strict', 'xla_force_host_platform_device_count'}  # absl's own, mkdocs' and XLA's.
    wrong = [(p.name, f) for p in PAGES for f in re.findall(r'(?<![\w-])--([a-z]\w*)', p.read_text()) if f not in flags]
    assert len(flags) > 60 and not wrong
