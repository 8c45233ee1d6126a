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
from rlax_ft.models.heads import ScalarModel, sequence_scores
from rlax_ft.models.scoring import candidate_count, candidate_rows
from rlax_ft.types import BranchBatch, Params, TokenBatch


@struct.dataclass
class RewardModel:
    """A reward model and the scale of its scores.

    Attributes:
      config: of the model.
      params: of `ScalarModel`.
      mean: mean score of reference samples, subtracted.
      scale: what the centred score is divided by; 1, or the reference samples' standard deviation.
    """

    config: ModelConfig = struct.field(pytree_node=False)
    params: Params
    mean: float = 0.0
    scale: float = 1.0

    def __call__(self, rows: TokenBatch | BranchBatch) -> jax.Array:
        """(r(x, y) - mean) / scale, float32[B], or [B * K] of branches."""
        scores = sequence_scores(ScalarModel(self.config).apply, self.params, rows)
        return (scores - self.mean) / self.scale

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
    extra = {'reward_mean': float(model.mean), 'reward_scale': float(model.scale)}
    save_pretrained(path, model.config, model.params, tokenizer, extra)


def load_reward_model(path: str | Path, *, mesh=None, dtype=None) -> tuple[RewardModel, object]:
    """Reads (reward model, tokenizer) from such a folder, or from any sequence classifier with one label.

    Args:
      path: the folder, or the id of a repository on the hub.
      mesh: as in `load_pretrained`.
      dtype: as in `load_pretrained`.

    Raises:
      InputError: the folder holds no reward model.
    """
    config, params, tokenizer = load_pretrained(path, mesh=mesh, dtype=dtype)
    if 'backbone' not in params:
        raise InputError(f'{path}: a language model, not a reward model; give what reward_model.py wrote')
    raw = json.loads(config.notes)['config']
    return RewardModel(config, params, raw.get('reward_mean', 0.0), raw.get('reward_scale', 1.0)), tokenizer
