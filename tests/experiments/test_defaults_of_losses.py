"""What a loss is on its own, by default: ORPO and CPO with their NLL term, sequence losses as means of sequences."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_ft.data.codec import Codec
from rlax_ft.data.rows import take_rows
from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.harness.command_line import parse
from rlax_ft.harness.loading import aggregation, load_loss, load_script
from rlax_ft.models.config import embedded_config
from rlax_ft.models.transformer import Transformer, init_params

SCRIPTS = Path(__file__).parents[2] / 'experiments'
CODEC = Codec(word_tokenizer('abcde'), 4, 6)
PAIRS = [{'prompt': 'a', 'chosen': 'b c', 'rejected': 'd'}, {'prompt': 'a b', 'chosen': 'e', 'rejected': 'c c c'}]
CONFIG = embedded_config('tiny', vocab_size=len(CODEC.tokenizer), max_length=16)


@jax.jit
def read(params, tokens):
    apply = Transformer(CONFIG).apply
    return apply({'params': params}, apply({'params': params}, tokens)[0], method='unembed')


def logps_by_hand(params, prompt, answer):
    """Log-probabilities of the answer's tokens, its EOS among them."""
    row = CODEC.encode([prompt], [answer])[0]
    tokens = np.zeros((1, CONFIG.max_length), np.int32)  # Of one length, so that one program reads them all.
    tokens[0, : len(row.prompt + row.response)] = row.prompt + row.response
    logits = np.asarray(read(params, tokens), np.float64)[0]
    logps = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    places = range(len(row.prompt) - 1, len(row.prompt) + len(row.response) - 1)
    return np.array([logps[place, token] for place, token in zip(places, row.response)])


def expected(loss, params, beta, coef):
    """Mean over the pairs of the formulas of ORPO (arXiv 2403.07691) and CPO (2401.08417)."""
    values = []
    for pair in PAIRS:
        good, bad = (logps_by_hand(params, pair['prompt'], pair[side]) for side in ('chosen', 'rejected'))
        if loss == 'orpo_odds':
            odds = [x.mean() - np.log1p(-np.exp(x.mean())) for x in (good, bad)]
        else:
            odds = [good.sum(), bad.sum()]
        sigmoid = 1 / (1 + np.exp(-(odds[0] - odds[1]) * (1 if loss == 'orpo_odds' else beta)))
        values.append(-np.log(sigmoid) * (beta if loss == 'orpo_odds' else 1) - coef * good.mean())
    return np.mean(values)


@pytest.mark.parametrize(('loss', 'given', 'coef'), [('orpo_odds', '', 1), ('cpo', '', 1), ('orpo_odds', '0', 0)])
def test_the_nll_term_is_on_where_the_paper_has_it(loss, given, coef):
    params = init_params(CONFIG, jax.random.key(0))
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * noise.standard_normal(leaf.shape).astype(leaf.dtype), params)
    arguments = [f'--loss={loss}', '--beta=0.5', *([f'--nll_coef={given}'] if given else [])]
    dpo = load_script(SCRIPTS / 'dpo.py')
    settings = parse(dpo.DPOSettings, arguments)
    rows, objective, _ = dpo.paired(settings, CODEC, Transformer(CONFIG).apply, None, PAIRS, None)
    value, _ = jax.jit(objective)(params, (take_rows(rows, np.arange(2)), jnp.float32(2)), jax.random.key(0))
    np.testing.assert_allclose(value, expected(loss, params, 0.5, coef), rtol=1e-4)


@pytest.mark.parametrize(
    ('loss', 'mode'),
    [('ppo_clip', 'token_mean'), ('gspo', 'seq_mean_token_mean'), ('gmpo', 'seq_mean_token_mean')]
    + [('sapo', 'seq_mean_token_mean'), ('cispo', 'token_mean')],
)
def test_a_loss_is_aggregated_as_its_paper_says(loss, mode):
    settings = parse(load_script(SCRIPTS / 'ppo.py').PPOSettings, [f'--loss={loss}'])
    found = load_loss(settings, settings.loss, 'rlax_ft.losses.policy_gradient', settings.loss_args)
    assert aggregation(settings, found) == mode
    asked = dataclasses.replace(settings, aggregate='constant')
    assert aggregation(asked, found) == 'constant'
