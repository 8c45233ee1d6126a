"""AdamW with clipping and a schedule, the optimiser of every stage.

Leaves out everything that optax does.
"""

import optax

from rlax_ft.errors import InputError

SCHEDULES = ('linear', 'cosine', 'constant')


def make_optimizer(
    learning_rate: float,
    *,
    max_steps: int,
    schedule: str = 'linear',
    warmup_steps: int = 0,
    clip_norm: float = 1.0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) after global-norm clipping; its learning rate is readable from the optimiser's state.

    Args:
      learning_rate: the peak.
      max_steps: number of updates over which the schedule runs.
      schedule: `linear` or `cosine` decay to 0, or `constant`.
      warmup_steps: updates of linear rise from 0 before the schedule.
      clip_norm: the largest global gradient norm; 0 does not clip.
      eps: Adam's epsilon; 1e-5 for PPO (arXiv 2403.17031).
      weight_decay: decoupled decay.

    Raises:
      InputError: an unknown schedule.
    """
    steps = max(max_steps - warmup_steps, 1)
    schedules = {
        'linear': optax.linear_schedule(learning_rate, 0.0, steps),
        'cosine': optax.cosine_decay_schedule(learning_rate, steps),
        'constant': optax.constant_schedule(learning_rate),
    }
    if schedule not in schedules:
        raise InputError(f'--schedule={schedule}: use one of {", ".join(SCHEDULES)}')
    rate = schedules[schedule]
    if warmup_steps:
        rate = optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup_steps), rate], [warmup_steps])
    adamw = optax.inject_hyperparams(optax.adamw, static_args=('b1', 'b2', 'eps', 'eps_root', 'weight_decay'))(
        learning_rate=rate, eps=eps, weight_decay=weight_decay
    )
    return optax.chain(optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(), adamw)
