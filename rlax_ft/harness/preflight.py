"""The step of a script, and its decoding, from shapes alone: what launch/preflight.py compiles for chips elsewhere.

The objective, the optimiser and the compiled step are those of the script; states and batches are shapes. Leaves out
the compiler's report (launch/preflight.py).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlax_ft.errors import InputError
from rlax_ft.harness.group_setup import make_loss
from rlax_ft.harness.learner import Learner, check_matmul
from rlax_ft.harness.loading import load_loss
from rlax_ft.harness.step import compile_training
from rlax_ft.models.config import ModelConfig
from rlax_ft.models.quantized import quantize_base
from rlax_ft.models.transformer import init_params
from rlax_ft.objectives.policy import PolicyBatch, policy_objective
from rlax_ft.objectives.ppo import PPOBatch, ppo_objective
from rlax_ft.objectives.preference import preference_objective
from rlax_ft.objectives.reward import reward_objective
from rlax_ft.objectives.supervised import sft_objective
from rlax_ft.parallel.mesh import make_mesh
from rlax_ft.training.step import init_state
from rlax_ft.types import BranchBatch, PreferenceBatch, TokenBatch


@dataclasses.dataclass(frozen=True)
class Planned:
    """A step to be compiled.

    Attributes:
      lower: gives the lowered step.
      state: its shapes.
      resident: shapes of models that stay on the devices and that the step does not read: reference, reward model.
      on_host: of those that do not stay there (--offload_reference).
      frozen: shapes that it reads and does not train.
      tokens: positions of a batch.
      length: of its longest row.
      models: how many models of this shape go forward and back over the batch.
    """

    lower: Callable[[], Any]
    state: Any
    resident: dict[str, Any]
    on_host: dict[str, Any]
    frozen: Any
    tokens: int
    length: int
    models: int = 1


def plan(script: str, settings, config: ModelConfig, length: int) -> Planned:
    """The step of a script by its flags, for rows of `length` tokens.

    Args:
      script: one of PLANS.
      settings: of that script.
      config: of the model, with dtype, kernel, matmul and remat as the flags say.
      length: tokens of a row; of pairs and rollouts, half of it the prompt, and half each response.

    Raises:
      InputError: the script is none of these, or the chip has no --matmul_dtype=fp8.
    """
    if script not in PLANS:
        raise InputError(f'--script={script}: use one of {", ".join(PLANS)}')
    check_matmul(settings, make_mesh(settings.mesh).devices.flat[0])
    dtype = settings.dtype if config.lora else settings.param_dtype
    model = jax.eval_shape(lambda key: init_params(config, key), _key())
    model = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), model)
    if settings.base_dtype:
        model = jax.eval_shape(lambda model: quantize_base(model, settings.base_dtype), model)
    return PLANS[script](settings, Learner(config, model), length)


def _sft(settings, learner, length):
    batch = _tokens(settings.batch_size, length), _scalar()
    objective = sft_objective(learner.apply)
    return _planned(settings, learner, objective, Learner.start, batch, settings.batch_size * length, length)


def _pairs(settings, length):
    rows, part = settings.batch_size, length // 2
    candidates = BranchBatch(_tokens(rows, part), _tokens((rows, 2), part))
    column = _floats(rows)
    return PreferenceBatch(candidates, column, ref_logps=_floats((rows, 2))), _scalar()


def _reward(settings, learner, length):
    objective = reward_objective(learner.scalar_apply)
    tokens = settings.batch_size * (length // 2) * 3
    return _planned(settings, learner, objective, Learner.start_reward, _pairs(settings, length), tokens, length)


def _dpo(settings, learner, length):
    loss = load_loss(settings, settings.loss, 'rlax_ft.losses.preference', settings.loss_args, beta=settings.beta)
    objective = preference_objective(learner.apply, loss, beta=settings.beta)
    resident = _reference(learner)
    tokens = settings.batch_size * (length // 2) * 3
    how = dict(resident=resident)
    return _planned(settings, learner, objective, Learner.start, _pairs(settings, length), tokens, length, **how)


def _ppo(settings, learner, length):
    loss = load_loss(settings, settings.loss, 'rlax_ft.losses.policy_gradient', settings.loss_args)
    objective = ppo_objective(
        learner.apply,
        learner.scalar_apply,
        loss=loss,
        value_clip=settings.value_clip or None,
        value_coef=settings.value_coef,
        entropy_coef=settings.entropy_coef,
        temperature=settings.temperature,
    )
    part, group = length // 2, settings.group_size
    prompts = settings.batch_size // settings.minibatches // group
    tokens = BranchBatch(_tokens(prompts, part), _tokens((prompts, group), part))
    of_token = _floats((prompts * group, part))
    batch = PPOBatch(tokens, of_token, of_token, of_token, of_token), _scalar()
    start = lambda learner: {'policy': learner.start(), 'value': learner.start_value()}  # noqa: E731
    resident = {'reward model': learner.model} | _reference(learner)
    how = dict(resident=resident, models=2, eps=1e-5)
    return _planned(settings, learner, objective, start, batch, prompts * (1 + group) * part, length, **how)


def _grpo(settings, learner, length):
    loss, how = make_loss(settings)
    objective = policy_objective(learner.apply, temperature=settings.temperature, loss=loss, **how)
    part, group = length // 2, settings.group_size
    prompts = settings.batch_size // settings.minibatches // group
    tokens = BranchBatch(_tokens(prompts, part), _tokens((prompts, group), part))
    of_token = _floats((prompts * group, part))
    ref = of_token if settings.beta else None
    batch = PolicyBatch(tokens, of_token, of_token, of_token, ref=ref), _scalar(), _scalar()
    resident = _reference(learner) if settings.beta else {}
    count = prompts * (1 + group) * part
    return _planned(settings, learner, objective, Learner.start, batch, count, length, resident=resident)


PLANS = {'sft': _sft, 'reward': _reward, 'dpo': _dpo, 'ppo': _ppo, 'grpo': _grpo}

# The script file and its settings class.
FILES = {
    'sft': ('sft', 'SFTSettings'),
    'reward': ('reward_model', 'RewardModelSettings'),
    'dpo': ('dpo', 'DPOSettings'),
    'ppo': ('ppo', 'PPOSettings'),
    'grpo': ('grpo', 'GRPOSettings'),
}


def _reference(learner):
    return {} if learner.config.lora else {'reference': learner.model}


def _planned(settings, learner, objective, start, batch, tokens, length, *, resident=None, models=1, eps=1e-8):
    """`start(learner)` gives what is trained; here it only says its shapes."""
    optimizer, step = compile_training(settings, objective, learner.base, max_updates=1000, eps=eps)

    def first(model, key):
        return init_state(start(dataclasses.replace(learner, model=model)), optimizer, key)

    state = jax.eval_shape(first, learner.model, _key())
    resident, on_host = dict(resident or {}), {}
    if 'reference' in resident and settings.offload_reference:
        on_host['reference'] = resident.pop('reference')
    lower = lambda: step.lower(state, batch)  # noqa: E731
    return Planned(lower, state, resident, on_host, learner.base, tokens, length, models)


def _tokens(rows, length):
    shape = (*rows, length) if isinstance(rows, tuple) else (rows, length)
    whole, real = jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.float32)
    return TokenBatch(whole, real, whole, whole)


def _floats(shape):
    return jax.ShapeDtypeStruct(shape if isinstance(shape, tuple) else (shape,), jnp.float32)


def _scalar():
    return jax.ShapeDtypeStruct((), jnp.float32)


def _key():
    return jax.eval_shape(lambda: jax.random.key(0))
