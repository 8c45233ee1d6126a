"""Measuring a policy while it trains and after: samples on held-out prompts, what they are worth, KL to the reference.

Leaves out training.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.records import write_records
from rlax_ft.errors import InputError
from rlax_ft.evaluate.policy import Samples
from rlax_ft.harness.loading import find_function
from rlax_ft.models.scoring import rollout_batch, sequence_logps
from rlax_ft.parallel.hosts import on_first
from rlax_ft.parallel.placement import fetch, to_device_memory
from rlax_ft.rewards.rules import as_reward, reward_scores
from rlax_ft.sampling.text import make_sampler, map_rows, sample_prompts
from rlax_ft.tasks.task import Task
from rlax_ft.training.metrics import read_records
from rlax_ft.types import TokenBatch

# How many prompts of an embedded task a policy is measured on, and how many samples of a time are written down.
TASK_PROMPTS, SHOWN = 512, 64

Measure = Callable[[list[dict], list[str], list[bool], TokenBatch], np.ndarray]


class Evaluator:
    """Samples on fixed prompts and says what they are worth; compiled once, used for every policy of one shape."""

    def __init__(
        self,
        codec: Codec,
        apply,
        reference,
        records: list[dict],
        measures: dict[str, Measure],
        *,
        samples: Path | None = None,
        seed: int = 0,
        batch_size: int = 512,
        reference_apply=None,
        temperature: float = 1.0,
    ):
        """Takes what all measurements share.

        Args:
          codec: how text becomes tokens.
          apply: of policy and reference.
          reference: its parameters, which no train step may donate; None measures no KL.
          records: whose prompts are sampled by `metrics` and `finish`.
          measures: by name, `f(records, completions, whether each ended, their tokens) -> float[N]`.
          samples: the file to which they are added.
          seed: of the sampling.
          batch_size: rows sampled at once.
          reference_apply: of the reference, where its shape is another.
          temperature: of the sampling; 0 takes the likeliest token.
        """
        self._codec, self._records, self._measures, self._samples = codec, records, measures, samples
        self._key, self._batch_size = jax.random.key(seed + 1000), min(batch_size, len(records))
        self._sample = make_sampler(apply, codec, temperature=temperature)
        self._reference, known = reference, reference_apply or apply
        self._last: tuple[int, dict[str, float]] | None = None
        self._logps = jax.jit(lambda params, rows: sequence_logps(known, {'params': params}, rows))

    def rollout(self, params, records: list[dict], key: jax.Array) -> tuple[Samples, TokenBatch]:
        """Samples one completion of each record's prompt; returns what they are worth, and their tokens."""
        prompts = [record['prompt'] for record in records]
        rollout = sample_prompts(self._sample, params, self._codec, prompts, key, batch_size=self._batch_size)
        rows = jax.tree.map(np.asarray, rollout_batch(rollout))
        completions, ended = self._codec.decode(rollout)
        measured = {
            name: np.asarray(fetch(measure(records, completions, ended, rows)), np.float32)
            for name, measure in self._measures.items()
        }
        kl = None
        if self._reference is not None:
            reference = to_device_memory(self._reference)
            ref_logps = map_rows(partial(self._logps, reference), rows, batch_size=self._batch_size)
            kl = rollout.logps.sum(axis=1) - ref_logps
        return Samples(records, completions, kl, np.asarray(rollout.mask).sum(axis=1), measured), rows

    def metrics(self, params, step: int) -> dict[str, float]:
        """`eval/kl`, `eval/length` and `eval/` + every measure, on the same prompts each time; writes samples down."""
        return {f'eval/{name}': value for name, value in self._measure(params, step).items()}

    def finish(self, params, step: int) -> dict[str, float]:
        """The same numbers without `eval/`; of a step that has been measured, those that were found then."""
        if self._last is not None and self._last[0] == step:
            return self._last[1]
        return self._measure(params, step)

    def _measure(self, params, step):
        samples = self.rollout(params, self._records, self._key)[0]
        if self._samples is not None:
            before = read_records(self._samples)
            # A run that resumes replaces what it had written after the step that it resumes from; the rollouts of this
            # step, which have advantages, are not the evaluator's.
            kept = [r for r in before if r.get('step', 0) < step or (r.get('step') == step and 'advantages' in r)]
            shown = kept + samples.to_records(step)[:SHOWN]
            on_first(lambda: write_records(self._samples, shown), 'samples')
        self._last = step, samples.summary()
        return self._last[1]


def make_evaluator(
    settings,
    run,
    codec: Codec,
    learner,
    task: Task | None,
    held_out: list[dict],
    measures: dict[str, Measure] | None = None,
    *,
    reference: bool = True,
) -> Evaluator:
    """The evaluator of a script: the embedded task's prompts and gold reward, or held-out records and --evaluate.

    Args:
      settings: of the script.
      run: whose samples.jsonl is written.
      codec, learner: of the run.
      task: the embedded one, or None.
      held_out: records whose prompts are sampled where there is no task.
      measures: further ones, by name.
      reference: measure the KL to the starting model, which must then be kept.
    """
    measures = dict(measures or {})
    if task is not None:
        if settings.eval_prompts != type(settings).eval_prompts:
            raise InputError(
                f'--eval_prompts={settings.eval_prompts}: has no effect with --task={task.name}, whose policies are '
                f'measured on {TASK_PROMPTS} prompts; leave it out'
            )
        records = [{'prompt': prompt} for prompt in task.sample_prompts(TASK_PROMPTS, settings.seed + 1000)]
        measures |= task_measures(task)
    else:
        records = held_out[: settings.eval_prompts]
    if settings.evaluate:
        function = as_reward(find_function(settings.evaluate, 'evaluate'))
        score = partial(reward_scores, function, name=f'--evaluate={settings.evaluate}')
        measures['evaluate'] = lambda records, completions, ended, rows: score(records, completions)
    given = dict(samples=run.folder / 'samples.jsonl', seed=settings.seed)
    return Evaluator(codec, learner.apply, learner.reference if reference else None, records, measures, **given)


def task_measures(task: Task) -> dict[str, Measure]:
    """`gold`, an embedded task's reward, and `ungrammatical`, as which a text counts that did not end."""

    def gold(records, completions, ended, rows):
        return np.asarray([task.reward(r['prompt'], c) for r, c in zip(records, completions)])

    def ungrammatical(records, completions, ended, rows):
        return ~np.asarray(
            [task.grammatical(r['prompt'], c) and e for r, c, e in zip(records, completions, ended)], bool
        )

    return {'gold': gold, 'ungrammatical': ungrammatical}
