"""Single judged answers: TRL's own numbers on a recorded batch, plain arithmetic, and what no split may change."""

import json
import zlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

from rlax_ft.data.codec import Codec
from rlax_ft.data.judged import judged_answers, judged_rows
from rlax_ft.data.rows import take_rows
from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.hf import load_pretrained
from rlax_ft.losses.unpaired import bco_loss, kto_loss
from rlax_ft.models.config import embedded_config
from rlax_ft.models.scoring import candidate_logps
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.objectives.unpaired import count_judged, kl_baseline, mismatched, next_shift, unpaired_objective
from rlax_ft.parallel.compile import PMAP_AXIS, compile_step
from rlax_ft.training.step import init_state, make_train_step
from rlax_ft.types import BranchBatch, JudgedBatch, TokenBatch

FIXTURE = json.loads((Path(__file__).parents[1] / 'losses/fixtures/kto_batch.json').read_text())
CONFIG = embedded_config('tiny', vocab_size=8, max_length=12)
APPLY = Transformer(CONFIG).apply
CODEC = Codec(word_tokenizer('abcde'), 4, 6)
PAIRS = [
    {'prompt': p, 'completions': [good, bad], 'ranks': [0, 1]}
    for p, good, bad in (('a', 'b c', 'd'), ('a b', 'e', 'c c c'), ('e', 'a b c', 'b'), ('c', 'd', 'a a b'))
]


LOGPS = jax.jit(lambda p, candidates: candidate_logps(APPLY, {'params': p}, candidates))
BASELINE = jax.jit(partial(kl_baseline, APPLY))


@pytest.fixture(scope='module')
def models():
    """(policy, reference)."""
    return tuple(jax.tree.map(lambda x: x * 2, init_params(CONFIG, jax.random.key(i))) for i in (0, 1))


@pytest.fixture(scope='module')
def rows(models):
    batch = judged_rows(CODEC, judged_answers(PAIRS))
    return batch.replace(ref_logps=np.asarray(LOGPS(models[1], batch.candidates)))


def llama(folder, seed):
    """(apply, params) of the Llama that the fixture drew."""
    sizes = FIXTURE['config']
    heads, kv, width = sizes['num_attention_heads'], sizes['num_key_value_heads'], sizes['hidden_size']
    dim, mlp = sizes['head_dim'], sizes['intermediate_size']
    shapes = {'model.embed_tokens': (sizes['vocab_size'], width), 'lm_head': (sizes['vocab_size'], width)}
    shapes['model.norm'] = (width,)
    for i in range(sizes['num_hidden_layers']):
        at = f'model.layers.{i}.'
        shapes |= {f'{at}self_attn.q_proj': (heads * dim, width), f'{at}self_attn.o_proj': (width, heads * dim)}
        shapes |= {f'{at}self_attn.{name}_proj': (kv * dim, width) for name in 'kv'}
        shapes |= {f'{at}mlp.{name}_proj': (mlp, width) for name in ('gate', 'up')}
        shapes |= {f'{at}mlp.down_proj': (width, mlp)}
        shapes |= {f'{at}{name}_layernorm': (width,) for name in ('input', 'post_attention')}
    tensors = {}
    for name, shape in shapes.items():
        draw = np.random.default_rng([seed, zlib.crc32(f'{name}.weight'.encode())]).standard_normal(shape)
        tensors[f'{name}.weight'] = (0.4 * draw).astype(np.float32)
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps({**sizes, 'architectures': ['LlamaForCausalLM']}))
    save_file(tensors, folder / 'model.safetensors')
    config, params, _ = load_pretrained(folder)
    return Transformer(config).apply, params


def recorded():
    """The batch that TRL collated, without its copies for the baseline, and those as (prompt, answer) rows."""
    batch = {name: np.asarray(value) for name, value in FIXTURE['batch'].items()}

    def split(prefix):
        ids, real, answer = (batch[f'{prefix}{name}'] for name in ('input_ids', 'attention_mask', 'completion_mask'))
        return [(i[(r > 0) & (a == 0)], i[a > 0]) for i, r, a in zip(ids, real, answer)]

    own = split('')
    longest = [max(len(row[side]) for row in own) for side in (0, 1)]
    prompt = TokenBatch(*(np.zeros((len(own), longest[0]), kind) for kind in (int, float, int, int)))
    answers = TokenBatch(*(np.zeros((len(own), 1, longest[1]), kind) for kind in (int, float, int, int)))
    for i, (x, y) in enumerate(own):
        start = longest[0] - len(x)
        prompt.tokens[i, start:], prompt.positions[i, start:], prompt.segment_ids[i, start:] = x, range(len(x)), 1
        answers.tokens[i, 0, : len(y)], answers.mask[i, 0, : len(y)], answers.segment_ids[i, 0, : len(y)] = y, 1, 1
        answers.positions[i, 0, : len(y)] = len(x) + np.arange(len(y))
    return JudgedBatch(BranchBatch(prompt, answers), batch['label'].astype(np.float32)), split('KL_')


