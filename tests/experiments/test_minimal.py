"""The algorithms of one file each learn something in seconds, and take a user's model and pairs."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rlax_ft.data.records import write_records
from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.harness.loading import load_script
from rlax_ft.hf import save_pretrained
from rlax_ft.models.config import embedded_config
from rlax_ft.models.transformer import init_params

MINIMAL = Path(__file__).parents[2] / 'experiments/minimal'


def test_dpo_prefers_what_was_chosen(capsys):
    history = load_script(MINIMAL / 'dpo.py').train(steps=8, max_prompt=16, max_new_tokens=16)
    assert history[0]['loss'] == pytest.approx(np.log(2), abs=1e-5) and history[-1]['loss'] < 0.4
    assert history[-1]['rewards/accuracies'] == 1.0 and "'Is it warm?' -> " in capsys.readouterr().out


def test_dpo_takes_a_folder_and_a_file(tmp_path, capsys):
    config = embedded_config('tiny', vocab_size=8, max_length=16)
    save_pretrained(tmp_path, config, init_params(config, jax.random.key(0)), word_tokenizer('abcde'))
    pairs = tmp_path / 'pairs.jsonl'
    write_records(pairs, [{'prompt': 'a b', 'chosen': ' c', 'rejected': ' d'}])
    train = load_script(MINIMAL / 'dpo.py').train
    history = train(model=str(tmp_path), data=str(pairs), steps=3, max_prompt=8, max_new_tokens=4, learning_rate=1e-2)
    assert history[-1]['loss'] < history[0]['loss'] and "'a b' -> " in capsys.readouterr().out
    for file in tmp_path.glob('tokenizer*'):
        file.unlink()
    with pytest.raises(InputError, match='holds no tokenizer'):
        train(model=str(tmp_path), data=str(pairs), steps=1)


@pytest.mark.slow
def test_ppo_raises_the_reward_of_its_task(capsys):
    train = load_script(MINIMAL / 'ppo.py').train
    history = train(task='exact', model='tiny', sft_steps=50, steps=12, batch_size=64, learning_rate=3e-3)
    rewards = [record['reward'] for record in history]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.3
    assert history[0]['kl'] == pytest.approx(0.0, abs=1e-5) and history[-1]['kl'] > 0.01
    assert capsys.readouterr().out.count('update ') == 12


def test_a_mistake_is_one_line():
    command = [sys.executable, MINIMAL / 'ppo.py', '--task=chess']
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith('error: --task=chess: no such task')
    assert done.stderr.count('\n') == 1
