"""Packing: every item once and none too many, near the bound, and the losses of packed rows are those of rows alone."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_ft.data.codec import Codec
from rlax_ft.data.loader import count_examples
from rlax_ft.data.packing import best_fit, pack_pairs, pack_rows, padding_share
from rlax_ft.data.rows import preference_rows, take_rows, token_rows
from rlax_ft.data.tokenizers import train_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.losses.preference import dpo_loss, ipo_loss, odpo_loss
from rlax_ft.models.config import embedded_config
from rlax_ft.models.heads import ScalarModel, reward_params
from rlax_ft.models.scoring import sequence_logps, token_logps
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.objectives.packed import packed_preference_objective, packed_reward_objective
from rlax_ft.objectives.preference import preference_objective
from rlax_ft.objectives.reward import reward_objective
from rlax_ft.objectives.supervised import sft_objective

LENGTH = 48
CODEC = Codec(train_tokenizer('bytes', ['abc']), max_prompt=24, max_new_tokens=24)
CONFIG = embedded_config('tiny', vocab_size=len(CODEC.tokenizer), max_length=LENGTH)


def words(rng, low, high):
    return ''.join(rng.choice(list('abcdef '), rng.integers(low, high)))


def chosen_rows(pairs):
    """The preferred sides as rows [N, T]."""
    return take_rows(pairs.candidates, (slice(None), 0))


@pytest.fixture(scope='module')
def pairs():
    rng = np.random.default_rng(0)
    records = [
        {'prompt': words(rng, 1, 12), 'chosen': words(rng, 1, 20), 'rejected': words(rng, 1, 20)} for _ in range(24)
    ]
    pairs = preference_rows(CODEC, records)
    return pairs.replace(label=rng.uniform(size=24).astype(np.float32))


@pytest.fixture(scope='module')
def params():
    # Larger than at initialisation, so that attention across segments would show.
    return jax.tree.map(lambda leaf: leaf * 2.0, init_params(CONFIG, jax.random.key(0)))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 10), st.integers(1, 10)), min_size=1, max_size=40))
def test_every_item_once_and_no_bin_overfull(sizes):
    for dims in (1, 2):
        items = np.asarray(sizes)[:, :dims]
        bins = best_fit(items, 10)
        assert sorted(item for group in bins for item in group) == list(range(len(sizes)))
        assert all((items[group].sum(axis=0) <= 10).all() for group in bins)
    # No two bins could have been one.
    filled = sorted(items[group].sum() for group in best_fit(np.asarray(sizes)[:, 0], 10))
    assert len(filled) < 2 or filled[0] + filled[1] > 10


def test_best_fit_by_hand():
    # 7 takes the 3, 6 the 4, 5 the other 5: three full bins, where first-come would open four.
    assert best_fit([5, 7, 3, 6, 4, 5], 10) == [[0, 5], [1, 2], [3, 4]]
    # Of the bins with room for the 2, the fullest takes it.
    assert best_fit([6, 8, 2], 10) == [[0], [1, 2]]
    with pytest.raises(InputError, match='a row of 11 tokens does not fit into packed rows of 10'):
        best_fit([11], 10)


def test_packed_rows_hold_the_same_tokens_and_restart_their_positions(pairs):
    packed = pack_rows(chosen_rows(pairs), LENGTH)
    assert len(packed.tokens) < len(chosen_rows(pairs).tokens)
    assert (packed.segment_ids > 0).sum() == (chosen_rows(pairs).segment_ids > 0).sum()
    assert packed.mask.sum() == chosen_rows(pairs).mask.sum()
    texts = lambda rows: sorted(  # noqa: E731
        tuple(row.tokens[row.segment_ids == s])
        for row in (take_rows(rows, i) for i in range(len(rows.tokens)))
        for s in range(1, row.segment_ids.max() + 1)
    )
    assert texts(packed) == texts(chosen_rows(pairs))
    starts = np.diff(packed.segment_ids, axis=1, prepend=0) > 0
    assert (packed.positions[starts] == 0).all()
    assert (packed.tokens[packed.segment_ids == 0] == CODEC.pad_id).all()
    assert padding_share(packed) < padding_share(chosen_rows(pairs))
    assert padding_share(packed) == pytest.approx(1 - (packed.segment_ids > 0).mean())


def value_and_grads(objective, params, batch):
    return jax.jit(jax.value_and_grad(lambda p: objective(p, batch, None), has_aux=True))(params)


def agree(ours, theirs, tolerance=1e-5):
    (loss, metrics), grads = ours
    (loss_alone, metrics_alone), grads_alone = theirs
    assert float(loss) == pytest.approx(float(loss_alone), abs=tolerance)
    for name, value in metrics_alone.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-5, abs=tolerance), name
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), grads, grads_alone)


def test_sft_loss_packed_and_not(pairs, params):
    objective = sft_objective(Transformer(CONFIG).apply)
    rows = chosen_rows(pairs)
    packed = pack_rows(rows, LENGTH)
    total = rows.mask.sum()
    agree(value_and_grads(objective, params, (packed, total)), value_and_grads(objective, params, (rows, total)))
    # One segment for all of a row is what must not be: it changes the loss by far more.
    merged = packed.replace(segment_ids=(packed.segment_ids > 0).astype(np.int32))
    wrong = value_and_grads(objective, params, (merged, total))[0][0]
    assert abs(float(wrong - value_and_grads(objective, params, (rows, total))[0][0])) > 1e-3


@pytest.mark.parametrize('loss', [dpo_loss, ipo_loss, odpo_loss])
def test_pair_losses_packed_and_not(pairs, params, loss):
    apply = Transformer(CONFIG).apply
    reference = jax.jit(lambda rows: sequence_logps(apply, {'params': init_params(CONFIG, jax.random.key(1))}, rows))
    sides = [reference(take_rows(pairs.candidates, (slice(None), i))) for i in (0, 1)]
    margin, weight = np.linspace(0, 1, 24, dtype=np.float32), np.linspace(0.5, 2, 24, dtype=np.float32)
    pairs = pairs.replace(ref_logps=np.stack(sides, axis=1), margin=margin, weight=weight)
    pairs = jax.tree.map(np.asarray, pairs)
    packed = pack_pairs(pairs, LENGTH)
    assert packed.label.shape[1] > 1 and count_examples(packed) == count_examples(pairs) == 24
    bound = partial(loss, beta=0.1)
    ours = packed_preference_objective(apply, bound, beta=0.1)
    theirs = preference_objective(apply, bound, beta=0.1)
    agree(value_and_grads(ours, params, (packed, 24.0)), value_and_grads(theirs, params, (pairs, 24.0)))


def test_reward_loss_packed_and_not(pairs, params):
    apply = ScalarModel(CONFIG).apply
    model = reward_params(params, jax.random.key(2))
    packed = pack_pairs(pairs, LENGTH)
    agree(
        value_and_grads(packed_reward_objective(apply, center_coef=0.01), model, (packed, 24.0)),
        value_and_grads(reward_objective(apply, center_coef=0.01), model, (pairs, 24.0)),
    )


def test_a_row_with_fewer_pairs_adds_nothing(pairs, params):
    packed = pack_pairs(pairs, LENGTH)
    assert (packed.chosen.segment_ids.max(axis=1) < packed.label.shape[1]).any()
    objective = packed_preference_objective(Transformer(CONFIG).apply, lambda pair: ipo_loss(pair, beta=0.1), beta=0.1)
    packed = packed.replace(ref_logps=np.zeros((*packed.label.shape, 2), np.float32))
    (loss, _), grads = value_and_grads(objective, params, (packed, 24.0))
    halves = np.array_split(np.arange(len(packed.label)), 2)
    parts = [value_and_grads(objective, params, (take_rows(packed, half), 24.0))[0][0] for half in halves]
    assert np.isfinite(loss) and float(loss) == pytest.approx(float(sum(parts)), rel=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_packed_token_logps_are_those_of_rows_alone(pairs, params):
    apply = Transformer(CONFIG).apply
    logps = jax.jit(lambda rows: token_logps(apply, {'params': params}, rows))
    rows = token_rows(CODEC, ['ab', 'c d e'], ['fed', 'a'])
    packed = pack_rows(rows, LENGTH)
    alone, together = np.asarray(logps(rows)), np.asarray(logps(packed))
    np.testing.assert_allclose(together[packed.mask > 0], alone[rows.mask > 0], atol=1e-5)
