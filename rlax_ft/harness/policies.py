"""Policies trained from one reference, measured side by side: on the same prompts, by gold and by reward models.

Leaves out training, and tables and figures (evaluate/).
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.evaluate.frontier import best_of_n_curve, mixture_log_ratio
from rlax_ft.evaluate.intervals import mean_interval, seed_interval, with_interval
from rlax_ft.evaluate.policy import Samples
from rlax_ft.evaluate.win_rate import win_rate
from rlax_ft.harness.evaluator import Evaluator, task_measures
from rlax_ft.harness.run import write_json
from rlax_ft.hf.folder import load_pretrained
from rlax_ft.models.scoring import sequence_logps
from rlax_ft.models.transformer import Transformer
from rlax_ft.sampling.text import map_rows
from rlax_ft.tasks import get_task
from rlax_ft.training.metrics import read_records
from rlax_ft.types import Params, TokenBatch

# Prompts of a task on which policies are measured; each has as many samples.
PROMPTS = 20


class Policies:
    """Measures policies of one shape against their reference; everything compiles once."""

    def __init__(self, task: str, reference: str | Path, *, seed: int, batch_size: int = 512):
        """Takes what all measurements share.

        Args:
          task: name of the embedded task.
          reference: folder of the model that all policies started from.
          seed: of prompts and samples.
          batch_size: rows at once.
        """
        self.task = get_task(task)
        config, self.reference, tokenizer = load_pretrained(reference)
        self.codec = Codec(tokenizer, self.task.max_prompt_tokens, self.task.max_new_tokens, ends=self.task.ends)
        prompts = sorted(set(self.task.sample_prompts(2000, seed)))[:PROMPTS]
        self.prompts = [{'prompt': prompt} for prompt in prompts]
        self._key, self._batch_size = jax.random.key(seed + 7), batch_size
        # Whatever is sampled has batches of this one size.
        shape = self.prompts * -(-batch_size // len(prompts))
        apply = Transformer(config).apply
        self._evaluator = Evaluator(
            self.codec, apply, self.reference, shape, task_measures(self.task), batch_size=batch_size
        )
        self._logps = jax.jit(lambda params, rows: sequence_logps(apply, {'params': params}, rows))
        self._scores = jax.jit(lambda model, rows: model(rows))

    def samples(self, params: Params, each: int, salt: int) -> tuple[Samples, TokenBatch]:
        """`each` samples of every prompt, those of one prompt side by side, with their tokens.

        Args:
          params: of the policy.
          each: samples of a prompt.
          salt: which part of the randomness is theirs.
        """
        records = [record for record in self.prompts for _ in range(each)]
        return self._evaluator.rollout(params, records, jax.random.fold_in(self._key, salt))

    def scores(self, model: Callable, rows: TokenBatch) -> np.ndarray:
        """A reward model's scores, float[N]."""
        return map_rows(partial(self._scores, model), rows, batch_size=self._batch_size)

    def logps(self, params: Params, rows: TokenBatch) -> np.ndarray:
        """log pi(y | x), float[N]."""
        return map_rows(partial(self._logps, params), rows, batch_size=self._batch_size)

    def by_prompt(self, values: np.ndarray) -> np.ndarray:
        """float[N] of samples that stand prompt by prompt -> float[P, N / P]."""
        return np.asarray(values).reshape(len(self.prompts), -1)

    def first_of_each(self, count: int, samples: Samples) -> np.ndarray:
        """Which of some samples are the first `count` of every prompt, int[P * count]."""
        return self.by_prompt(np.arange(len(samples.completions)))[:, :count].reshape(-1)

    def best_of_each(self, n: int, scores: np.ndarray) -> np.ndarray:
        """Which samples are the best of n by score, each prompt's cut into groups of n: int[P * groups].

        Args:
          n: size of a group.
          scores: float[N] of samples that stand prompt by prompt; those that fill no group are left out.
        """
        scores = self.by_prompt(scores)
        groups = scores.shape[1] // n
        best = scores[:, : groups * n].reshape(len(scores), groups, n).argmax(axis=2)
        return (np.arange(len(scores))[:, None] * scores.shape[1] + np.arange(groups) * n + best).reshape(-1)

    def alike(self, values: np.ndarray, samples: Samples) -> np.ndarray:
        """float[N] of one policy's samples, put beside as many of another's on the same prompts."""
        count = len(samples.completions) // len(self.prompts)
        return np.stack([np.resize(row, count) for row in self.by_prompt(values)]).reshape(-1)

    def one_of_each(self, samples: Samples) -> list[tuple[str, str, float]]:
        """(prompt, completion, gold) of the first sample of every prompt."""
        first = samples.rows(self.first_of_each(1, samples))
        return [
            (record['prompt'], text, float(gold))
            for record, text, gold in zip(first.records, first.completions, first.measures['gold'])
        ]

    def best_of_n(self, model: Callable, samples: Samples, rows: TokenBatch) -> dict:
        """{"rows": [[n, KL, gold, score], ..]} of the best of n of the reference's samples by a reward model.

        Args:
          model: the reward model.
          samples, rows: of the reference, prompt by prompt.
        """
        scores = self.by_prompt(self.scores(model, rows))
        gold = best_of_n_curve(self.by_prompt(samples.measures['gold']), scores)
        found = best_of_n_curve(scores, scores)
        return {'rows': [[n, kl, value, found[n][1]] for n, (kl, value) in gold.items()]}

    def mixture(self, parts: list[tuple[Params, Samples, TokenBatch]]) -> tuple[np.ndarray, np.ndarray]:
        """(gold [P, M], log pi_ref - log q [P, M]) of all samples of several policies, the reference first.

        Args:
          parts: (parameters, samples, their tokens) of each policy.
        """
        logps = []
        for params, _, _ in parts:
            rows = [self.by_prompt(self.logps(params, rows)) for _, _, rows in parts]
            logps.append(np.concatenate(rows, axis=1))
        gold = [self.by_prompt(samples.measures['gold']) for _, samples, _ in parts]
        counts = [part.shape[1] for part in gold]
        return np.concatenate(gold, axis=1).astype(np.float64), mixture_log_ratio(logps, counts)


