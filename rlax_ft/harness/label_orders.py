"""How far labels go in one order of asking or another: reward models trained anew on a growing share of a judged pool.

All pools have one size, so that one compiled program trains every model and one scores every pool. Leaves out whose
labels they are (annotators.py) and what is made of the curves (experiments/benchmarks/feedback_strategies.py).
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.rows import ranking_rows
from rlax_ft.errors import InputError
from rlax_ft.feedback.queue import priority
from rlax_ft.models.config import ModelConfig
from rlax_ft.models.heads import ScalarModel, candidate_scores, reward_params
from rlax_ft.objectives.reward import reward_objective
from rlax_ft.sampling.text import map_rows
from rlax_ft.training.optimizer import make_optimizer
from rlax_ft.training.step import init_state, make_train_step
from rlax_ft.types import Params, PreferenceBatch, TokenBatch

_SCORED = 512  # Pairs scored at a time.


@dataclasses.dataclass(frozen=True)
class Pool:
    """Pairs and what is said of them.

    Attributes:
      candidates: tokens [N, 2, T].
      label: float32[N], 1 where the first response won, 0 where the second did, or between.
    """

    candidates: TokenBatch
    label: np.ndarray


def make_pool(codec: Codec, judged: list[dict], count: int) -> Pool:
    """The first `count` decided pairs of rows of judgements (feedback/judgements.py).

    Raises:
      InputError: there are fewer.
    """
    decided = [row for row in judged if row['ranks'][0] != row['ranks'][1]][:count]
    if len(decided) < count:
        raise InputError(f'{count} decided pairs were expected; found {len(decided)}: the rest are ties')
    rows, width = ranking_rows(codec, decided).candidates, codec.max_prompt + codec.max_new_tokens
    widen = lambda leaf: np.pad(leaf, ((0, 0), (0, 0), (0, max(width - leaf.shape[2], 0))))  # noqa: E731
    first = np.asarray([row['ranks'][0] == 0 for row in decided], np.float32)
    return Pool(jax.tree.map(widen, rows), first)


def make_trainer(
    config: ModelConfig, model: Params, *, max_steps: int, batch_size: int, learning_rate: float
) -> tuple[Callable, Callable]:
    """(learn, score): `learn(pool, chosen, seed) -> params` and `score(params, pool) -> float[N, 2]`.

    Each reward model starts from `model` with a fresh head, and takes as many steps, however many labels there are.

    Args:
      config: of the model.
      model: parameters that all start from.
      max_steps: of a reward model.
      batch_size: pairs of a step.
      learning_rate: the peak, after a tenth of the steps; from there it falls to 0.
    """
    apply = ScalarModel(config).apply
    warmup = max_steps // 10
    optimizer = make_optimizer(learning_rate, max_steps=max_steps, warmup_steps=warmup, weight_decay=0.01)
    step = make_train_step(reward_objective(apply), optimizer)

    @jax.jit
    def run(params, candidates, label, index):
        def one(state, rows):
            picked = PreferenceBatch(jax.tree.map(lambda leaf: leaf[rows], candidates), label[rows], None, None)
            return step(state, (picked, jnp.float32(len(rows))))[0], None

        return jax.lax.scan(one, init_state(params, optimizer, jax.random.key(0)), index)[0].params

    def learn(pool: Pool, chosen: np.ndarray, seed: int) -> Params:
        rng, asked = np.random.default_rng([seed, len(chosen)]), max_steps * batch_size
        passes = [rng.permutation(chosen) for _ in range(-(-asked // len(chosen)))]
        index = np.concatenate(passes)[:asked].reshape(max_steps, batch_size)
        params = reward_params(model, jax.random.fold_in(jax.random.key(seed), len(chosen)))
        return run(params, pool.candidates, pool.label, index)

    compiled = jax.jit(lambda params, candidates: candidate_scores(apply, params, candidates))

    def score(params: Params, pool: Pool) -> np.ndarray:
        return map_rows(partial(compiled, params), pool.candidates, batch_size=min(_SCORED, len(pool.label)))

    return learn, score


def learning_curve(
    learn: Callable, score: Callable, pool: Pool, test: Pool, *, strategy: str, rounds: int, share: int, seed: int
) -> list[tuple[int, float]]:
    """(labels, accuracy on `test`) after each round; both orders begin with the same labels.

    Args:
      learn: of `make_trainer`.
      score: as well.
      pool: whose labels are bought, `share` a round.
      test: pairs with the labels that are right.
      strategy: `random`, or `uncertain`: what the last round's model tells apart least comes next.
      rounds: of labelling and learning.
      share: labels bought in each.
      seed: of the first labels, the random order and the models.
    """
    rest, chosen, curve = np.random.default_rng([seed, 9]).permutation(len(pool.label)), np.empty(0, int), []
    for _ in range(rounds):
        chosen, rest = np.concatenate([chosen, rest[:share]]), rest[share:]
        params = learn(pool, chosen, seed)
        margin = np.subtract(*score(params, test).T)
        curve.append((len(chosen), float(((margin > 0) == (test.label > 0.5)).mean())))
        if strategy != 'random':
            scores = score(params, pool)[rest]
            rest = rest[np.argsort([priority(pair[:, None].tolist(), strategy) for pair in scores], kind='stable')]
    return curve


def label_share(random: np.ndarray, other: np.ndarray, labels: np.ndarray) -> float:
    """Labels with which the mean of `other` reaches the last accuracy of the mean of `random`, over that one's labels.

    Interpolated between rounds; infinite where it is never reached.

    Args:
      random: float[S, R], accuracies of S seeds after R rounds.
      other: the same of the other order.
      labels: int[R], labels after each round.
    """
    goal, curve = random.mean(axis=0)[-1], other.mean(axis=0)
    reached = np.flatnonzero(curve >= goal)
    if not len(reached):
        return float('inf')
    at = reached[0]
    if at == 0:
        return float(labels[0] / labels[-1])
    part = (goal - curve[at - 1]) / (curve[at] - curve[at - 1])
    return float((labels[at - 1] + part * (labels[at] - labels[at - 1])) / labels[-1])
