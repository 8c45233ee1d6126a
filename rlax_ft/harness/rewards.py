"""The reward that --reward names: rules, the task's own, models, functions of the user's, or a weighted sum.

Leaves out what a reward computes (rewards/).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from rlax_ft.data.codec import Codec
from rlax_ft.errors import InputError
from rlax_ft.harness.loading import find_function
from rlax_ft.harness.starting_model import model_folder
from rlax_ft.parallel.hosts import share_rows
from rlax_ft.parallel.placement import spread
from rlax_ft.rewards.ensemble import RewardEnsemble, split_reduction
from rlax_ft.rewards.failures import guarded_scores
from rlax_ft.rewards.learned import load_reward_model
from rlax_ft.rewards.named import NAMED, named_reward, parse_call, split_parts, with_options
from rlax_ft.rewards.rules import as_reward
from rlax_ft.tasks.task import Task
from rlax_ft.types import Array

# (tokens, records, texts) -> {name: float[B]}: a model reads the tokens, a function the rest; an ensemble also says
# by how much its members disagree.
Score = Callable[..., dict[str, Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class WeightedReward:
    """A weighted sum of rewards.

    Attributes:
      parts: by name, what scores and its weight.
      measured: names of what the parts only measure.
    """

    parts: dict[str, tuple[Score, float]]
    measured: tuple[str, ...]

    @property
    def weights(self) -> dict[str, float]:
        """The weights of all that is scored by name, 0 of what is measured only: the disagreement of an ensemble."""
        return {name: weight for name, (_, weight) in self.parts.items()} | dict.fromkeys(self.measured, 0.0)

    def __call__(self, tokens, records: list[dict], texts: Callable[[], list[str]]) -> tuple[Array, dict[str, Array]]:
        """(float[B], {name: float[B]}): the weighted sum, and its parts.

        `texts()` gives the completions: where only models score, nothing is decoded, and the device runs ahead. The
        scores of a group whose reward failed are NaN.
        """
        values: dict[str, Array] = {}
        for score, _ in self.parts.values():
            values |= score(tokens, records, texts)
        return sum(weight * values[name] for name, (_, weight) in self.parts.items()), values


def make_reward(
    text: str,
    task: Task | None,
    codec: Codec,
    *,
    reward_failures: float = 0.0,
    reward_seconds: float = 0.0,
) -> WeightedReward:
    """The reward that a flag names, to be called as `score(tokens, records, texts)`.

    Args:
      text: of --reward: NAME or NAME*WEIGHT, several with commas between. A NAME is a rule of rewards/named.py or
        MODULE:FUNCTION, both with options in brackets if need be, `gold`, a reward model's run folder, or an ensemble's
        with :mean, :min or :lcb=K behind it.
      task: whose reward `gold` is, or None.
      codec: of the policy.
      reward_failures: the share of a batch's groups whose reward may fail.
      reward_seconds: after which a reward has failed; 0 sets no limit.

    Raises:
      InputError: a part that is none of these, a weight that is no number, or a reward model of another vocabulary.
    """
    parts: dict[str, tuple[Score, float]] = {}
    measured: list[str] = []
    guarded = partial(guarded_scores, share=reward_failures, seconds=reward_seconds)
    for name, weight in split_parts(text):
        try:
            number = float(weight or 1.0)
        except ValueError as error:
            raise InputError(f'--reward={text}: {weight!r} is no weight; give NAME*NUMBER') from error
        if name in parts:
            raise InputError(f'--reward={text}: {name} stands there twice; give it one weight')
        score, only_measured = _score(name, task, codec, guarded)
        parts[name] = score, number
        measured += only_measured
    if not parts:
        raise InputError("--reward: give a rule such as maths, gold, a reward model's run folder, or MODULE:FUNCTION")
    return WeightedReward(parts, tuple(measured))


def check_reward(text: str) -> None:
    """Looks what --reward names up, before a model is loaded: rules, functions, and folders that hold a model.

    Raises:
      InputError: a part is none of these.
    """
    for name, _ in split_parts(text):
        if name != 'gold' and _function(name) is None:
            model_folder(split_reduction(name)[0], 'reward')


def check_vocabulary(flag: str, tokenizer, codec: Codec) -> None:
    """Refuses a model whose tokens mean other words than the policy's; a PAD that it has besides is no word.

    Raises:
      InputError: naming the first token that differs.
    """
    ours, theirs = codec.tokenizer.get_vocab(), tokenizer.get_vocab()
    if tokenizer.pad_token not in ours:
        theirs.pop(tokenizer.pad_token, None)
    if codec.tokenizer.pad_token not in theirs:
        ours.pop(codec.tokenizer.pad_token, None)
    if ours != theirs:
        differs = min((ours.items() ^ theirs.items()), key=lambda item: item[1])[0]
        raise InputError(
            f'{flag}: another vocabulary than the policy ({len(theirs)} and {len(ours)} tokens; {differs!r} differs); '
            'give one that was trained from the same model'
        )


def _score(name, task, codec, guarded) -> tuple[Score, tuple[str, ...]]:
    """What scores, and the names of what it only measures."""
    if name == 'gold' and task is None:
        raise InputError('--reward=gold: only an embedded --task has one; give a reward model or MODULE:FUNCTION')
    function = task.reward if name == 'gold' else _function(name)
    if function is not None:
        scores = partial(guarded, as_reward(function), name=f'--reward={name}')
        # Each host asks for its own rows.
        asked = lambda records, texts: share_rows(lambda own: scores(records[own], texts()[own]), len(records))  # noqa: E731
        return (lambda tokens, records, texts: {name: asked(records, texts)}), ()
    path, reduction = split_reduction(name)
    model, tokenizer = load_reward_model(model_folder(path, 'reward'), reduction=reduction)
    check_vocabulary(f'--reward={name}', tokenizer, codec)
    if isinstance(model, RewardEnsemble):
        judge = jax.jit(lambda model, tokens: model.judged(tokens))
        names = name, f'{path}/disagreement'
        judged = lambda tokens, records, texts: dict(zip(names, map(jnp.asarray, judge(model, spread(tokens)))))  # noqa: E731
        return judged, names[1:]
    compiled = jax.jit(lambda model, tokens: model(tokens))
    return (lambda tokens, records, texts: {name: jnp.asarray(compiled(model, spread(tokens)))}), ()


def _function(name):
    """The function that a name stands for, options bound; None for a folder."""
    if Path(name).exists() or split_reduction(name)[1]:
        return NAMED.get(name)
    rule = named_reward(name)
    if rule is not None:
        return rule
    called, options = parse_call(name)
    if ':' in called:
        return with_options(find_function(called, 'reward'), options, name)
    if '/' not in name and not options:
        raise InputError(
            f"--reward={name}: no such rule or folder; rules are {', '.join(NAMED)}; else give gold, a reward model's "
            'run folder, or MODULE:FUNCTION'
        )
    return None
