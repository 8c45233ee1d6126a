"""Conversations: token in, token out; the sampler's numbers are the trainer's; a policy learns from them."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_ft.data.codec import Codec
from rlax_ft.data.templates import set_chat_template
from rlax_ft.data.tokenizers import train_tokenizer
from rlax_ft.envs.text import TextEnvironment, TextStep
from rlax_ft.envs.text_calculator import CALCULATOR
from rlax_ft.errors import InputError
from rlax_ft.harness.conversation_groups import ConversationCollector
from rlax_ft.harness.conversations import ConversationSettings, make_conversations, text_environment
from rlax_ft.harness.group_report import Clock
from rlax_ft.losses.policy_gradient import reinforce_loss
from rlax_ft.models.config import LoRAConfig, embedded_config
from rlax_ft.models.lora import Adapter, adapted, attach, init_adapter
from rlax_ft.models.scoring import token_logps
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.ops.reduce import aggregate
from rlax_ft.ops.returns import discounted_returns, group_advantages
from rlax_ft.training.step import init_state, make_train_step

LIKED = 25.0


@dataclasses.dataclass(frozen=True)
class Flags(ConversationSettings):
    """What the collector reads of a script's settings."""

    mesh: str = 'data=1'
    backend: str = 'pmap'  # Arrays stay where they are.


def echo(turns=3):
    """Says the number of the turn; every turn is worth 1 where the policy wrote an `a`, the last one 10 more."""

    def step(state, text):
        done = state + 1 == turns
        told = [{'role': 'tool', 'content': f'{state} {text.count("a")}'}]
        return TextStep(state + 1, told, float('a' in text) + 10.0 * done, done)

    return TextEnvironment('echo', lambda record: (0, [{'role': 'user', 'content': record['ask']}]), step, 8)


@pytest.fixture(scope='module')
def model():
    tokenizer = train_tokenizer('bytes', [], ('<|im_start|>', '<|im_end|>'))
    set_chat_template(tokenizer, 'chatml')
    config = embedded_config('tiny', vocab_size=len(tokenizer), max_length=192)
    params = init_params(config, jax.random.key(0))
    # A policy that likes ends of turns and the letter a, so that some turns end and some conversations are long.
    liked = [tokenizer.convert_tokens_to_ids('<|im_end|>'), tokenizer.convert_tokens_to_ids('a')]
    embedding = params['embed']['embedding']
    params['embed']['embedding'] = embedding.at[jnp.asarray(liked)].multiply(LIKED)
    return tokenizer, config, params


def collector(model, env, **given):
    tokenizer, config, _ = model
    codec = Codec(tokenizer, 64, 128, vocab_size=config.vocab_size)
    settings = Flags(turn_tokens=given.pop('turn_tokens', 6))
    return make_conversations(settings, env, codec, Transformer(config).apply, **given), codec


RECORDS = [{'ask': text} for text in ('go', 'say it', 'now, please', 'go', 'x', 'yes', 'no', 'a b c')]


@pytest.fixture(scope='module')
def talks(model):
    collect, codec = collector(model, echo())
    return collect(model[2], RECORDS, jax.random.key(6)), codec


