"""The reward that --reward names: the task's, reward models, functions of the user's, or a weighted sum of several.

Leaves out what a reward computes (rewards/).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from rlax_ft.data.codec import Codec
from rlax_ft.errors import InputError
from rlax_ft.harness.loading import find_function
from rlax_ft.harness.starting_model import model_folder
from rlax_ft.rewards.ensemble import RewardEnsemble, split_reduction
from rlax_ft.rewards.learned import load_reward_model
from rlax_ft.rewards.rules import as_reward, reward_scores
from rlax_ft.tasks.task import Task

# (tokens, records, texts) -> {name: float[B]}: a model reads the tokens, a function the rest; an ensemble also says
# by how much its members disagree.
Score = Callable[..., dict[str, jax.Array]]


def make_reward(text: str, task: Task | None, codec: Codec) -> Callable:
    """`score(tokens, records, texts) -> (float[B], {name: float[B]})`: the weighted sum, and its parts.

    `texts()` gives the completions: where only models score, nothing is decoded, and the device runs ahead.

    Args:
      text: of --reward: NAME or NAME*WEIGHT, several with commas between. A NAME is `gold`, a reward model's run
        folder, an ensemble's with :mean, :min or :lcb=K behind it, or MODULE:FUNCTION.
      task: whose reward `gold` is, or None.
      codec: of the policy.

    Raises:
      InputError: a part that is none of these, a weight that is no number, or a reward model of another vocabulary.
    """
    parts: dict[str, tuple[Score, float]] = {}
    for part in filter(None, (part.strip() for part in text.split(','))):
        name, star, weight = part.rpartition('*')
        try:
            name, number = (name, float(weight)) if star else (part, 1.0)
        except ValueError as error:
            raise InputError(f'--reward={text}: {weight!r} is no weight; give NAME*NUMBER') from error
        if name in parts:
            raise InputError(f'--reward={text}: {name} stands there twice; give it one weight')
        parts[name] = _score(name, task, codec), number
    if not parts:
        raise InputError("--reward: give gold, a reward model's run folder, or MODULE:FUNCTION")

    def score(tokens, records, texts):
        values = {}
        for function, _ in parts.values():
            values |= function(tokens, records, texts)
        return sum(weight * values[name] for name, (_, weight) in parts.items()), values

    return score


def check_vocabulary(flag: str, tokenizer, codec: Codec) -> None:
    """Refuses a model whose tokens mean other words than the policy's.

    Raises:
      InputError: naming the first token that differs.
    """
    ours, theirs = codec.tokenizer.get_vocab(), tokenizer.get_vocab()
    if ours != theirs:
        differs = min((ours.items() ^ theirs.items()), key=lambda item: item[1])[0]
        raise InputError(
            f'{flag}: another vocabulary than the policy ({len(theirs)} and {len(ours)} tokens; {differs!r} differs); '
            'give one that was trained from the same model'
        )


def _score(name, task, codec) -> Score:
    if name == 'gold' and task is None:
        raise InputError('--reward=gold: only an embedded --task has one; give a reward model or MODULE:FUNCTION')
    if name == 'gold' or (':' in name and not split_reduction(name)[1] and not Path(name).exists()):
        reward = as_reward(task.reward if name == 'gold' else find_function(name, 'reward'))
        function = partial(reward_scores, reward, name=f'--reward={name}')
        return lambda tokens, records, texts: {name: function(records, texts())}
    path, reduction = split_reduction(name)
    model, tokenizer = load_reward_model(model_folder(path, 'reward'), reduction=reduction)
    check_vocabulary(f'--reward={name}', tokenizer, codec)
    if isinstance(model, RewardEnsemble):
        judge = jax.jit(lambda model, tokens: model.judged(tokens))
        names = name, f'{path}/disagreement'
        return lambda tokens, records, texts: dict(zip(names, map(jnp.asarray, judge(model, tokens))))
    compiled = jax.jit(lambda model, tokens: model(tokens))
    return lambda tokens, records, texts: {name: jnp.asarray(compiled(model, tokens))}
