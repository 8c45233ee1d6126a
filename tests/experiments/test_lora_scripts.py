"""The language scripts with --lora_rank, --dtype and --remat: what they leave, and what stops them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from rlax_ft.errors import InputError
from rlax_ft.harness.loading import load_script
from rlax_ft.hf.folder import load_pretrained
from rlax_ft.hf.peft import load_adapter
from rlax_ft.models.lora import merge
from rlax_ft.rewards.learned import load_reward_model
from rlax_ft.training.metrics import read_records

pytestmark = pytest.mark.usefixtures('few_prompts')
SCRIPTS = Path(__file__).parents[2] / 'experiments'
dpo = load_script(SCRIPTS / 'dpo.py')
ppo = load_script(SCRIPTS / 'ppo.py')
reward_model = load_script(SCRIPTS / 'reward_model.py')
sft = load_script(SCRIPTS / 'sft.py')

TINY = {'max_steps': 4, 'save_every': 2, 'batch_size': 16, 'task': 'reviews'}
LORA = {'lora_rank': 2, 'learning_rate': 1e-2}


@pytest.fixture(scope='module')
def start(tmp_path_factory, few_prompts):
    """A run folder with a tiny model."""
    folder = tmp_path_factory.mktemp('start')
    sft.train(sft.SFTSettings(out=str(folder), model='tiny', demonstrations=200, **{**TINY, 'max_steps': 20}))
    return folder


def run(start, script, out, **given):
    classes = {
        sft: sft.SFTSettings,
        dpo: dpo.DPOSettings,
        ppo: ppo.PPOSettings,
        reward_model: reward_model.RewardModelSettings,
    }
    more = {dpo: {'comparisons': 40}, reward_model: {'comparisons': 40}, sft: {'demonstrations': 200}}
    more[ppo] = {'prompts': 32, 'minibatches': 2, 'update_epochs': 1}
    settings = {**TINY, **LORA, 'out': str(out), 'init_from': str(start), **more[script], **given}
    return script.train(classes[script](**settings))


@pytest.fixture(scope='module')
def demonstrated(start, tmp_path_factory):
    """A run of sft.py with an adapter, on the mesh."""
    folder = tmp_path_factory.mktemp('jit')
    run(start, sft, folder, remat='full')
    return folder


@pytest.mark.parametrize('script', [sft, dpo, ppo], ids=lambda script: script.__name__)
def test_a_run_leaves_the_adapter_and_the_merged_model(start, demonstrated, tmp_path, script):
    if script is sft:
        tmp_path = demonstrated
    else:
        run(start, script, tmp_path, dtype='bfloat16' if script is dpo else 'float32', remat='full')
    dtype = 'bfloat16' if script is dpo else 'float32'
    config, base, _ = load_pretrained(start / 'model', dtype=dtype)
    _, merged, _ = load_pretrained(tmp_path / 'model')  # as float32, whatever the base is
    config, adapter = load_adapter(tmp_path / 'adapter', config)
    assert config.lora.rank == 2
    assert np.abs(adapter['layers']['mlp']['down']['B']).max() > 0
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x.astype(float), y.astype(float), atol=1e-6),
        merge(base, adapter, config.lora),
        merged,
    )
    said = json.loads((tmp_path / 'adapter/adapter_config.json').read_text())
    assert said['base_model_name_or_path'] == str(start / 'model')


def test_a_reward_model_learns_by_an_adapter(start, tmp_path):
    summary = run(start, reward_model, tmp_path, max_steps=30)
    accuracies = [record['rewards/accuracies'] for record in read_records(tmp_path / 'metrics.jsonl')]
    assert np.mean(accuracies[-5:]) > np.mean(accuracies[:3]) and summary['eval_pairs'] > 0
    model, _ = load_reward_model(tmp_path / 'model')
    assert set(model.params) == {'backbone', 'head'} and (tmp_path / 'adapter/adapter_config.json').exists()


@pytest.mark.slow
def test_a_run_of_an_adapter_resumes(start, tmp_path):
    run(start, dpo, tmp_path / 'whole')
    run(start, dpo, tmp_path / 'parts', max_steps=2)
    run(start, dpo, tmp_path / 'parts', max_steps=4)
    whole, parts = (read_records(tmp_path / name / 'metrics.jsonl') for name in ('whole', 'parts'))
    assert [r['step'] for r in parts] == [1, 2, 3, 4]
    with pytest.raises(InputError, match=r'a checkpoint of --lora_rank, which holds the adapter alone'):
        run(tmp_path / 'whole/checkpoints/4', dpo, tmp_path / 'from')
    assert whole[0]['loss'] == pytest.approx(np.log(2.0), abs=1e-6)


def test_pmap_trains_the_same_adapter(start, demonstrated, tmp_path):
    run(start, sft, tmp_path, backend='pmap', remat='full')
    losses = [[r['loss'] for r in read_records(folder / 'metrics.jsonl')] for folder in (demonstrated, tmp_path)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