def test_rows_are_what_was_said_and_told(model, talks):
    talks, codec = talks
    tokens = talks.tokens
    assert set(talks.turns.tolist()) == {1, 2, 3} and talks.ended.any() and not talks.ended.all()
    for i, messages in enumerate(talks.messages):
        row, own = tokens.tokens[i][tokens.segment_ids[i] > 0], tokens.mask[i][tokens.segment_ids[i] > 0]
        runs = np.flatnonzero(np.diff(own, prepend=0.0) == 1)
        assert len(runs) == talks.turns[i] == sum(m['role'] == 'assistant' for m in messages)
        # Between two turns stands exactly what the template writes there.
        ends = np.flatnonzero(np.diff(own, append=0.0) == -1) + 1
        told = [m['content'] for m in messages if m['role'] == 'tool']
        for end, begin, text in zip(ends[:-1], runs[1:], told):
            between = codec.tokenizer.decode(row[end:begin])
            assert between == f'\n<|im_start|>tool\n{text}<|im_end|>\n<|im_start|>assistant\n'
        assert codec.tokenizer.decode(row[: runs[0]]).endswith(
            f'{RECORDS[i]["ask"]}<|im_end|>\n<|im_start|>assistant\n'
        )
        # A turn that ended was answered; one that was cut off ended the conversation.
        assert all(row[end - 1] in codec.eos_ids for end in ends[:-1])
        assert talks.ended[i] == (talks.turns[i] == 3)
    said = np.asarray(
        [sum('a' in m['content'] for m in messages if m['role'] == 'assistant') for messages in talks.messages]
    )
    np.testing.assert_array_equal(talks.scores, said + 10.0 * talks.ended)
    np.testing.assert_array_equal(talks.scores, talks.rewards.sum(axis=1))
    assert not talks.rewards[tokens.mask == 0].any() and not talks.logps[tokens.mask == 0].any()


def test_the_samplers_numbers_are_the_trainers(model, talks):
    talks, _ = talks
    apply = Transformer(model[1]).apply
    logps = jax.jit(lambda p, rows: token_logps(apply, {'params': p}, rows))(model[2], talks.tokens)
    np.testing.assert_allclose(logps, talks.logps, atol=1e-4)


def test_an_adapter_talks_and_is_trained_alike(model):
    _, config, base = model
    lora = LoRAConfig(2)
    nudged = jax.tree.map(lambda x: x + 0.02, init_adapter(base, lora, jax.random.key(1)))
    config, params = dataclasses.replace(config, lora=lora), attach(Adapter(nudged), base)
    apply = adapted(Transformer(config).apply)
    codec = Codec(model[0], 64, 128, vocab_size=config.vocab_size)
    collect = make_conversations(Flags(turn_tokens=6), echo(), codec, apply)
    talks = collect(params, RECORDS[:2], jax.random.key(6))
    logps = jax.jit(lambda p, rows: token_logps(apply, {'params': p}, rows))(params, talks.tokens)
    np.testing.assert_allclose(logps, talks.logps, atol=1e-4)
    plain = jax.jit(lambda p, rows: token_logps(Transformer(model[1]).apply, {'params': p}, rows))(base, talks.tokens)
    assert np.abs(plain - logps).max() > 1e-2


def test_prompts_that_are_shared_give_the_same_numbers(model):
    """As branches, a prompt once for its two conversations: the sampler's log-probabilities again."""
    collect, _ = collector(model, echo())
    talks = collect(model[2], [r for r in RECORDS[:3] for _ in range(2)], jax.random.key(6))
    tokens, logps, rewards = talks.branches(2)
    assert tokens.responses.tokens.shape[:2] == (3, 2) and tokens.mask.shape == logps.shape == rewards.shape
    assert tokens.mask.sum() == talks.tokens.mask.sum() and logps.sum() == pytest.approx(talks.logps.sum(), rel=1e-5)
    np.testing.assert_allclose(rewards.sum(axis=1), talks.scores)
    apply = Transformer(model[1]).apply
    found = jax.jit(lambda p, rows: token_logps(apply, {'params': p}, rows))(model[2], tokens)
    np.testing.assert_allclose(found, logps, atol=1e-4)


def test_a_cache_that_is_full_is_read_again(model, talks):
    """With room for one reading and one turn every turn reads its row from the beginning: the same numbers."""
    collect, _ = collector(model, echo(), slots=128 + 6)
    again = collect(model[2], RECORDS, jax.random.key(6))
    np.testing.assert_array_equal(again.tokens.tokens, talks[0].tokens.tokens)
    np.testing.assert_allclose(again.logps, talks[0].logps, atol=1e-4)


