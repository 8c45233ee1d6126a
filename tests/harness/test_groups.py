"""The collection of groups with a stub for a sampler: refills and their bound, what waits, the curriculum, state."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rlax_ft.data.codec import Codec
from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.harness.group_report import Clock, group_metrics, token_texts
from rlax_ft.harness.groups import GroupCollector
from rlax_ft.harness.loading import load_script
from rlax_ft.tasks import get_task
from rlax_ft.types import Rollout

grpo = load_script(Path(__file__).parents[2] / 'experiments/grpo.py')
TASK = get_task('sort')
RULE = """
def first_differs(records, completions):
    small = [float(completion.startswith(('0', '1', '2'))) for completion in completions]
    return [s if record['prompt'][0] in 'USEFUL' else 1.0 for record, s in zip(records, small)]
"""
SIZE = 2


def collector(folder, useful='02468', records=40, **given):
    """A collector of 8 groups of 2 a step, whose groups have different rewards where the prompt is a useful one."""
    (folder / 'rule.py').write_text(RULE.replace('USEFUL', useful))
    usual = dict(task='sort', reward=f'{folder}/rule.py:first_differs', batch_size=16, group_size=SIZE, max_refills=3)
    settings = grpo.GRPOSettings(**{**usual, 'dynamic_sampling': True, **given})
    codec = Codec(word_tokenizer(TASK.words), TASK.max_prompt_tokens, TASK.max_new_tokens, ends=True)
    prompts = [{'prompt': prompt} for prompt in TASK.sample_prompts(records, 0)]
    made = GroupCollector(settings, TASK, codec, SimpleNamespace(apply=None), prompts, Clock())
    letters = codec.tokenizer.convert_tokens_to_ids(list('0123456789'))

    def sample(params, tokens, mask, key):
        """In each group the first begins with a digit below 3, the second with one above."""
        rows = len(tokens)
        drawn = np.array(jax.random.randint(key, (rows, 4), 0, 10))
        drawn[:, 0] = np.where(np.arange(rows) % 2 == 0, drawn[:, 0] % 3, 3 + drawn[:, 0] % 7)
        ids = np.concatenate([np.asarray(letters)[drawn], np.full((rows, 2), codec.pad_id)], axis=1)
        real = np.broadcast_to(np.arange(6) < 4, ids.shape)
        return Rollout(tokens, mask, ids, real, np.where(real, -0.1, 0.0).astype(np.float32))

    made._sample = sample
    return made


def step(made, i):
    return made.finish(made.start(None, i), None, i)


def test_what_cannot_be_refilled_is_made_up_and_counted(tmp_path):
    batch = step(collector(tmp_path, useful='-'), 0)
    found = {name: batch.metrics[f'groups/{name}'] for name in ('refills', 'dropped', 'short', 'waiting')}
    assert found == {'refills': 3, 'dropped': 4 * 8 - 8, 'short': 8, 'waiting': 0}
    assert batch.scores.shape == (16,) and batch.metrics['frac_reward_zero_std'] == 1.0


def test_groups_that_teach_nothing_are_replaced_and_what_is_too_many_waits(tmp_path):
    made = collector(tmp_path)
    first, second = step(made, 0), step(made, 1)
    for batch in (first, second):
        assert np.all(np.ptp(batch.groups.scores, axis=1) > 0) and batch.metrics['groups/short'] == 0
        assert len(batch.groups) == 8 and batch.metrics['groups/refills'] >= 1
    waited = int(first.metrics['groups/waiting'])
    assert waited > 0
    # What waited goes first, and is known to be one update old.
    np.testing.assert_array_equal(second.groups.step, [0] * waited + [1] * (8 - waited))
    assert second.metrics['sampling/staleness/max'] == 1.0
    seen = first.metrics['groups/dropped'] + 8 + waited
    assert seen == 8 * (1 + first.metrics['groups/refills'])


def test_without_dynamic_sampling_the_prompts_are_the_datas(tmp_path):
    batch = step(collector(tmp_path, dynamic_sampling=False, max_refills=8), 0)
    assert 'groups/refills' not in batch.metrics and 0 < batch.metrics['frac_reward_zero_std'] < 1


@pytest.mark.parametrize('how', [{}, {'curriculum': True}, {'ahead': 1}], ids=str)
def test_a_collector_goes_on_from_its_state(tmp_path, how):
    whole, cut = collector(tmp_path, **how), collector(tmp_path, **how)
    for made in (whole, cut):
        step(made, 0)
    ahead = cut.start(None, 0) if how.get('ahead') else None
    saved = jax.tree.map(np.asarray, cut.state(ahead))
    other = collector(tmp_path, **how)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), saved, other.state(None))  # a fixed shape
    pending = other.restore(saved)
    assert (pending is None) == (ahead is None)
    expected = whole.finish(whole.start(None, 0 if ahead else 1), None, 1)
    found = other.finish(pending or other.start(None, 1), None, 1)
    jax.tree.map(np.testing.assert_array_equal, found.groups, expected.groups)
    assert found.metrics == expected.metrics


def test_the_curriculum_prefers_what_is_solved_half_of_the_time(tmp_path):
    made = collector(tmp_path, curriculum=True, dynamic_sampling=False, max_refills=8)
    for i in range(60):
        step(made, i)
    useful = np.array([record['prompt'][0] in '02468' for record in made._records])
    share = made._solved / made._tries
    np.testing.assert_allclose(share[useful], 0.5)
    np.testing.assert_allclose(share[~useful], 1.0)
    # What is always solved is drawn less and less.
    assert made._tries[useful].mean() > 2 * made._tries[~useful].mean()
    assert made._tries.sum() == 60 * 16


def test_a_reward_that_is_no_number_costs_its_group_alone(tmp_path):
    made = collector(tmp_path, dynamic_sampling=False, max_refills=8)
    scored = made.score

    def broken(tokens, records, texts):
        scores, parts = scored(tokens, records, texts)
        spoilt = np.asarray(scores).copy()
        spoilt[3] = np.nan
        return spoilt, parts

    broken.weights, made.score = scored.weights, broken
    batch = step(made, 0)
    assert batch.metrics['groups/failed'] == 1 and np.all(batch.groups.scores[1] == 0.0)
    assert np.isfinite(np.asarray(batch.scores)).all()


def test_numbers_of_groups_by_hand():
    groups = SimpleNamespace(
        scores=np.array([[1.0, 0.0], [0.0, 0.0]], np.float32),
        parts=np.zeros((2, 2, 1)),
        mask=np.array([[[1, 1], [1, 0]], [[1, 1], [1, 1]]], bool),
        logps=np.array([[[-1.0, -3.0], [-0.5, 0.0]], [[-1.0, -1.0], [-1.0, -1.0]]]),
        ended=np.array([[True, True], [False, True]]),
    )
    found = group_metrics(groups, {'rule': 1.0}, 0.5)
    assert found['reward'] == 0.25 and found['frac_reward_zero_std'] == 0.5
    assert found['pass@1'] == 0.25 and found['pass@2'] == 0.5 and 'pass@4' not in found
    assert found['completions/mean_length_solved'] == 2 and found['entropy_solved'] == 2.0
    assert found['completions/mean_length_unsolved'] == pytest.approx(5 / 3)
    assert found['entropy_unsolved'] == pytest.approx((0.5 + 1 + 1) / 3)
    assert found['completions/clipped_ratio'] == 0.25


def test_texts_of_tokens_keep_their_blanks():
    tokenizer = word_tokenizer(('good', 'film'))
    ids = tokenizer.convert_tokens_to_ids(['good', 'film'])
    assert token_texts(tokenizer, ids) == ['good', ' film']
