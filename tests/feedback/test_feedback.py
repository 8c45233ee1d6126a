"""The annotator is Bradley-Terry, judgements tie equal texts, and rewards keep their values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.data.records import read_rankings, write_records
from rlax_ft.errors import InputError
from rlax_ft.feedback.annotator import rank_completions
from rlax_ft.feedback.judgements import judgement
from rlax_ft.hf.folder import save_pretrained
from rlax_ft.models.config import embedded_config
from rlax_ft.models.heads import reward_params
from rlax_ft.models.transformer import init_params
from rlax_ft.rewards.learned import RewardModel, load_reward_model, save_reward_model
from rlax_ft.rewards.rules import as_reward, reward_scores
from rlax_ft.types import TokenBatch


def test_every_pair_of_a_ranking_follows_bradley_terry():
    gold = np.asarray([0.0, 1.0, -0.5, 0.3])
    ranks = rank_completions(np.random.default_rng(0), np.tile(gold, (40_000, 1)), temperature=0.7)
    assert (np.sort(ranks, axis=1) == np.arange(4)).all()
    for a in range(4):
        for b in range(a):
            share = (ranks[:, a] < ranks[:, b]).mean()
            assert share == pytest.approx(1 / (1 + np.exp(-(gold[a] - gold[b]) / 0.7)), abs=0.012)
    assert rank_completions(np.random.default_rng(0), gold[None], temperature=0).tolist() == [[2, 0, 3, 1]]


def test_judgements_tie_equal_texts_and_read_back(tmp_path):
    record = judgement('p', ['x', 'y', 'x', 'z'], [3, 1, 0, 2], 'simulated')
    assert record['ranks'] == [0, 1, 0, 2]
    write_records(tmp_path / 'j.jsonl', [record])
    assert read_rankings(tmp_path / 'j.jsonl')[0]['ranks'] == [0, 1, 0, 2]


def test_rules_keep_fractions_and_refuse_nan():
    # An integer first must not make the array one of integers: 0.7 would become 0.
    records = [{'prompt': 'p', 'answer': 'b'}, {'prompt': [{'role': 'user', 'content': 'q'}], 'answer': 'b'}]
    scores = reward_scores(as_reward(lambda p, c: 1 if c == 'a' else 0.7), records, ['a', 'b'])
    assert scores.dtype == np.float32 and scores.tolist() == pytest.approx([1.0, 0.7])
    # A rule of two texts sees a message list as text; a batched reward sees every field.
    assert reward_scores(as_reward(lambda p, c: p == 'q'), records, ['a', 'b']).tolist() == [0.0, 1.0]

    def right(records, completions, scale=1.0):
        return [scale * (record['answer'] == completion) for record, completion in zip(records, completions)]

    assert reward_scores(as_reward(right), records, ['a', 'b'], scale=2.0, unknown=1).tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    ('reward', 'message'),
    [
        (lambda p, c: float('nan'), r"r: gave nan for 'c'; a finite number was expected"),
        (lambda p, c: None, r"r: gave None for 'c'; a number was expected"),
        (lambda p, c: 'good', r"r: gave 'good' for 'c'"),
        (lambda p, c: 1 / 0, r'r: raised ZeroDivisionError: division by zero'),
        (lambda records, completions: [1.0, 2.0], r'r: gave 2 values for 1 completions; one number each'),
        (lambda records, completions: None, r'r: gave a single value for 1 completions'),
        (lambda x: 1.0, r'a reward takes \(records, completions, \*\*info\) or \(prompt, completion\); found \(x\)'),
    ],
)
def test_a_reward_that_gives_no_numbers_is_one_line(reward, message):
    with pytest.raises(InputError, match=message):
        reward_scores(as_reward(reward), [{'prompt': 'p'}], ['c'], name='r')


def test_reward_models_are_centred_and_come_back(tmp_path):
    config = embedded_config('tiny', vocab_size=8, max_length=8)
    backbone = init_params(config, jax.random.key(0))
    model = RewardModel(config, reward_params(backbone, jax.random.key(1)))
    tokens = jax.random.randint(jax.random.key(2), (64, 6), 0, 8)
    ones = jnp.ones_like(tokens)
    rows = TokenBatch(tokens, ones.astype(jnp.float32), jnp.broadcast_to(jnp.arange(6), tokens.shape), ones)
    scores = np.asarray(model(rows))
    for scale in (False, True):
        normal = model.normalized(scores, scale=scale)
        assert float(normal(rows).mean()) == pytest.approx(0.0, abs=1e-5)
        assert float(normal(rows).std()) == pytest.approx(1.0 if scale else scores.std(), rel=1e-4)
    save_reward_model(tmp_path / 'rm', normal, None)
    loaded, _ = load_reward_model(tmp_path / 'rm')
    np.testing.assert_allclose(loaded(rows), normal(rows), atol=1e-6)
    save_pretrained(tmp_path / 'lm', config, backbone)
    with pytest.raises(InputError, match=r'a language model, not a reward model'):
        load_reward_model(tmp_path / 'lm')
