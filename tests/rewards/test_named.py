"""Rewards by name with options, sums of them, and what --reward refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.data.codec import Codec
from rlax_ft.data.templates import TEMPLATES
from rlax_ft.data.tokenizers import train_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.harness.rewards import make_reward
from rlax_ft.harness.rollouts import without_failed
from rlax_ft.hf.folder import save_pretrained
from rlax_ft.models.config import embedded_config
from rlax_ft.models.scoring import sequence_logps
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.rewards.judge import _loaded, _score, fill_template, judge
from rlax_ft.rewards.named import parse_call, split_parts
from rlax_ft.tasks import get_task
from rlax_ft.types import Rollout, TokenBatch

CODEC = Codec(train_tokenizer('bytes', []), 16, 16)


def scores(text, records, completions, **how):
    total, parts = make_reward(text, get_task('sort'), CODEC, **how)(None, records, lambda: completions)
    return np.asarray(total).tolist(), {name: np.asarray(values).tolist() for name, values in parts.items()}


def test_sums_are_split_at_commas_outside_brackets():
    text = "maths*0.5, regex(pattern='a,b*2)')*-2,length(at_most=3),a.py:f(x=(1,2))"
    assert split_parts(text) == [
        ('maths', '0.5'),
        ("regex(pattern='a,b*2)')", '-2'),
        ('length(at_most=3)', ''),
        ('a.py:f(x=(1,2))', ''),
    ]
    assert parse_call(r"regex(pattern='\\d+', whole=True)") == ('regex', {'pattern': r'\d+', 'whole': True})


def test_a_weighted_sum_by_name(tmp_path, monkeypatch):
    (tmp_path / 'mine.py').write_text(
        'def f(records, completions, *, by=1.0):\n    return [by * len(c) for c in completions]\n'
    )
    monkeypatch.chdir(tmp_path)
    total, parts = scores(
        "maths*2,regex(pattern='^I'),mine.py:f(by=0.5)", [{'answer': '4'}] * 2, ['I say 4', 'It is 5']
    )
    assert total == [2.0 + 1.0 + 3.5, 0.0 + 1.0 + 3.5]
    assert list(parts) == ['maths', "regex(pattern='^I')", 'mine.py:f(by=0.5)']


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('math', 'no such rule or folder; rules are maths, '),
        ('maths(digits=3)', "takes no option 'digits'; its options: answer"),
        ('regex', r'needs pattern, as in regex\(pattern=...\)'),
        ("length(at_most='x')", "at_most is 'x'; a value such as 0"),
        ("length('x')", 'an option without a name'),
        ('length(at_most=', r'give NAME or NAME\(option=value'),
        ('length(at_most=x)', 'options are NAME'),
        ('maths*x', "'x' is no weight"),
        ('maths,maths', 'stands there twice'),
        ('', 'give a rule such as maths'),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(InputError, match=message) as caught:
        make_reward(text, None, CODEC)
    assert '\n' not in str(caught.value)


def test_a_failed_group_teaches_nothing():
    records, texts = [{'answer': '1'}] * 2 + [{}] * 2, ['1', '2', '3', '4']
    found = scores('maths', records, texts, reward_failures=0.5)[0]
    assert found[:2] == [1.0, 0.0] and np.isnan(found[2:]).all()
    with pytest.raises(InputError, match='no field "answer"'):
        scores('maths', records, texts)
    ones = np.ones((4, 3))
    rollout = Rollout(prompts=ones, prompt_mask=ones > 0, tokens=ones, mask=ones > 0, logps=-ones)
    kept, left, failed = without_failed(rollout, jnp.asarray([1.0, 0.0, jnp.nan, 2.0]), 2)
    assert failed == 1 and np.asarray(left).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert np.asarray(kept.mask).sum(axis=1).tolist() == [3, 3, 0, 0] and not np.asarray(kept.logps)[2:].any()


@pytest.fixture(scope='module')
def judge_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('judge')
    config = embedded_config('tiny', vocab_size=len(CODEC.tokenizer), max_length=64)
    params = jax.tree.map(lambda x: x * 3, init_params(config, jax.random.key(0)))
    save_pretrained(folder, config, params, CODEC.tokenizer)
    return folder, config, params


def test_a_judges_log_odds(judge_folder, monkeypatch):
    folder, config, params = judge_folder
    records, texts = [{'prompt': 'p', 'aim': 'x'}, {'prompt': 'quite', 'aim': 'y'}], ['yes', 'n']
    given = dict(model=str(folder), template='{prompt} {aim}: {completion}?', good=' Y', bad=' No')
    found = judge(records, texts, **given)

    def logp(question, answer, end=False):
        encode = lambda text: CODEC.tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
        start, answer_ids = [CODEC.tokenizer.bos_token_id, *encode(question)], encode(answer)
        answer_ids += [CODEC.tokenizer.eos_token_id] * end
        ids = jnp.asarray([start + answer_ids])
        mask = jnp.asarray([[0.0] * len(start) + [1.0] * len(answer_ids)])
        row = TokenBatch(ids, mask, jnp.arange(ids.shape[1])[None], jnp.ones_like(ids))
        return float(jax.jit(lambda r: sequence_logps(Transformer(config).apply, {'params': params}, r))(row)[0])

    questions = ['p x: yes?', 'quite y: n?']
    np.testing.assert_allclose(found, [logp(q, ' Y') - logp(q, ' No') for q in questions], atol=1e-4)
    # With a chat template the question is a message, and the answer a whole turn.
    monkeypatch.setattr(_loaded(str(folder))[2], 'chat_template', TEMPLATES['plain'])
    asked = [f'\n\nHuman: {question}\n\nAssistant:' for question in questions]
    expected = [logp(a, ' Y', end=True) - logp(a, ' No', end=True) for a in asked]
    np.testing.assert_allclose(judge(records, texts, **given), expected, atol=1e-4)


def test_a_score_that_a_judge_writes(judge_folder):
    given = dict(model=str(judge_folder[0]), template='{completion}')
    with pytest.raises(ValueError, match='finds no score'):
        judge([{'prompt': 'p'}], ['t'], pattern='Score: (9)', **given)
    assert _score(r'Score: (\d+)', 'It is good. Score: 8 of 9') == 8.0
    assert fill_template('{a} {"b": 1} {c}', {'a': 1, 'c': 'x'}) == '1 {"b": 1} x'
    with pytest.raises(InputError, match='no field "d"'):
        fill_template('{d}', {'a': 1})
