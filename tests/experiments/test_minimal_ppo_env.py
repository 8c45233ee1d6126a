"""The one-file PPO learns, and is short enough to read."""

from pathlib import Path

import jax
import numpy as np

from rlax_ft.harness.loading import load_script

SCRIPT = Path(__file__).parents[2] / 'experiments/minimal/ppo_env.py'


def test_it_learns():
    params, returns = load_script(SCRIPT).train(total_steps=512 * 40, seed=0)
    # A random policy's episodes last 22 steps.
    assert np.nanmean(returns[:2]) < 35 and np.nanmean(returns[-8:]) > 100
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_it_is_one_short_file_on_the_library_alone():
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 120 and 'harness' not in text
