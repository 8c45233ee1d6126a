"""An ensemble of reward models as one reward: its members' mean, least, or mean less k standard deviations.

Where members disagree, comparisons have said little; the two cautious reductions keep a policy from there (arXiv
2310.02743, 2312.09244). Leaves out training (experiments/reward_model.py).
"""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from safetensors.numpy import load_file, save_file

from rlax_ft.hf.folder import save_pretrained
from rlax_ft.models.config import LoRAConfig, ModelConfig
from rlax_ft.models.ensemble import ensemble_scores, member
from rlax_ft.models.heads import ScalarModel
from rlax_ft.models.lora import Adapter, adapted, attach
from rlax_ft.models.scoring import candidate_count, candidate_rows
from rlax_ft.types import BranchBatch, Params, TokenBatch

FILE = 'ensemble.safetensors'
_REDUCTION = re.compile(r'mean|min|lcb(=\d+(\.\d+)?)?')


@struct.dataclass
class RewardEnsemble:
    """E reward models on one backbone, and the scale of their scores.

    Attributes:
      config: of the model, with `lora` where members are adapters.
      backbone: parameters of the `Transformer` that they share.
      members: {'head': {'kernel': [E, D, 1]}}, and {'lora': adapters [E, ...]} where they have one each.
      means: float[E], mean score of reference samples, subtracted from each member's.
      scales: float[E], what the centred scores are divided by.
      reduction: mean, min, or lcb=K for mean - K standard deviations (lcb alone: K = 1).
    """

    config: ModelConfig = struct.field(pytree_node=False)
    backbone: Params
    members: Params
    means: jax.Array
    scales: jax.Array
    reduction: str = struct.field(pytree_node=False, default='mean')

    def member_scores(self, rows: TokenBatch | BranchBatch) -> jax.Array:
        """Each member's centred score of each row, float32[E, B], or [E, B * K] of branches."""
        apply = ScalarModel(self.config).apply
        if self.config.lora is None:
            raw = ensemble_scores(apply, {'backbone': self.backbone, **self.members}, rows)
        else:
            raw = ensemble_scores(
                adapted(apply), attach(Adapter(self.members['lora'], self.members['head']), self.backbone), rows
            )
        return (raw - self.means[:, None]) / self.scales[:, None]

    def judged(self, rows: TokenBatch | BranchBatch) -> tuple[jax.Array, jax.Array]:
        """(the reduced score, the standard deviation over members) of each row, each float32[B]."""
        scores = self.member_scores(rows)
        return reduce_scores(scores, self.reduction), disagreement(scores)

    def __call__(self, rows: TokenBatch | BranchBatch) -> jax.Array:
        """The reduced score of each row, float32[B], or [B * K] of branches."""
        return self.judged(rows)[0]

    def candidates(self, candidates: TokenBatch | BranchBatch) -> jax.Array:
        """The same of K candidates a prompt, float32[B, K]."""
        return self(candidate_rows(candidates)).reshape(-1, candidate_count(candidates))

    def member_candidates(self, candidates: TokenBatch | BranchBatch) -> jax.Array:
        """Each member's score of K candidates a prompt, float32[B, K, E]."""
        return self.member_scores(candidate_rows(candidates)).T.reshape(
            -1, candidate_count(candidates), len(self.means)
        )

    @property
    def scale(self) -> jax.Array:
        """The members' scale, on average: what turns a score into Bradley-Terry's logits again."""
        return jnp.mean(self.scales)

    def normalized(self, scores: np.ndarray, *, scale: bool) -> 'RewardEnsemble':
        """The same ensemble, each member centred (and scaled) on its scores of reference samples, float[E, N]."""
        spread = np.std(scores, axis=1) if scale else np.ones(len(scores))
        means = self.means + self.scales * np.mean(scores, axis=1)
        return dataclasses.replace(self, means=jnp.asarray(means), scales=self.scales * np.maximum(spread, 1e-6))


def reduce_scores(scores: jax.Array, reduction: str = 'mean') -> jax.Array:
    """One score from those of E members: their mean, min, or mean - k standard deviations, float[E, ...] -> [...].

    Raises:
      ValueError: an unknown reduction.
    """
    if not _REDUCTION.fullmatch(reduction):
        raise ValueError(f'unknown reduction {reduction!r}: mean, min, lcb or lcb=K')
    if reduction == 'min':
        return jnp.min(scores, axis=0)
    mean = jnp.mean(scores, axis=0)
    return mean if reduction == 'mean' else mean - float(reduction[4:] or 1.0) * disagreement(scores)


def disagreement(scores: jax.Array) -> jax.Array:
    """The standard deviation over E members, float[E, ...] -> [...]."""
    return jnp.std(scores, axis=0)


def mean_disagreement(scores: np.ndarray) -> float:
    """The mean over N answers of `disagreement`, each member centred on its own mean first; scores float[E, N]."""
    return float(disagreement(scores - scores.mean(axis=1, keepdims=True)).mean())


def split_reduction(name: str) -> tuple[str, str]:
    """(`runs/rm`, `min`) of `runs/rm:min`; (name, '') where no reduction stands behind it."""
    path, colon, reduction = name.rpartition(':')
    return (path, reduction) if colon and _REDUCTION.fullmatch(reduction) else (name, '')


def save_ensemble(path: str | Path, ensemble: RewardEnsemble, tokenizer) -> None:
    """Writes a reward model's folder, which alone is the first member, with all members beside its weights."""
    first = member(ensemble.members, 0)
    extra = {'reward_mean': float(ensemble.means[0]), 'reward_scale': float(ensemble.scales[0])}
    # What the first member's adapter adds to the backbone is nothing: see `models.ensemble.beside_first`.
    alone = {'backbone': ensemble.backbone, 'head': first['head']}
    save_pretrained(path, ensemble.config, alone, tokenizer, extra)
    rest = {'means': ensemble.means, 'scales': ensemble.scales}
    flat = {name: np.ascontiguousarray(leaf) for name, leaf in _flat({**ensemble.members, **rest}).items()}
    save_file(flat, Path(path) / FILE)


def load_ensemble(path: Path, config: ModelConfig, backbone: Params, reduction: str = '') -> RewardEnsemble:
    """The ensemble whose members lie in a reward model's folder.

    Args:
      path: the folder.
      config, backbone: of the reward model that it holds.
      reduction: mean where empty.
    """
    members: dict = {}
    for name, leaf in load_file(Path(path) / FILE).items():
        at, *rest = members, *name.split('/')
        for part in rest[:-1]:
            at = at.setdefault(part, {})
        at[rest[-1]] = jnp.asarray(leaf)
    means, scales = members.pop('means'), members.pop('scales')
    if 'lora' in members:
        # Of the two leaves of an adapter A comes first, and ends on the rank; the scaling is in B.
        rank = jax.tree.leaves(members['lora'])[0].shape[-1]
        config = dataclasses.replace(config, lora=LoRAConfig(rank, alpha=float(rank)))
    return RewardEnsemble(config, backbone, members, means, scales, reduction or 'mean')


def _flat(tree, prefix=''):
    if not isinstance(tree, dict):
        return {prefix: tree}
    parts = (_flat(part, f'{prefix}/{name}' if prefix else name) for name, part in tree.items())
    return {name: leaf for part in parts for name, leaf in part.items()}