def measured(samples: Samples, scores: np.ndarray | None, baseline: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """Means of a policy's samples, with 95 % bootstrap intervals as NAME_low and NAME_high of the main ones.

    Args:
      samples: of the policy.
      scores: a reward model's, float[N], or None.
      baseline: float[N], gold of the reference's samples on the same prompts, for the win rate.
      seed: of the bootstrap.
    """
    found = samples.summary()
    for name, values in {'gold': samples.measures['gold'], 'kl': samples.kl, 'score': scores}.items():
        if values is not None:
            found |= with_interval(name, mean_interval(values, seed=seed))
    return found | with_interval('win_rate', win_rate(samples.measures['gold'], baseline, seed=seed))


def over_seeds(records: list[dict]) -> dict:
    """One record of a method's seeds: means, with 95 % t-intervals over seeds, and `seeds`, the (KL, gold) of each.

    Args:
      records: of `measured`, one a seed; a single one keeps its intervals over samples.
    """
    if len(records) == 1:
        return records[0]
    found: dict = {'name': records[0]['name'], 'seeds': [[r['kl'], r['gold']] for r in records]}
    for name in (name for name in records[0] if name != 'name' and not name.endswith(('_low', '_high'))):
        interval = seed_interval(np.asarray([r[name] for r in records]))
        found |= with_interval(name, interval) if f'{name}_low' in records[0] else {name: interval[0]}
    found['win_rate_low'], found['win_rate_high'] = max(found['win_rate_low'], 0.0), min(found['win_rate_high'], 1.0)
    return found


def nearest_optimum(records: list[dict], count: int) -> list[dict]:
    """The records of highest `gold`: their policies' samples carry the optimum's estimate furthest."""
    return sorted(records, key=lambda record: record['gold'], reverse=True)[:count]


def read_trace(folder: Path) -> list[dict]:
    """`kl`, `gold` and, where the run knew one, the `score` of its reward at each evaluation in training."""
    names = {'eval/kl': 'kl', 'eval/gold': 'gold', 'eval/reward': 'score'}
    records = read_records(folder / 'metrics.jsonl')
    return [{name: r[key] for key, name in names.items() if key in r} for r in records if 'eval/kl' in r]


def once(path: Path, make: Callable[[], dict]) -> dict:
    """What `make` gives, kept as JSON in a file: read from there the next time."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text())
