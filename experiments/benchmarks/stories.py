"""Before and after PPO on a real model of little stories: reward, KL, how likely the text still is, and samples.

    python experiments/ppo.py --flagfile=experiments/recipes/stories_ppo.flags --model=FOLDER
    python experiments/benchmarks/stories.py --before=FOLDER --after=runs/stories_ppo/model --record

Where torch is installed, transformers decodes greedily from the saved folder, too, and the tokens are compared.
"""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from rlax_ft.data.codec import Codec
from rlax_ft.harness.loading import load_script
from rlax_ft.harness.results import RECORD, record
from rlax_ft.hf.folder import load_pretrained
from rlax_ft.models.scoring import rollout_batch, sequence_logps
from rlax_ft.models.transformer import Transformer
from rlax_ft.sampling.text import make_sampler, map_rows, sample_prompts

EXPERIMENTS = Path(__file__).parents[1]
_BEFORE = flags.DEFINE_string('before', None, 'Folder of the model that PPO started from.', required=True)
_AFTER = flags.DEFINE_string('after', None, 'Folder of the model that it ended with.', required=True)
_SAMPLES = flags.DEFINE_integer('samples', 16, 'Samples of each prompt at temperature 1.')


def main(_):
    """Measures both models on the recipe's prompts."""
    config, start, tokenizer = load_pretrained(_BEFORE.value)
    _, tuned, _ = load_pretrained(_AFTER.value)
    codec, apply = Codec(tokenizer, 24, 64), Transformer(config).apply
    lines = (EXPERIMENTS / 'recipes/stories_prompts.jsonl').read_text().splitlines()
    prompts = [json.loads(line)['prompt'] for line in lines]
    models = {'before': start, 'after': tuned}
    rows = [
        '| | somebody is happy | KL to the start, nats a completion | NLL under the start, nats a token |',
        '|---|---|---|---|',
    ]
    rows += [sampled(name, params, start, apply, codec, prompts * _SAMPLES.value) for name, params in models.items()]
    greedy = {name: decode(params, apply, codec, prompts)[0] for name, params in models.items()}
    shown = [
        f'- {p}\n  - before: {greedy["before"][i]}\n  - after: {greedy["after"][i]}' for i, p in enumerate(prompts[:3])
    ]
    body = '\n'.join(
        [*rows, '', 'Greedy, of the first prompts:', '', *shown, '', agreement(tuned, apply, codec, prompts)]
    )
    print(body)
    if RECORD.value:
        record('PPO on a real model of stories', body)


def sampled(name, params, start, apply, codec, prompts) -> str:
    """A row of the table: samples at temperature 1."""
    sample = make_sampler(apply, codec)
    rollout = sample_prompts(sample, params, codec, prompts, jax.random.key(7), batch_size=128)
    batch = jax.tree.map(np.asarray, rollout_batch(rollout))
    score = jax.jit(lambda p, b: sequence_logps(apply, {'params': p}, b))
    own, reference = (map_rows(lambda b, p=p: score(p, b), batch, batch_size=128) for p in (params, start))
    rule = load_script(EXPERIMENTS / 'recipes/happy.py').somebody_is_happy
    happy = np.mean([rule('', text) for text in codec.decode(rollout)[0]])
    kl, error = np.mean(own - reference), np.std(own - reference) / len(prompts) ** 0.5
    nll = -reference.sum() / batch.mask.sum()
    return f'| {name} | {happy:.1%} of {len(prompts)} | {kl:.2f} ± {error:.2f} | {nll:.3f} |'


def decode(params, apply, codec, prompts):
    """(texts, tokens) of greedy decoding."""
    sample = make_sampler(apply, codec, temperature=0.0)
    rollout = sample_prompts(sample, params, codec, prompts, jax.random.key(0), batch_size=len(prompts))
    return codec.decode(rollout)[0], rollout


def agreement(params, apply, codec, prompts) -> str:
    """Whether transformers, given the saved folder, decodes the same tokens."""
    if importlib.util.find_spec('torch') is None:
        return 'torch is not installed here: transformers was not asked.'
    import torch
    from transformers import AutoModelForCausalLM

    theirs, same = AutoModelForCausalLM.from_pretrained(_AFTER.value), 0
    _, rollout = decode(params, apply, codec, prompts)
    for prompt, tokens, mask in zip(prompts, rollout.tokens, rollout.mask):
        ids = torch.tensor([codec.encode_prompts([prompt])[0]])
        out = theirs.generate(ids, max_new_tokens=len(tokens), do_sample=False, pad_token_id=codec.pad_id)
        same += out[0, ids.shape[1] :].tolist()[: mask.sum()] == tokens[mask].tolist()
    return f'transformers, from the saved folder, decodes the same tokens greedily on {same} of {len(prompts)} prompts.'


if __name__ == '__main__':
    app.run(main)
