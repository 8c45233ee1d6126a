"""What a reward model learns from and is measured on: comparisons, rankings, ratings, or judged steps.

Leaves out training (experiments/reward_model.py) and formulas.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.loader import split_rows
from rlax_ft.data.packing import pack_pairs
from rlax_ft.data.records import plain_text, record_texts
from rlax_ft.data.rows import fitting, preference_rows, ranking_rows, share_prompts
from rlax_ft.data.scored import read_scored, read_steps, scored_rows, step_ends, step_rows
from rlax_ft.errors import InputError
from rlax_ft.evaluate.calibration import calibrated, calibration, reliability
from rlax_ft.evaluate.plots import plot_reliability
from rlax_ft.evaluate.win_rate import accuracy_interval, correlation, length_baseline
from rlax_ft.harness.comparisons import check_fields, comparisons, implied_pairs
from rlax_ft.harness.labels import pair_lengths, preference_accuracy, preference_margins
from rlax_ft.harness.run import Run
from rlax_ft.harness.starting_model import make_codec
from rlax_ft.models.heads import ScalarModel
from rlax_ft.models.scoring import read
from rlax_ft.objectives.packed import packed_reward_objective
from rlax_ft.objectives.reward import reward_objective, reward_ranking_objective, score_objective, step_objective
from rlax_ft.parallel.hosts import on_first
from rlax_ft.sampling.text import map_rows


@dataclasses.dataclass(frozen=True)
class RewardData:
    """Data of one kind, and what belongs to it.

    Attributes:
      codec: of the run.
      rows: what the objective reads, a struct of arrays [N, ...].
      make_objective: `apply -> loss_fn`.
      scored: K training answers a prompt, on which the rewards are centred; None: they are not.
      facts: for the summary.
      measure: `(model, run) -> numbers` on what was held out.
      step_ends: tokens that end a step; empty where there are no steps.
    """

    codec: Codec
    rows: Any
    make_objective: Callable
    scored: Any
    facts: dict
    measure: Callable
    step_ends: tuple[int, ...] = ()


def reward_data(settings, run: Run) -> RewardData:
    """The data that --loss asks for."""
    return {'regression': _ratings, 'step': _steps}.get(settings.loss, _comparisons)(settings, run)


def votes(rows: int, members: int, *, bootstrap: bool, seed: int) -> np.ndarray:
    """How often each member of an ensemble has each row, float32[rows, members]: once, or as a bootstrap draws it.

    The bootstrap's counts are Poisson(1) (Oza and Russell, 2001), fixed for the run.
    """
    if not bootstrap:
        return np.ones((rows, members), np.float32)
    return np.random.default_rng([seed, 6]).poisson(1.0, (rows, members)).astype(np.float32)


def _comparisons(settings, run):
    by_rank = settings.loss == 'plackett_luce'
    records, held_out = comparisons(settings, run, rankings=by_rank)
    codec = make_codec(settings, run, lambda: record_texts(records))
    records, held_out = fitting(codec, records), fitting(codec, held_out)
    check_fields(records, {'weight'} if by_rank else {'label', 'margin', 'weight'}, settings.loss)
    encode = partial(ranking_rows if by_rank else preference_rows, ragged=True)
    plain, plain_held_out = encode(codec, records), encode(codec, held_out)
    shared, eval_rows = share_prompts(plain), share_prompts(plain_held_out)
    on_pairs = packed_reward_objective if settings.packing else reward_objective
    make_objective = reward_ranking_objective if by_rank else partial(on_pairs, center_coef=settings.center_coef)
    lengths = (side for r in (plain, plain_held_out) for side in pair_lengths(r))
    facts = {'train_pairs': len(implied_pairs(records)), 'length_baseline_accuracy': length_baseline(*lengths)}

    def measure(model, run):
        score = partial(jax.jit(lambda model, candidates: model.candidates(candidates)), model)
        margins = preference_margins(score, eval_rows, settings.batch_size)
        labels = 1.0 if by_rank else np.asarray(eval_rows.label)
        accuracy = preference_accuracy(score, eval_rows, settings.batch_size)
        if len(margins) < 2:
            return accuracy
        curves = {'before': reliability(margins, labels), 'after': reliability(calibrated(margins, labels), labels)}
        on_first(lambda: plot_reliability(run.folder / 'reliability.png', curves), 'reliability')
        return accuracy | calibration(margins, labels)

    rows = pack_pairs(plain, codec.max_length) if settings.packing else shared
    return RewardData(codec, rows, make_objective, shared.candidates, facts, measure)


def _ratings(settings, run):
    records, held_out = _read(settings, read_scored)
    codec = make_codec(settings, run, lambda: record_texts(records))
    rows, eval_rows = (scored_rows(codec, fitting(codec, part), ragged=True) for part in (records, held_out))
    mean, spread = float(rows.target.mean()), float(rows.target.std())
    if not spread:
        raise InputError(f'{settings.data}: every score is {mean:g}; nothing to learn')
    facts = {'train_answers': len(rows.target), 'score_mean': mean, 'score_spread': spread}

    def measure(model, run):
        compiled = jax.jit(lambda model, rows: model(rows))
        scores = map_rows(partial(compiled, model), eval_rows.rows, batch_size=settings.batch_size)
        error = mean + spread * scores - eval_rows.target
        alone = np.std(eval_rows.target)
        return {
            'eval_answers': len(scores),
            'eval_correlation': correlation(scores, eval_rows.target),
            'eval_error': float(np.sqrt(np.mean(error**2))),
            'eval_error_of_the_mean': float(alone),
        }

    # The model learns ratings in standard deviations from their mean.
    standard = rows.replace(target=(rows.target - np.float32(mean)) / np.float32(spread))
    each = rows.rows.reshape(len(rows.target), 1)
    return RewardData(codec, standard, score_objective, each, facts, measure)


def _steps(settings, run):
    records, held_out = _read(settings, read_steps)
    texts = lambda: [plain_text(r['prompt']) + '\n'.join([*r['steps'], '']) for r in records]  # noqa: E731
    codec = make_codec(settings, run, texts)
    rows, eval_rows = step_rows(codec, records), step_rows(codec, held_out)
    right = float((rows.labels * rows.rows.mask).sum() / rows.rows.mask.sum())

    def measure(model, run):
        apply = ScalarModel(model.config).apply
        compiled = jax.jit(lambda params, rows: read(apply, {'params': params}, rows))
        logits = map_rows(partial(compiled, model.params), eval_rows.rows, batch_size=settings.batch_size)
        ends = eval_rows.rows.mask > 0
        found, total = ((logits > 0) == (eval_rows.labels > 0.5))[ends].sum(), int(ends.sum())
        accuracy, low, high = accuracy_interval(found, total)
        majority = np.mean((eval_rows.labels > 0.5)[ends] == (right > 0.5))
        return {
            'eval_steps': total,
            'eval_accuracy': accuracy,
            'eval_accuracy_low': low,
            'eval_accuracy_high': high,
            'majority_accuracy': float(majority),
        }

    facts = {'train_steps': int(rows.rows.mask.sum()), 'right_share': right}
    return RewardData(codec, rows, step_objective, None, facts, measure, step_ends(codec, rows))


def _read(settings, reader):
    if not settings.data:
        raise InputError(f'--loss={settings.loss}: an embedded task has no such records; give --data')
    records = reader(settings.data)
    if settings.eval_data:
        return records, reader(settings.eval_data)
    return split_rows(records, seed=settings.seed)
