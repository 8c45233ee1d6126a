"""Measuring a policy on an embedded task while it trains and after: samples, gold reward, KL to the reference.

Leaves out training.
"""

from functools import partial
from pathlib import Path

import jax
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.records import write_records
from rlax_ft.evaluate.policy import Measured, measure
from rlax_ft.models.scoring import rollout_batch, sequence_logps
from rlax_ft.sampling.text import make_sampler, map_rows, sample_prompts
from rlax_ft.tasks.task import Task
from rlax_ft.types import TokenBatch

# How many prompts a policy is measured on, while it trains and when it has.
PROMPTS = 512


class Evaluator:
    """Samples on fixed prompts and says what they are worth; compiled once, used for every policy of one shape."""

    def __init__(self, task: Task, codec: Codec, apply, ref_params, *, batch_size: int = 512):
        """Takes what all measurements share.

        Args:
          task: gives prompts and gold reward.
          codec: how text becomes tokens.
          apply: of policy and reference.
          ref_params: of the reference; no train step may donate them.
          batch_size: rows sampled at once.
        """
        self.task, self.codec, self.batch_size = task, codec, batch_size
        self._sample = make_sampler(apply, codec)
        self._ref_params = ref_params
        self._logps = jax.jit(lambda params, rows: sequence_logps(apply, {'params': params}, rows))

    def rollout(self, params, prompts: list[str], key: jax.Array) -> tuple[Measured, TokenBatch]:
        """Samples one completion of each prompt; returns what they are worth, and their tokens."""
        rollout = sample_prompts(self._sample, params, self.codec, prompts, key, batch_size=self.batch_size)
        rows = jax.tree.map(np.asarray, rollout_batch(rollout))
        ref_logps = map_rows(partial(self._logps, self._ref_params), rows, batch_size=self.batch_size)
        completions, ended = self.codec.decode(rollout)
        measured = measure(
            self.task,
            prompts,
            completions,
            ended,
            logps=rollout.logps.sum(axis=1),
            ref_logps=ref_logps,
            length=rollout.mask.sum(axis=1),
        )
        return measured, rows

    def metrics(self, params, *, seed: int) -> dict[str, float]:
        """`eval/gold`, `eval/kl`, `eval/length` and `eval/ungrammatical`, on the same prompts each time."""
        return {f'eval/{name}': value for name, value in self._measure(params, seed)[1].summary().items()}

    def finish(self, params, samples: Path, *, seed: int) -> dict[str, float]:
        """The same numbers without `eval/`, and some of the samples as a file."""
        prompts, measured = self._measure(params, seed)
        shown = zip(prompts[:32], measured.completions, measured.gold.tolist())
        write_records(samples, [{'prompt': p, 'completion': c, 'gold': g} for p, c, g in shown])
        return measured.summary()

    def _measure(self, params, seed):
        prompts = self.task.sample_prompts(PROMPTS, seed + 1000)
        return prompts, self.rollout(params, prompts, jax.random.key(seed + 1000))[0]
