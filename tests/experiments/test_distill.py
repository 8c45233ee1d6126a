"""distill.py end to end, what it refuses, and its objective against the dense loss."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.data.records import write_records
from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.errors import InputError
from rlax_ft.harness.distillation import domain_schedule, mixed, with_hint
from rlax_ft.harness.loading import load_script
from rlax_ft.hf.folder import load_pretrained, save_pretrained
from rlax_ft.losses.distillation import generalized_jsd_loss
from rlax_ft.models.config import embedded_config
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.objectives.distill import DistillBatch, distill_objective, hidden_before_tokens, teacher_head
from rlax_ft.training.metrics import read_records
from rlax_ft.types import Rollout

SCRIPTS = Path(__file__).parents[2] / 'experiments'
distill = load_script(SCRIPTS / 'distill.py')


RECORDS = [
    {'prompt': f'{a} {b} =', 'completion': f'{min(a, b)} {max(a, b)}', 'answer': a + b, 'domain': 'ab'[a % 2]}
    for a in range(5)
    for b in range(4)
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Data, and two tiny models with one vocabulary: a student, and a teacher who is sure of what it says."""
    folder = tmp_path_factory.mktemp('distill')
    write_records(folder / 'data.jsonl', RECORDS)
    write_records(folder / 'eval.jsonl', RECORDS[:8])
    tokenizer = word_tokenizer(('=', *'0123456789'))
    config = embedded_config('tiny', vocab_size=len(tokenizer), max_length=24)
    for seed, name in enumerate(('student', 'teacher')):
        params = jax.tree.map(lambda x, by=1 + 2 * seed: x * by, init_params(config, jax.random.key(seed)))
        save_pretrained(folder / name, config, params, tokenizer)
    return folder


def settings(folder, out, **given):
    common = dict(data=f'{folder}/data.jsonl', eval_data=f'{folder}/eval.jsonl', init_from=f'{folder}/student')
    common |= dict(teacher=f'{folder}/teacher', batch_size=16, max_steps=8, learning_rate=1e-2, report_to='')
    common |= dict(max_prompt_tokens=8, max_new_tokens=4, schedule='constant')
    return distill.DistillSettings(out=str(out), **{**common, **given})


@pytest.mark.slow
def test_the_policy_comes_to_its_teacher_and_a_cut_run_ends_alike(folder, tmp_path):
    long = dict(max_steps=12)
    whole = distill.train(settings(folder, tmp_path / 'whole', **long))
    values = [record['loss'] for record in read_records(tmp_path / 'whole/metrics.jsonl')]
    assert len(values) == 12 and np.mean(values[-3:]) < 0.8 * np.mean(values[:3]) and min(values) > 0
    distill.train(settings(folder, tmp_path / 'cut', max_steps=3))
    assert distill.train(settings(folder, tmp_path / 'cut', **long)) == whole
    params = [load_pretrained(tmp_path / name / 'model')[1] for name in ('whole', 'cut')]
    jax.tree.map(np.testing.assert_array_equal, *params)


@pytest.mark.slow
def test_teachers_by_domain_with_a_hint_on_given_completions_too(folder, tmp_path):
    """The policy is its own teacher for one domain; both read the answer; half the completions are the data's."""
    given = dict(teacher=f'a={folder}/teacher,b=self', hint='{answer} {prompt}', on_policy_share=0.5)
    given |= dict(jsd_beta=0.5, micro_batches=2, lora_rank=2, max_steps=4)
    distill.train(settings(folder, tmp_path / 'run', **given))
    records = read_records(tmp_path / 'run/metrics.jsonl')
    assert len(records) == 4 and all(record['loss'] > 0 for record in records)
    # The hint makes another distribution of the same weights, so the first loss of each domain is above 0.
    load_pretrained(tmp_path / 'run/model')


@pytest.mark.parametrize(
    ('message', 'wrong'),
    [
        ("field \"domain\" is 'a', and --teacher has 'c'", dict(teacher='c=self,b=self', hint='{prompt} {answer}')),
        ('--teacher: give a folder', dict(teacher='')),
        ('would read what the policy reads', dict(teacher='self')),
        ('has no {prompt}', dict(teacher='self', hint='{answer}')),
        ('a record has no field "nothing"', dict(teacher='self', hint='{prompt} {nothing}')),
        ("is right on the policy's own samples", dict(divergence='sampled', on_policy_share=0.5)),
        ('--jsd_beta=0.5: has no effect', dict(divergence='sampled', jsd_beta=0.5)),
        ('--domain_field=x: has no effect', dict(domain_field='x')),
        ('holds no model', dict(teacher='nowhere')),
    ],
)
def test_mistakes(folder, tmp_path, message, wrong):
    with pytest.raises(InputError) as caught:
        distill.train(settings(folder, tmp_path / 'wrong', **wrong))
    assert message in str(caught.value) and '\n' not in str(caught.value)


