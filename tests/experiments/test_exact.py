"""On the enumerable task the optimum is known: PPO, RLOO and DPO with soft labels arrive there by their scripts."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rlax_ft.data.codec import Codec
from rlax_ft.data.rows import token_rows
from rlax_ft.data.tokenizers import word_tokenizer
from rlax_ft.evaluate.enumeration import enumerate_policy, kl_divergence, objective, optimal_policy
from rlax_ft.harness.loading import load_script
from rlax_ft.harness.starting_model import make_codec
from rlax_ft.hf.folder import load_pretrained, save_pretrained
from rlax_ft.models.config import embedded_config
from rlax_ft.models.transformer import Transformer, init_params
from rlax_ft.tasks import exact

SCRIPTS = Path(__file__).parents[2] / 'experiments'
dpo = load_script(SCRIPTS / 'dpo.py')
grpo = load_script(SCRIPTS / 'grpo.py')
ppo = load_script(SCRIPTS / 'ppo.py')
sft = load_script(SCRIPTS / 'sft.py')

pytestmark = pytest.mark.usefixtures('optimised', 'one_device')
BETA = 1.0


@pytest.fixture(scope='module')
def base(tmp_path_factory, optimised, one_device):
    folder = tmp_path_factory.mktemp('exact')
    sft.train(
        sft.SFTSettings(
            out=f'{folder}/sft',
            task='exact',
            max_steps=150,
            demonstrations=5000,
            batch_size=128,
            learning_rate=3e-3,
            schedule='cosine',
            warmup_steps=20,
        )
    )
    return folder


def distribution(folder):
    """log pi(y | x) of all 4 x 1,296 outputs, float32[4, 1296]."""
    config, params, tokenizer = load_pretrained(folder / 'model')
    everything = exact.completions()
    codec = Codec(tokenizer, exact.TASK.max_prompt_tokens, exact.LENGTH, ends=False)
    rows = token_rows(codec, [p for p in exact.PROMPTS for _ in everything], everything * len(exact.PROMPTS))
    return enumerate_policy(Transformer(config).apply, {'params': params}, rows, prompts=len(exact.PROMPTS))


def check_arrived(base, name):
    rewards = jnp.asarray([[exact.reward(p, c) for c in exact.completions()] for p in exact.PROMPTS])
    reference, policy = distribution(base / 'sft'), distribution(base / name)
    best = optimal_policy(reference, rewards, BETA)
    assert float(kl_divergence(reference, best)) > 0.3  # there is a way to go
    distance = float(kl_divergence(policy, best))
    print(f'KL(pi || pi*) = {distance:.4f}')
    assert distance <= 0.01
    # What is lost in J is beta KL(pi || pi*): the identity that makes pi* the optimum.
    lost = objective(best, reference, rewards, BETA) - objective(policy, reference, rewards, BETA)
    assert float(jnp.abs(lost - BETA * distance)) < 1e-4


@pytest.mark.slow
def test_dpo_with_soft_labels_reaches_the_optimum(base):
    dpo.train(
        dpo.DPOSettings(
            out=f'{base}/dpo',
            task='exact',
            init_from=f'{base}/sft',
            labels='gold',
            beta=BETA,
            comparisons=4096,
            batch_size=512,
            max_steps=260,
            learning_rate=5e-3,
            schedule='cosine',
            warmup_steps=10,
            clip_norm=0.1,
        )
    )
    check_arrived(base, 'dpo')


@pytest.mark.slow
def test_ppo_reaches_the_optimum(base):
    ppo.train(
        ppo.PPOSettings(
            out=f'{base}/ppo',
            task='exact',
            init_from=f'{base}/sft',
            beta=BETA,
            batch_size=1024,
            max_steps=60,
            update_epochs=4,
            lam=1.0,
            minibatches=8,
            learning_rate=3e-3,
            value_coef=0.5,
            value_clip=0.0,
        )
    )
    check_arrived(base, 'ppo')


@pytest.mark.slow
def test_rloo_reaches_the_optimum(base):
    grpo.train(
        grpo.GRPOSettings(
            out=f'{base}/rloo',
            task='exact',
            init_from=f'{base}/sft',
            loss='ppo_clip',
            baseline='leave_one_out',
            scale='none',
            beta=BETA,
            kl_in='reward',
            batch_size=1024,
            max_steps=60,
            update_epochs=2,
            minibatches=8,
            learning_rate=3e-3,
        )
    )
    check_arrived(base, 'rloo')


@pytest.fixture(scope='module')
def untrained(tmp_path_factory):
    """A folder with a model that nothing has trained, sharper than one begins."""
    folder = tmp_path_factory.mktemp('untrained')
    tokenizer = make_codec(sft.SFTSettings(task='exact'), None, None).tokenizer
    config = embedded_config('tiny', vocab_size=len(tokenizer), max_length=8)
    params = jax.tree.map(lambda leaf: 3 * leaf, init_params(config, jax.random.key(0)))
    save_pretrained(folder / 'model', config, params, tokenizer)
    return folder


def test_enumeration_is_a_distribution(untrained):
    logps = distribution(untrained)
    assert float(logps.std()) > 0.1
    assert logps.shape == (4, 1296)
    assert float(jnp.abs(jax.nn.logsumexp(logps, axis=1)).max()) < 1e-4


def test_the_vocabulary_is_the_tasks(untrained):
    _, _, tokenizer = load_pretrained(untrained / 'model')
    assert len(tokenizer) == len(word_tokenizer(exact.TASK.words))
