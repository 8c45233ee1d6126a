"""Judged answers to learn from: read, taken apart from comparisons, or judged now, and their batches.

Leaves out losses and models.
"""

import inspect
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.data.judged import compares, read_answers
from rlax_ft.data.loader import prefetch, split_rows, whole_batch
from rlax_ft.data.packing import padding_share
from rlax_ft.data.ragged import count_learned
from rlax_ft.errors import InputError
from rlax_ft.evaluate.win_rate import separation
from rlax_ft.harness.comparisons import comparisons
from rlax_ft.harness.run import Run
from rlax_ft.harness.step import placement
from rlax_ft.objectives.unpaired import count_judged
from rlax_ft.sampling.text import map_rows
from rlax_ft.types import JudgedBatch

_EXPECTED = '(logps[B], ref_logps[B], desirable[B], and kl or shift where it has a baseline) -> float[B]'


def answers(settings, run: Run) -> tuple[list[dict], list[dict]]:
    """(training, held-out) records: rankings where the data compares answers, and judged answers elsewhere.

    Without --data, completions of the task are compared now, as in `comparisons`.
    """
    if not settings.data or (compares(settings.data) and not settings.eval_data):
        return comparisons(settings, run, rankings=True)
    records = read_answers(settings.data)
    if settings.eval_data:
        return records, read_answers(settings.eval_data)
    return split_rows(records, seed=settings.seed)


def unpaired_loss(loss: Callable, name: str) -> tuple[Callable, str]:
    """(the loss with a baseline as its fourth argument, what that is: `kl`, `shift`, or '' where it takes none).

    The loss is tried on shapes.

    Raises:
      InputError: it is no unpaired loss.
    """
    takes = inspect.signature(loss).parameters
    kind = next((k for k in ('kl', 'shift') if k in takes), '')
    rows = jax.ShapeDtypeStruct((3,), jnp.float32)
    arrays = [rows, rows, jax.ShapeDtypeStruct((3,), bool), *([jax.ShapeDtypeStruct((), jnp.float32)] if kind else [])]
    try:
        found = jax.eval_shape(loss, *arrays)
        shape, dtype = found.shape, found.dtype
    except (Exception, SystemExit) as error:  # A user's function may raise whatever it likes.
        reason = ' '.join(str(error).split())[:200]
        raise InputError(f'--loss={name}: {type(error).__name__}: {reason}; a loss is {_EXPECTED}') from error
    if shape != (3,):
        raise InputError(f'--loss={name}: gives shape {shape} for 3 answers; a loss is {_EXPECTED}')
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f'--loss={name}: gives {dtype}, which has no gradient; a loss is {_EXPECTED}')
    return (loss if kind else lambda logps, refs, desirable, _: loss(logps, refs, desirable)), kind


def judged_batches(settings, rows: JudgedBatch, steps):
    """(step, (batch, its counts), padding share) of each step, made ahead in the background."""
    place = placement(settings)

    def make(i):
        whole = whole_batch(rows, i, batch_size=settings.batch_size, seed=settings.seed)
        return i, place((whole, count_judged(whole))), {'padding_share': padding_share(whole)}

    return prefetch(map(make, steps))


def judged_accuracy(score: Callable, rows: JudgedBatch, train_rows: JudgedBatch, batch_size: int) -> dict[str, float]:
    """How often a policy, against the reference, moved further towards a good than towards a bad held-out answer.

    Args:
      score: `f(candidates) -> float[B, 1]`, log-probabilities under the policy.
      rows: held out, with the reference's.
      train_rows: which say whether longer or shorter answers are the good ones, for the baseline by length.
      batch_size: rows at once.
    """
    good, train_good = (np.asarray(r.label) > 0.5 for r in (rows, train_rows))
    if good.all() or not good.any():
        logging.warning('all %d held-out answers have one label; no accuracy is measured', len(good))
        return {'eval_answers': len(good)}
    moved = (map_rows(score, rows.candidates, batch_size=batch_size) - np.asarray(rows.ref_logps))[:, 0]
    accuracy, low, high = separation(moved, good)
    summary = {
        'eval_answers': len(good),
        'eval_accuracy': accuracy,
        'eval_accuracy_low': low,
        'eval_accuracy_high': high,
    }
    if train_good.all() or not train_good.any():
        return summary
    lengths, train_lengths = (count_learned(r.candidates)[:, 0] for r in (rows, train_rows))
    sign = 1 if separation(train_lengths, train_good)[0] >= 0.5 else -1
    return summary | {'length_baseline_accuracy': separation(sign * lengths, good)[0]}
