"""Who says which of a pair is better, and how often a policy agrees.

Leaves out rewards that are used on rollouts (rewards.py).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.ragged import count_learned
from rlax_ft.data.rows import share_prompts
from rlax_ft.errors import InputError
from rlax_ft.evaluate.win_rate import accuracy_interval
from rlax_ft.harness.rewards import check_vocabulary
from rlax_ft.harness.starting_model import model_folder
from rlax_ft.parallel.hosts import on_first
from rlax_ft.rewards.ensemble import split_reduction
from rlax_ft.rewards.learned import load_reward_model
from rlax_ft.rewards.rules import as_reward, reward_scores
from rlax_ft.sampling.text import map_rows
from rlax_ft.tasks.task import Task
from rlax_ft.types import PreferenceBatch, RankingBatch


def soft_labels(settings, task: Task | None, codec: Codec, pairs: list[dict], rows: PreferenceBatch) -> PreferenceBatch:
    """The rows with `label` as --labels says: as they are, or sigma(r(y_w) - r(y_l)) of a reward.

    Raises:
      InputError: there is no such reward, or its vocabulary is another.
    """
    if settings.labels == 'human':
        return rows
    if settings.labels == 'agreement':
        return replace(rows, label=_agreement(pairs))
    if settings.labels == 'gold':
        if task is None:
            raise InputError('--labels=gold: only an embedded --task has a gold reward')
        gold = as_reward(task.reward)
        scores = [reward_scores(gold, pairs, [p[side] for p in pairs]) for side in ('chosen', 'rejected')]
    else:
        if not settings.reward:
            raise InputError('--labels=preference_model: give the run folder of the reward model as --reward')
        path, reduction = split_reduction(settings.reward)
        model, tokenizer = load_reward_model(model_folder(path, 'reward'), reduction=reduction)
        check_vocabulary(f'--reward={settings.reward}', tokenizer, codec)
        compiled = jax.jit(lambda model, candidates: model.candidates(candidates))
        candidates = share_prompts(rows).candidates
        # Differences of the model's own logits are what Bradley-Terry trained: a scale for PPO's sake is undone.
        scores = model.scale * map_rows(lambda c: compiled(model, c), candidates, batch_size=settings.batch_size).T
    return replace(rows, label=np.asarray(jax.nn.sigmoid(scores[0] - scores[1]), np.float32))


def preference_accuracy(
    score: Callable, rows: PreferenceBatch | RankingBatch, batch_size: int, *, keep: Path | None = None
) -> dict[str, float]:
    """How often a policy, against the reference, moved towards the better of two held-out answers, with its interval.

    Args:
      score: `f(candidates) -> float[B, K]`, log-probabilities under the policy.
      rows: pairs or rankings with the reference's; of a ranking every pair of unequal ranks counts.
      batch_size: rows at once.
      keep: the file for the margins, so that runs can be compared pair by pair.
    """
    margins = preference_margins(score, rows, batch_size)
    if keep is not None:
        on_first(lambda: np.save(keep, margins), 'margins')
    accuracy, low, high = accuracy_interval(((1 + np.sign(margins)) / 2).sum(), len(margins))
    return {
        'eval_pairs': len(margins),
        'eval_accuracy': accuracy,
        'eval_accuracy_low': low,
        'eval_accuracy_high': high,
    }


def preference_margins(score: Callable, rows: PreferenceBatch | RankingBatch, batch_size: int) -> np.ndarray:
    """Score of the better less that of the worse answer of all pairs, float[pairs]; arguments as above."""
    logps = map_rows(score, rows.candidates, batch_size=batch_size)  # [N, K]
    moved = logps if rows.ref_logps is None else logps - np.asarray(rows.ref_logps)
    if isinstance(rows, RankingBatch):
        return (moved[:, :, None] - moved[:, None, :])[_preferred(rows)]
    return moved[:, 0] - moved[:, 1]


def pair_lengths(rows: PreferenceBatch | RankingBatch) -> np.ndarray:
    """(tokens of the better, tokens of the worse answer) of all pairs, int[2, pairs]; of rankings as they imply them.

    Args:
      rows: as `preference_rows` or `ranking_rows` gives them, prompts not shared.
    """
    lengths = count_learned(rows.candidates)  # [N, K]
    if not isinstance(rows, RankingBatch):
        return lengths.T
    n, better, worse = np.nonzero(_preferred(rows))
    return np.stack([lengths[n, better], lengths[n, worse]])


def _agreement(pairs):
    """The field "agreement" of each pair, float32[N]; 1 where a pair has none, and another has."""
    if not any('agreement' in pair for pair in pairs):
        raise InputError(
            '--labels=agreement: no comparison has a field "agreement", the share of its annotators who prefer '
            '"chosen"; PandaLM\'s form gives it'
        )
    for number, pair in enumerate(pairs, 1):
        value = pair.get('agreement', 1.0)
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(
                f'--labels=agreement: field "agreement" of comparison {number} is {value!r}; the share of annotators '
                'who prefer "chosen" was expected, 0 to 1'
            )
    return np.asarray([pair.get('agreement', 1.0) for pair in pairs], np.float32)


def _preferred(rows):
    """bool[N, K, K]: whether candidate i stands before candidate j, and both exist."""
    return (rows.ranks[:, :, None] < rows.ranks[:, None, :]) & rows.mask[:, :, None] & rows.mask[:, None, :]