def test_loss_and_gradient_are_those_of_trls_trainer(tmp_path):
    (apply, policy), (_, reference) = llama(tmp_path / 'policy', 2), llama(tmp_path / 'reference', 1)
    batch, others = recorded()
    other = mismatched(jax.tree.map(jnp.asarray, batch.candidates))
    for i, (x, y) in enumerate(others):  # our pairing is theirs
        np.testing.assert_array_equal(other.prompt.tokens[i, -len(x) :], x)
        np.testing.assert_array_equal(other.responses.tokens[i, 0, : len(y)], y)
    batch = batch.replace(ref_logps=candidate_logps(apply, {'params': reference}, batch.candidates))
    settings, case = dict(FIXTURE['settings']), FIXTURE['cases']['kto']
    beta = settings.pop('beta')
    baseline = kl_baseline(apply, policy, reference, batch.candidates)
    assert case['kl'] > 0.1
    np.testing.assert_allclose(baseline, case['kl'], rtol=1e-4)
    objective = unpaired_objective(apply, partial(kto_loss, beta=beta), beta=beta, **settings)
    counts = count_judged(batch)
    value = jax.jit(jax.value_and_grad(lambda p, kl: objective(p, (batch, counts, kl), None)[0]))
    for name, kl in (('kto', baseline), ('apo_zero_unpaired', jnp.zeros(()))):
        loss, gradient = value(policy, kl)
        np.testing.assert_allclose(loss, FIXTURE['cases'][name]['loss'], atol=1e-4)
        np.testing.assert_allclose(optax.global_norm(gradient), FIXTURE['cases'][name]['grad_norm'], rtol=1e-3)


def test_the_objective_by_plain_arithmetic(models, rows):
    rows = rows.replace(label=np.asarray([1, 0, 0.7, 0.3, 1, 0, 0.5, 0.5], np.float32), weight=np.arange(8.0))
    logps = np.asarray(LOGPS(models[0], rows.candidates))[:, 0]
    h = logps - rows.ref_logps[:, 0]
    s = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    good, bad = 2.0 * (1 - s(0.3 * (h - 0.2))), 0.5 * (1 - s(0.3 * (0.2 - h)))
    expected = np.mean(rows.weight * (rows.label * good + (1 - rows.label) * bad))
    weights = dict(desirable_weight=2.0, undesirable_weight=0.5)
    objective = unpaired_objective(APPLY, partial(kto_loss, beta=0.3), beta=0.3, **weights)
    loss, metrics = jax.jit(objective)(models[0], (rows, count_judged(rows), jnp.float32(0.2)), None)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    chosen = 0.3 * (rows.label * h).sum() / rows.label.sum()
    np.testing.assert_allclose(metrics['rewards/chosen'], chosen, rtol=1e-4)


def test_the_baseline_by_pairing_rows_one_by_one(models, rows):
    answers = judged_answers(PAIRS)
    swapped = [{**r, 'completion': answers[i - 1]['completion']} for i, r in enumerate(answers)]
    candidates = judged_rows(CODEC, swapped).candidates
    logps = [np.asarray(LOGPS(p, candidates)) for p in models]
    expected = max(0.0, float((logps[0] - logps[1]).mean()))
    for policy, reference, value in (
        (*models, expected),
        (*models[::-1], max(0.0, float((logps[1] - logps[0]).mean()))),
    ):
        np.testing.assert_allclose(BASELINE(policy, reference, rows.candidates), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('how', [{'micro_batches': 4}, {'mesh': True}, {'pmap': True}], ids=str)
def test_no_split_changes_a_step(models, rows, how):
    objective = unpaired_objective(APPLY, partial(kto_loss, beta=0.3), beta=0.3, undesirable_weight=1.7)
    optimizer = optax.sgd(0.1)

    def after(**kind):
        micro = kind.get('micro_batches', 1)
        step = make_train_step(
            objective, optimizer, micro_batches=micro, axis_name=PMAP_AXIS if 'pmap' in kind else None
        )
        compiled = (
            jax.jit(step) if not kind or micro > 1 else compile_step(step, backend='pmap' if 'pmap' in kind else 'jit')
        )
        baseline = BASELINE(*models, rows.candidates)
        batch = rows, count_judged(rows), baseline
        state, metrics = compiled(init_state(jax.tree.map(jnp.copy, models[0]), optimizer, jax.random.key(0)), batch)
        return jax.device_get((state.params, metrics))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), after(), after(**how))


def test_padding_changes_nothing(models, rows):
    wider = jax.tree.map(lambda x: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 8)]), rows.candidates.responses)
    left = jax.tree.map(lambda x: np.pad(x, [(0, 0), (8, 0)]), rows.candidates.prompt)
    padded = rows.replace(candidates=BranchBatch(left, wider))
    objective = jax.jit(unpaired_objective(APPLY, partial(kto_loss, beta=0.3), beta=0.3))
    values = []
    for batch in (rows, padded):
        kl = BASELINE(*models, batch.candidates)
        values.append((kl, objective(models[0], (batch, count_judged(batch), kl), None)[0]))
    np.testing.assert_allclose(*values, rtol=1e-4)


def test_bcos_shift_follows_the_means_of_both_kinds(models, rows):
    objective = unpaired_objective(APPLY, partial(bco_loss, beta=0.3), beta=0.3)
    metrics = jax.jit(objective)(models[0], (rows, count_judged(rows), jnp.zeros(())), None)[1]
    h = np.asarray(LOGPS(models[0], rows.candidates) - rows.ref_logps)[:, 0]
    means = next_shift(jnp.asarray([1.0, -1.0]), metrics, count_judged(rows))
    expected = [0.9 + 0.1 * 0.3 * h[::2].mean(), -0.9 + 0.1 * 0.3 * h[1::2].mean()]
    np.testing.assert_allclose(means, expected, rtol=1e-4)
    good = take_rows(rows, slice(0, 8, 2))
    np.testing.assert_allclose(next_shift(means, metrics, count_judged(good))[1], means[1])
