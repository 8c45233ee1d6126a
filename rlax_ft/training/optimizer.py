"""The optimiser of every stage: one of optax's, after clipping, with a schedule.

Leaves out everything that optax does.
"""

from collections.abc import Callable
from functools import partial

import jax
import optax

from rlax_ft.errors import InputError
from rlax_ft.training.moments import in_eight_bits

_MOST_UPDATES = 2**31 - 1
SCHEDULES = ('linear', 'cosine', 'constant')


def make_optimizer(
    learning_rate: float,
    *,
    max_steps: int,
    kind: str | Callable = 'adamw',
    schedule: str = 'linear',
    warmup_steps: int = 0,
    clip_norm: float = 1.0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    moment_dtype: str | None = None,
) -> optax.GradientTransformation:
    """An optimiser after global-norm clipping; its learning rate is readable from its state.

    Args:
      learning_rate: the peak.
      max_steps: number of updates over which the schedule runs.
      kind: one of OPTIMIZERS, or `f(learning_rate) -> GradientTransformation`.
      schedule: `linear` or `cosine` decay to 0, or `constant`.
      warmup_steps: updates of linear rise from 0 before the schedule.
      clip_norm: the largest global gradient norm; 0 does not clip.
      eps: Adam's epsilon; 1e-5 for PPO (arXiv 2403.17031).
      weight_decay: decoupled decay of everything but norms and biases.
      moment_dtype: `bfloat16`: of the first moment (optax's mu_dtype); `int8`: 8 bits for each number of all moments
        (moments.py); None: that of the parameters.

    Raises:
      InputError: an unknown schedule or kind, a kind without moments that are to be narrower, or more updates
        than an int32 counts.
    """
    if max(max_steps, warmup_steps) > _MOST_UPDATES:
        raise InputError(f'{max(max_steps, warmup_steps):.3g} updates: more than {_MOST_UPDATES:,}; give fewer steps')
    steps = max(max_steps - warmup_steps, 1)
    schedules = {
        'linear': optax.linear_schedule(learning_rate, 0.0, steps),
        'cosine': optax.cosine_decay_schedule(learning_rate, steps),
        'constant': optax.constant_schedule(learning_rate),
    }
    if schedule not in schedules:
        raise InputError(f'schedule {schedule!r}: use one of {", ".join(SCHEDULES)}')
    if not callable(kind) and kind not in OPTIMIZERS:
        raise InputError(f'optimizer {kind!r}: use one of {", ".join(OPTIMIZERS)}, or a function of the learning rate')
    rate = schedules[schedule]
    if warmup_steps:
        rate = optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup_steps), rate], [warmup_steps])
    how: dict[str, object] = dict(eps=eps, weight_decay=weight_decay)
    if moment_dtype is not None:
        if callable(kind) or kind == 'adafactor':
            name = 'a function' if callable(kind) else kind
            raise InputError(
                f'--moment_dtype={moment_dtype}: --optimizer={name} has no first moment to set it of; leave one out'
            )
        if moment_dtype != 'int8':
            how['mu_dtype'] = moment_dtype
    plain = kind if callable(kind) else partial(OPTIMIZERS[kind], **how)
    make = (lambda learning_rate: in_eight_bits(plain(learning_rate))) if moment_dtype == 'int8' else plain
    # Only the rate is injected: what else the optimiser takes stays a Python number.
    inner = optax.inject_hyperparams(lambda learning_rate: make(learning_rate))(learning_rate=rate)
    return optax.chain(optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(), inner)


def _adamw(learning_rate, *, eps, weight_decay, mu_dtype=None):
    """arXiv 1711.05101."""
    return optax.adamw(learning_rate, eps=eps, weight_decay=weight_decay, mask=_matrices, mu_dtype=mu_dtype)


def _adafactor(learning_rate, *, eps, weight_decay):
    """arXiv 1804.04235, without its own clipping and scaling by parameter: the rate means what it does elsewhere."""
    del eps
    scale = dict(multiply_by_parameter_scale=False, clipping_threshold=None)
    decay = weight_decay * learning_rate  # optax applies it after the rate.
    return optax.adafactor(learning_rate, weight_decay_rate=decay, weight_decay_mask=_matrices, **scale)


def _lion(learning_rate, *, eps, weight_decay, mu_dtype=None):
    """arXiv 2302.06675."""
    del eps
    return optax.lion(learning_rate, weight_decay=weight_decay, mask=_matrices, mu_dtype=mu_dtype)


def _muon(learning_rate, *, eps, weight_decay, mu_dtype=None):
    """Orthogonalised momentum for the layers' matrices, each of a stack by itself; Adam for the rest."""
    orthogonal = optax.contrib.muon(learning_rate, eps=eps, muon_weight_dimension_numbers=_muon_axes, mu_dtype=mu_dtype)
    # optax's own decay has a mask for the matrices only, and would shrink all that Adam moves.
    return optax.chain(orthogonal, optax.add_decayed_weights(-weight_decay * learning_rate, mask=_matrices))


OPTIMIZERS = {'adamw': _adamw, 'adafactor': _adafactor, 'lion': _lion, 'muon': _muon}


def _matrices(params):
    """True for what decays: a bias, and the scale of a norm, are no matrices, though layers stack them as if."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path) not in ('bias', 'scale'), params)


def _muon_axes(params):
    axes = lambda leaf: optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)  # noqa: E731
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: axes(leaf) if _name(path) in ('kernel', 'A', 'B') and leaf.ndim > 1 else None, params
    )


def _name(path):
    return getattr(path[-1], 'key', '') if path else ''
