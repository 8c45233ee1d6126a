"""The one train step that every stage uses: gradient, optional micro-batches, sum over devices, update.

Leaves out compilation (parallel/compile.py) and what the loss is (objectives.py).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from rlax_ft.parallel.constrain import constrain, constrain_like_params
from rlax_ft.training.rounding import apply_updates, in_float32
from rlax_ft.types import Params, TrainState

# What tells the key of a step's roundings from those of its devices and parts, which are counted from 0.
_ROUNDING = 2**31


def make_train_step(
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
    axis_name: str | None = None,
    skip_bad: bool = False,
) -> Callable:
    """Makes `step(state, batch, *frozen) -> (state, metrics)`.

    A micro-batch, or a device's part of a batch under `axis_name`, gives its *share* of loss and metrics: sums over its
    rows divided by the denominator of the whole batch, which the caller puts into the batch before it is split. Shares
    and their gradients are therefore added, and a split changes nothing but what a loss draws at random (an adapter's
    dropout): each part has a key of its own.

    Parameters in bfloat16 have gradients, sums and optimiser state in float32, and are rounded at random where an
    update is added (rounding.py), by the state's key and step alone.

    Args:
      loss_fn: `loss_fn(params, batch, key, *frozen) -> (loss, metrics)`, scalars all; `frozen` is what it reads
        but does not train, such as the base of an adapter.
      optimizer: an optax transformation; a learning rate injected by `training.optimizer` is reported as `lr`.
      micro_batches: parts into which the leading axis of every batched leaf is split; scalars go whole to each.
      axis_name: the mapped axis to sum over, under pmap.
      skip_bad: a step whose loss or gradient is not finite leaves parameters and optimiser state as they were.

    Returns:
      The step; its metrics are those of `loss_fn` with `loss`, `grad_norm` (before clipping) and `lr`; with `skip_bad`
      also `skipped`, 1 where the step was and 0 elsewhere.

    Raises:
      ValueError: at trace time, if a leading axis does not divide into `micro_batches`.
    """
    differentiate = jax.value_and_grad(loss_fn, has_aux=True)

    def value_and_grad(*arguments):
        value, grads = differentiate(*arguments)
        return value, in_float32(constrain_like_params(grads))

    def shares(params, batch, key, frozen):
        if micro_batches == 1:
            return value_and_grad(params, batch, key, *frozen)
        batched, whole = _partition(batch, micro_batches)

        def accumulate(total, part):
            leaves, part_key = part
            value = value_and_grad(params, whole(leaves), part_key, *frozen)
            value, grads = jax.tree.map(jnp.add, total, value)
            return (value, constrain_like_params(grads)), None

        keys = jax.random.split(key, micro_batches)
        first = whole([leaf[0] for leaf in batched])
        shapes = jax.eval_shape(value_and_grad, params, first, key, *frozen)
        value, grads = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(accumulate, (value, constrain_like_params(grads)), (batched, keys))[0]

    def step(state: TrainState, batch, *frozen):
        step_key = jax.random.fold_in(state.key, state.step)
        rounding_key = jax.random.fold_in(step_key, _ROUNDING)
        if axis_name is not None:
            step_key = jax.random.fold_in(step_key, jax.lax.axis_index(axis_name))
        (loss, metrics), grads = shares(state.params, batch, step_key, frozen)
        if axis_name is not None:
            loss, metrics, grads = jax.lax.psum((loss, metrics, grads), axis_name)
        norm = optax.global_norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = apply_updates(state.params, updates, rounding_key)
        metrics = {**metrics, 'loss': loss, 'grad_norm': norm, **_learning_rate(opt_state)}
        if skip_bad:
            good = jnp.isfinite(loss) & jnp.isfinite(norm)
            before = (state.params, state.opt_state)
            params, opt_state = jax.tree.map(lambda new, old: jnp.where(good, new, old), (params, opt_state), before)
            metrics['skipped'] = 1.0 - good.astype(jnp.float32)
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state, key=state.key), metrics

    return step


def init_state(params: Params, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state before the first step."""
    opt_state = optimizer.init(in_float32(params))
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state, key=key)


def _partition(batch, parts):
    """Splits batched leaves into [parts, B / parts, ...]; returns them, and how to put a batch together again."""
    leaves, structure = jax.tree.flatten(batch)
    is_batched = [jnp.ndim(leaf) > 0 for leaf in leaves]
    batched = [
        constrain(leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:]), 'parts')
        for leaf, split in zip(leaves, is_batched)
        if split
    ]

    def whole(part):
        part = iter(part)
        return jax.tree.unflatten(structure, [next(part) if split else leaf for leaf, split in zip(leaves, is_batched)])

    return batched, whole


def _learning_rate(opt_state):
    hyperparams = optax.tree_utils.tree_get(opt_state, 'hyperparams')
    return {} if hyperparams is None else {'lr': jnp.asarray(hyperparams['learning_rate'])}
