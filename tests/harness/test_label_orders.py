"""Orders of asking: what is bought in which order, the share of labels by hand, and that the models learn at all."""

import jax
import numpy as np
import pytest

from rlax_ft.data.codec import Codec
from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.feedback.judgements import judgement
from rlax_ft.harness.label_orders import Pool, label_share, learning_curve, make_pool, make_trainer
from rlax_ft.models.config import embedded_config
from rlax_ft.models.transformer import init_params


def test_the_share_of_labels_by_hand():
    labels, random = np.asarray([10, 20, 40]), np.asarray([[0.5, 0.6, 0.7], [0.5, 0.6, 0.9]])
    # The goal is 0.8. The other mean is 0.6, 0.7, 0.9: reached half way from 20 to 40.
    assert label_share(random, np.asarray([[0.6, 0.7, 0.9]] * 2), labels) == pytest.approx(30 / 40)
    assert label_share(random, np.asarray([[0.8, 0.1, 0.1]]), labels) == pytest.approx(10 / 40)
    assert label_share(random, random, labels) == 1.0
    assert label_share(random, np.asarray([[0.5, 0.6, 0.79]]), labels) == np.inf


def test_uncertain_buys_the_smallest_margins_next_and_both_begin_alike():
    pool = Pool(np.arange(12), np.ones(12, np.float32))
    scores = np.stack([np.arange(12.0), np.zeros(12)], axis=1)  # The margin of pair i is i.
    bought = {}
    for strategy in ('random', 'uncertain'):
        rounds = bought.setdefault(strategy, [])
        learn = lambda pool, chosen, seed: rounds.append(chosen.tolist())  # noqa: B023, E731
        curve = learning_curve(learn, lambda _, some: scores, pool, pool, strategy=strategy, rounds=3, share=3, seed=1)
        # Of the pairs, whose first always is right, all but the one of margin 0 are.
        assert curve == [(3, 11 / 12), (6, 11 / 12), (9, 11 / 12)]
    assert bought['random'][0] == bought['uncertain'][0] and sorted(bought['random'][2]) == sorted(
        set(bought['random'][2])
    )
    rest = [i for i in range(12) if i not in bought['uncertain'][0]]
    assert bought['uncertain'][1][3:] == rest[:3] and bought['uncertain'][2][6:] == rest[3:6]
    assert bought['random'][1][3:] != rest[:3]


def test_models_learn_the_labels_they_are_given():
    words = ('good', 'bad', *'abcdef')
    codec = Codec(word_tokenizer(words), 4, 4, cut_off=True)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(64):
        texts = [f'{word} {rng.choice(list("abcdef"))}' for word in ('good', 'bad')][:: 1 if i % 2 else -1]
        rows.append(judgement('a b', texts, [int('bad' in text) for text in texts], 'Ann', item=str(i)))
    with pytest.raises(InputError, match='65 decided pairs were expected; found 64'):
        make_pool(codec, rows, 65)
    pool = make_pool(codec, [*rows, judgement('a', ['b', 'c'], [0, 0], 'Ann')], 64)
    assert pool.label.tolist() == [0, 1] * 32 and pool.candidates.tokens.shape == (64, 2, 8)
    config = embedded_config('tiny', vocab_size=len(codec.tokenizer), max_length=8)
    model = init_params(config, jax.random.key(0))
    learn, score = make_trainer(config, model, max_steps=64, batch_size=16, learning_rate=1e-2)
    curve = learning_curve(learn, score, pool, pool, strategy='uncertain', rounds=2, share=32, seed=0)
    assert [n for n, _ in curve] == [32, 64] and curve[-1][1] == 1.0
    # Other labels, other models: the same chosen pairs with the labels turned round.
    turned = learn(Pool(pool.candidates, 1 - pool.label), np.arange(64), 0)
    margin = np.subtract(*score(turned, pool).T)
    assert ((margin > 0) != (pool.label > 0.5)).all()
