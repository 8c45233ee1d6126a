"""A trained reward model as a reward: its score, centred (and scaled, if asked) on reference samples.

Centring keeps the meaning of the KL coefficient from one reward model to the next (arXiv 1909.08593). Leaves out
training (experiments/reward_model.py).
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from flax import struct

from rlax_ft.errors import InputError
from rlax_ft.hf.folder import load_pretrained, save_pretrained
from rlax_ft.models.config import ModelConfig
from rlax_ft.models.heads import ScalarModel, least_step_scores, sequence_scores, step_scores
from rlax_ft.models.scoring import candidate_count, candidate_rows
from rlax_ft.rewards.ensemble import FILE, RewardEnsemble, load_ensemble
from rlax_ft.types import BranchBatch, Params, TokenBatch


@struct.dataclass
class RewardModel:
    """A reward model and the scale of its scores.

    Attributes:
      config: of the model.
      params: of `ScalarModel`.
      mean: mean score of reference samples, subtracted.
      scale: what the centred score is divided by; 1, or the reference samples' standard deviation.
      step_ends: of a process reward model, the tokens that end a step: its score is the least of a solution's steps.
    """

    config: ModelConfig = struct.field(pytree_node=False)
    params: Params
    mean: float = 0.0
    scale: float = 1.0
    step_ends: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)

    def __call__(self, rows: TokenBatch | BranchBatch) -> jax.Array:
        """(r(x, y) - mean) / scale, float32[B], or [B * K] of branches."""
        apply = ScalarModel(self.config).apply
        if self.step_ends is None:
            scores = sequence_scores(apply, self.params, rows)
        else:
            scores = least_step_scores(apply, self.params, rows, self.step_ends)
        return (scores - self.mean) / self.scale

    def steps(self, rows: TokenBatch | BranchBatch) -> tuple[jax.Array, jax.Array]:
        """Of a process reward model: probabilities that a step is right, and where steps end; [B, T] each."""
        assert self.step_ends is not None, 'a process reward model has ends of steps'
        logits, ends = step_scores(ScalarModel(self.config).apply, self.params, rows, self.step_ends)
        return jax.nn.sigmoid(logits), ends

    def candidates(self, candidates: TokenBatch | BranchBatch) -> jax.Array:
        """The same of K candidates a prompt, float32[B, K], from a TokenBatch [B, K, T] or a BranchBatch."""
        return self(candidate_rows(candidates)).reshape(-1, candidate_count(candidates))

    def normalized(self, scores: np.ndarray, *, scale: bool) -> 'RewardModel':
        """The same model, centred (and scaled) on these scores of reference samples."""
        spread = float(np.std(scores)) if scale else 1.0
        return dataclasses.replace(
            self, mean=self.mean + self.scale * float(np.mean(scores)), scale=self.scale * max(spread, 1e-6)
        )


def save_reward_model(path: str | Path, model: RewardModel, tokenizer) -> None:
    """Writes a folder that transformers opens as a sequence classifier; mean and scale stand in its config.json."""
    extra: dict[str, object] = {'reward_mean': float(model.mean), 'reward_scale': float(model.scale)}
    if model.step_ends is not None:
        extra['reward_step_ends'] = list(model.step_ends)
    save_pretrained(path, model.config, model.params, tokenizer, extra)


def load_reward_model(
    path: str | Path, *, mesh=None, dtype=None, reduction: str = ''
) -> tuple[RewardModel | RewardEnsemble, object]:
    """Reads (reward model or ensemble, tokenizer) from such a folder, or from any sequence classifier with one label.

    Args:
      path: the folder, or the id of a repository on the hub.
      mesh: as in `load_pretrained`.
      dtype: as in `load_pretrained`.
      reduction: of an ensemble: mean (where empty), min, lcb or lcb=K.

    Raises:
      InputError: the folder holds no reward model, or a single one where there is something to reduce.
    """
    config, params, tokenizer = load_pretrained(path, mesh=mesh, dtype=dtype)
    if 'backbone' not in params:
        raise InputError(f'{path}: a language model, not a reward model; give what reward_model.py wrote')
    if (Path(path) / FILE).is_file():
        return load_ensemble(Path(path), config, params['backbone'], reduction), tokenizer
    if reduction:
        raise InputError(f'{path}: a single reward model, which has nothing to reduce by {reduction!r}; leave it out')
    raw = json.loads(config.notes)['config']
    ends = raw.get('reward_step_ends')
    scale = raw.get('reward_mean', 0.0), raw.get('reward_scale', 1.0)
    return RewardModel(config, params, *scale, None if ends is None else tuple(ends)), tokenizer