@pytest.fixture(scope='module')
def models():
    """A student, a wider teacher whose vocabulary has padding behind it, and completions of the student's prompts."""
    small, large = (embedded_config(size, vocab_size=v, max_length=32) for size, v in (('tiny', 11), ('small', 16)))
    rng = np.random.default_rng(0)
    # Every row has six tokens, so that one program reads each of them alone.
    mask = np.arange(5) < np.asarray([5, 2, 3, 4])[:, None]
    lefts = np.arange(4) >= np.asarray([3, 0, 1, 2])[:, None]
    tokens = lambda n: jnp.asarray(rng.integers(3, 11, (4, n)))  # noqa: E731
    rollout = Rollout(tokens(4), jnp.asarray(lefts), tokens(5), jnp.asarray(mask), jnp.zeros((4, 5)))
    apply = [Transformer(config).apply for config in (small, large)]
    params = [init_params(config, jax.random.key(i)) for i, config in enumerate((small, large))]
    return apply, params, rollout


def test_the_objective_is_the_dense_loss_row_by_row(models):
    (student, teacher), (params, theirs), rollout = models
    hidden = jax.jit(hidden_before_tokens, static_argnums=0)(teacher, theirs, rollout)
    head = teacher_head(teacher, theirs)
    objective = distill_objective(student, jsd_beta=0.3, temperature=0.8)
    total = rollout.mask.sum()
    loss = jax.jit(lambda rows: objective(params, (DistillBatch(rows[0], rows[1]), total), None, head)[0])
    found = loss((rollout, hidden))
    read = [
        jax.jit(lambda v, row, a=a: a({'params': v}, a({'params': v}, row)[0], method='unembed')[..., :11])
        for a in (student, teacher)
    ]
    dense, expected = jax.jit(partial(generalized_jsd_loss, beta=0.3, temperature=0.8)), 0.0
    written = jax.tree.map(np.asarray, rollout)
    for i in range(4):
        prompt = written.prompts[i][written.prompt_mask[i]]
        answer = written.tokens[i][written.mask[i]]
        row = np.concatenate([prompt, answer])[None]
        logits = [f(variables, row) for f, variables in zip(read, (params, theirs))]
        expected += float(np.asarray(dense(*logits))[:, len(prompt) - 1 : -1].sum())
    np.testing.assert_allclose(found, expected / float(total), rtol=1e-4)
    # Parts of a batch add up, and the gradient with them.
    parts = [jax.tree.map(lambda x, s=s: x[s], (rollout, hidden)) for s in (slice(0, 2), slice(2, 4))]
    np.testing.assert_allclose(sum(map(loss, parts)), found, rtol=1e-5)


def test_the_sampled_gradient_is_that_of_the_reverse_kl(models):
    """Summed over every token that could have been drawn, weighted by its probability, at one position."""
    (student, teacher), (params, theirs), rollout = models
    one = jax.tree.map(lambda x: x[:1], rollout).replace(mask=jnp.asarray([[True, False, False, False, False]]))
    before = jax.jit(hidden_before_tokens, static_argnums=0)
    hidden, head = before(teacher, theirs, one), teacher_head(teacher, theirs)

    def loss(params, divergence, token):
        rows = one.replace(tokens=one.tokens.at[0, 0].set(token))
        objective = distill_objective(student, divergence=divergence)
        return objective(params, (DistillBatch(rows, hidden), 1.0), None, head)[0]

    states = before(student, params, one)[0, 0]
    probabilities = jax.nn.softmax(student({'params': params}, states, method='unembed'))
    every = lambda p: jax.vmap(lambda token: loss(p, 'sampled', token))(jnp.arange(11))  # noqa: E731
    total = jax.jit(jax.grad(lambda p: probabilities @ every(p)))(params)
    exact = jax.jit(jax.grad(lambda p: loss(p, 'jsd', 3)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), total, exact)


def test_what_the_batches_are_made_of(models):
    *_, rollout = models
    given = jnp.full((4, 5), 9), jnp.ones((4, 5), bool)
    rows = mixed(rollout, *given, own=3)
    np.testing.assert_array_equal(rows.tokens[:3], rollout.tokens[:3])
    assert (rows.tokens[3] == 9).all() and rows.mask[3].all() and not rows.mask[1, 2:].any()
    schedule = domain_schedule({'a': 30, 'b': 10}, 400, seed=1)
    assert schedule[:100] == domain_schedule({'a': 30, 'b': 10}, 100, seed=1)
    of_a = [number for domain, number in schedule if domain == 'a']
    assert of_a == list(range(len(of_a))) and 260 < len(of_a) < 340
    prompt = [{'role': 'user', 'content': 'two and two?'}]
    hinted = with_hint(prompt, '{prompt} ({answer})', {'answer': 4})
    assert hinted == [{'role': 'user', 'content': 'two and two? (4)'}] and prompt[0]['content'] == 'two and two?'
