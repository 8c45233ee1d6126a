"""Labels that annotators agree on, and margins that are kept so that runs can be compared pair by pair."""

import types

import jax
import numpy as np
import pytest

from rlax_ft.data.codec import Codec
from rlax_ft.data.rows import preference_rows
from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.evaluate.win_rate import paired_difference
from rlax_ft.harness import labels
from rlax_ft.harness.labels import preference_accuracy, soft_labels

CODEC = Codec(word_tokenizer('abcde'), 4, 6)
PAIRS = [
    {'prompt': 'a', 'chosen': 'b c', 'rejected': 'd', 'agreement': 2 / 3},
    {'prompt': 'a b', 'chosen': 'e', 'rejected': 'c c c'},  # all agree
]
SETTINGS = types.SimpleNamespace(labels='agreement', reward='')


def test_agreement_is_a_soft_label():
    rows = soft_labels(SETTINGS, None, CODEC, PAIRS, preference_rows(CODEC, PAIRS))
    np.testing.assert_allclose(rows.label, [2 / 3, 1.0], rtol=1e-6)


@pytest.mark.parametrize('value', [None, 'most', 1.5])
def test_an_agreement_that_is_no_share_is_named(value):
    pairs = [PAIRS[0], {**PAIRS[1], 'agreement': value}]
    with pytest.raises(InputError, match=rf'field "agreement" of comparison 2 is {value!r}; the share of annotators'):
        soft_labels(SETTINGS, None, CODEC, pairs, preference_rows(CODEC, pairs))


def test_data_without_annotators_is_refused():
    with pytest.raises(InputError, match='no comparison has a field "agreement"'):
        soft_labels(SETTINGS, None, CODEC, PAIRS[1:], preference_rows(CODEC, PAIRS[1:]))


def test_margins_are_kept(tmp_path):
    rows = preference_rows(CODEC, PAIRS)
    score = lambda candidates: np.asarray(candidates.mask).sum(axis=-1)  # noqa: E731
    summary = preference_accuracy(score, rows, 2, keep=tmp_path / 'margins.npy')
    lengths = np.asarray(rows.candidates.mask).sum(axis=-1)
    np.testing.assert_array_equal(np.load(tmp_path / 'margins.npy'), lengths[:, 0] - lengths[:, 1])
    assert summary['eval_accuracy'] == 0.5


def test_a_paired_difference():
    rng = np.random.default_rng(0)
    theirs = rng.random(400) < 0.6
    ours = np.where(rng.random(400) < 0.1, True, theirs)  # better on a few, and never worse
    difference, low, high = paired_difference(ours, theirs)
    assert difference == pytest.approx(ours.mean() - theirs.mean()) and 0 < low < difference < high
    # Examples that agree add nothing: the interval is far narrower than that of two separate shares.
    assert high - low < 2 * 1.96 * np.sqrt(2 * 0.24 / 400) / 2


def test_a_scale_for_ppos_sake_is_undone(monkeypatch):
    """A preference model says sigma(r(y_w) - r(y_l)) of its own logits, whatever its scores are divided by."""
    logits = np.array([[3.0, 1.0], [0.0, 0.5]])

    class Model:
        scale = 4.0

        def candidates(self, candidates):
            return jax.numpy.asarray(logits - 7.0) / self.scale  # centred and scaled, as for PPO

    jax.tree_util.register_static(Model)
    monkeypatch.setattr(labels, 'model_folder', lambda path, flag: path)
    monkeypatch.setattr(labels, 'load_reward_model', lambda path, **how: (Model(), CODEC.tokenizer))
    settings = types.SimpleNamespace(labels='preference_model', reward='rm', batch_size=2)
    rows = soft_labels(settings, None, CODEC, PAIRS, preference_rows(CODEC, PAIRS, ragged=True))
    np.testing.assert_allclose(rows.label, 1 / (1 + np.exp([-2.0, 0.5])), rtol=1e-6)