def test_an_environment_that_fails_costs_its_group(model):
    def step(state, text):
        if state == 1:
            raise OSError('gone')
        return TextStep(state, [], 1.0, True)

    env = TextEnvironment('breaks', lambda record: (record['n'], [{'role': 'user', 'content': 'q'}]), step, 3)
    records = [{'n': n} for n in (0, 0, 0, 1)]
    talks = collector(model, env, group_size=2, failures=0.5)[0](model[2], records, jax.random.key(0))
    assert talks.failed.tolist() == [False, False, True, True] and talks.scores.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert not talks.tokens.mask[2:].any() and talks.metrics()['reward'] == 1.0
    with pytest.raises(InputError, match=r'--env=breaks: step on .* raised OSError: gone'):
        collector(model, env, group_size=2)[0](model[2], records, jax.random.key(0))


def test_a_policy_learns_from_its_conversations(model):
    """A few updates of REINFORCE with a group baseline, on returns that go on across turns."""
    env, optimizer = echo(turns=2), optax.adam(3e-3)
    collect, _ = collector(model, env, group_size=4, turn_tokens=3)
    apply = Transformer(model[1]).apply

    def loss_fn(params, batch, key):
        tokens, old, advantages, total = batch
        logps = token_logps(apply, {'params': params}, tokens)
        losses = reinforce_loss(logps, old, advantages, tokens.mask)
        return aggregate(losses, tokens.mask, 'token_mean', denominator=total), {}

    step = jax.jit(make_train_step(loss_fn, optimizer))
    state, scores = init_state(model[2], optimizer, jax.random.key(0)), []
    for i in range(12):
        talks = collect(state.params, [r for r in RECORDS for _ in range(4)], jax.random.key(i))
        scores.append(float(talks.scores.mean()))
        mask, returns = talks.tokens.mask, discounted_returns(talks.rewards, talks.tokens.mask, gamma=1.0)
        centred = group_advantages(talks.scores, 4, baseline='mean', scale='none')
        advantages = (returns - (talks.scores - centred)[:, None]) * mask
        state, _ = step(state, (talks.tokens, talks.logps, advantages, mask.sum()))
    assert np.mean(scores[-3:]) > np.mean(scores[:3]) + 1.0


def test_names_and_mistakes(model):
    assert text_environment('calculator') is CALCULATOR
    with pytest.raises(InputError, match='use one of calculator, twenty_questions, grid_words'):
        text_environment('calc')
    with pytest.raises(InputError, match='--turn_tokens=200: more than --max_new_tokens=128'):
        collector(model, CALCULATOR, turn_tokens=200)


def test_groups_step_after_step(model):
    settings = types.SimpleNamespace(
        **dataclasses.asdict(Flags(turn_tokens=4)),
        batch_size=4,
        group_size=2,
        seed=1,
        temperature=1.0,
        reward_failures=0.0,
        success_at=0.5,
    )
    tokenizer, config, params = model
    codec, learner = Codec(tokenizer, 64, 64), types.SimpleNamespace(apply=Transformer(config).apply)
    make = lambda: ConversationCollector(settings, echo(), codec, learner, RECORDS, Clock())  # noqa: E731
    collector = make()
    collector.finish(collector.start(params, 0), params, 0)
    state = collector.state()
    batch = collector.finish(collector.start(params, 1), params, 1)
    again = make()
    again.restore(state)
    same = again.finish(again.start(params, 1), params, 1)
    np.testing.assert_array_equal(batch.tokens.responses.tokens, same.tokens.responses.tokens)
    assert batch.scores.shape == (4,) and batch.parts['env'] is batch.scores
    assert 0 <= batch.metrics['frac_reward_zero_std'] <= 1 and batch.tokens.mask.shape == batch.logps.shape
    asked = [talk[0]['content'] for talk in batch.talks.messages]
    assert asked[0] == asked[1] and asked[2] == asked[3]
