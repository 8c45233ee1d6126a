"""What is told of sampled groups: pass@k, lengths and entropies by outcome, the time that they took, samples by token.

Leaves out sampling and scoring them (groups.py).
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from rlax_ft.data.records import write_records
from rlax_ft.evaluate.pass_at_k import pass_at_k
from rlax_ft.parallel.hosts import on_first
from rlax_ft.parallel.placement import fetch
from rlax_ft.training.metrics import read_records

# How many completions of a step are written down.
SHOWN = 64


class Clock:
    """Where the time of a loop goes."""

    def __init__(self):
        """Has counted nothing yet."""
        self._spent: dict[str, float] = {}

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Counts what is done within for `name`."""
        start = time.perf_counter()
        yield
        self._spent[name] = self._spent.get(name, 0.0) + time.perf_counter() - start

    def shares(self) -> dict[str, float]:
        """`time/` + each name: its share of all that was counted since the last call."""
        whole = max(sum(self._spent.values()), 1e-9)
        shares = {f'time/{name}': spent / whole for name, spent in self._spent.items()}
        self._spent = {}
        return shares


def group_metrics(groups, weights: Mapping[str, float], success_at: float) -> dict[str, float]:
    """Numbers of sampled groups by TRL's names where it has one; what nobody had, such as a success, is left out.

    Args:
      groups: `harness.groups.Groups`, scored.
      weights: of the rewards by name, in the order of `groups.parts`.
      success_at: reward from which on a completion is a success.
    """
    scores = groups.scores
    lengths = groups.mask.sum(axis=2)
    # Surprise per token, whose mean estimates the entropy.
    surprise = -(groups.logps * groups.mask).sum(axis=2) / np.maximum(lengths, 1)
    metrics = {
        'reward': scores.mean(),
        'reward_std': scores.std(ddof=1) if scores.size > 1 else 0.0,
        'frac_reward_zero_std': np.mean(np.ptp(scores, axis=1) <= 1e-8),
        'completions/mean_length': lengths.mean(),
        'completions/min_length': lengths.min(),
        'completions/max_length': lengths.max(),
        'completions/clipped_ratio': 1.0 - groups.ended.mean(),
        'val/num_eos_tokens': groups.ended.sum(),
    }
    metrics |= outcome_metrics(scores >= success_at, lengths, surprise)
    for i, name in enumerate(weights):
        if len(weights) > 1:
            metrics[f'rewards/{name}/mean'] = groups.parts[:, :, i].mean()
            metrics[f'rewards/{name}/std'] = groups.parts[:, :, i].std(ddof=1) if scores.size > 1 else 0.0
    return {name: float(value) for name, value in metrics.items()}


def outcome_metrics(solved: np.ndarray, lengths: np.ndarray, surprise: np.ndarray) -> dict[str, float]:
    """pass@1, 2, 4, ..., and length and entropy of what was solved and of what was not; each array is [P, G]."""
    metrics, k = {}, 1
    while k <= solved.shape[1]:
        metrics[f'pass@{k}'] = float(pass_at_k(solved, k).mean())
        k *= 2
    for outcome, rows in (('solved', solved), ('unsolved', ~solved)):
        if rows.any():
            metrics[f'completions/mean_length_{outcome}'] = float(lengths[rows].mean())
            metrics[f'entropy_{outcome}'] = float(surprise[rows].mean())
    return metrics


def write_rollouts(path: Path, step: int, batch, advantages, ref, codec, records: list[dict]) -> None:
    """Adds the first completions of a step to samples.jsonl, in the form that evaluate/samples.py describes.

    Args:
      path: of the file; what it has of this step's rollouts, and of later steps, is replaced.
      step: of the run.
      batch: `harness.groups.GroupBatch`.
      advantages: float[B, N].
      ref: float[B, N], log-probabilities under the reference, or None.
      codec: of the policy.
      records: of the prompts.
    """
    groups = batch.groups
    advantages, ref = fetch((advantages, ref))
    size = groups.scores.shape[1]
    written = []
    for row in range(min(SHOWN, advantages.shape[0])):
        at = row // size, row % size
        real = groups.mask[at]
        ids = groups.tokens[at][real].tolist()
        per_token = {'logps': groups.logps[at][real], 'advantages': advantages[row][real]}
        per_token |= {} if ref is None else {'ref_logps': ref[row][real]}
        written.append(
            {'step': step, 'prompt': records[groups.index[at[0]]]['prompt'], 'group': at[0]}
            | {'completion': codec.tokenizer.decode(ids, skip_special_tokens=True)}
            | {'reward': _rounded(batch.scores[row]), 'ended': bool(groups.ended[at])}
            | {'rewards': {name: _rounded(values[row]) for name, values in batch.parts.items()}}
            | {'sampled_at': int(groups.step[at[0]]), 'tokens': token_texts(codec.tokenizer, ids)}
            | {name: [_rounded(x) for x in values] for name, values in per_token.items()}
        )
    before = read_records(path)
    kept = [r for r in before if r.get('step', 0) < step or (r.get('step') == step and 'advantages' not in r)]
    on_first(lambda: write_records(path, kept + written), 'rollouts')


def token_texts(tokenizer, ids: list[int]) -> list[str]:
    """The text that each token adds after the one before it: a blank that decoding it alone would lose is there."""
    texts = []
    for before, token in zip([None, *ids], ids):
        start = [] if before is None else [before]
        texts.append(tokenizer.decode([*start, token])[len(tokenizer.decode(start)) :])
    return texts


def _rounded(x):
    return round(float(x), 6)
