"""How ppo_control.py's functions of one run become one compiled program of all runs, over the devices there are.

Leaves out what the functions compute.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlax_ft.envs.agent import Agent
from rlax_ft.envs.gymnasium import HostEnvironments
from rlax_ft.envs.host import collect_on_host, make_decider
from rlax_ft.envs.ppo import mean_metrics
from rlax_ft.envs.setup import ControlSettings, split_runs
from rlax_ft.envs.state import ControlState
from rlax_ft.parallel.compile import PMAP_AXIS
from rlax_ft.parallel.mesh import make_mesh


class Program:
    """`f(hyper, state, *shared)` of one run, for all runs at once; compiled at its first call, the state donated.

    - Where devices take whole runs, nothing is exchanged (`jax.shard_map` over the runs).
    - Over a mesh the environments (axis 1, after the runs) are split and the compiler does the rest: the numbers are
      those of one device.
    - Under pmap every device shuffles its own environments, and gradients are summed.
    """

    def __init__(self, settings: ControlSettings, function: Callable):
        """Takes a function of unbatched (hyper, state, *shared) -> (state, metrics)."""
        self._settings = settings
        self._function = function
        self._compiled = None
        self.compile_seconds = 0.0

    def __call__(self, hyper, state, *shared):
        """Runs it; `shared` is the same for all runs."""
        if self._compiled is None:
            started = time.perf_counter()
            self._compiled = self._jit(state, len(shared)).lower(hyper, state, *shared).compile()
            self.compile_seconds = time.perf_counter() - started
        return self._compiled(hyper, state, *shared)

    def _jit(self, state, shared):
        settings = self._settings

        def batched(hyper, state, *shared):
            return over_runs(lambda one, its: self._function(one, its, *shared))(hyper, state)

        if settings.backend == 'pmap':
            axes = state.replace(train=None, actors=1, observation_stats=None, return_stats=None, kl_coef=None)
            return jax.pmap(
                batched,
                axis_name=PMAP_AXIS,
                in_axes=(None, axes) + (None,) * shared,
                out_axes=(axes, None),
                donate_argnums=1,
            )
        if split_runs(settings):
            batched = jax.shard_map(
                batched,
                mesh=runs_mesh(),
                in_specs=(P('runs'), P('runs')) + (P(),) * shared,
                out_specs=P('runs'),
                check_vma=False,
            )
        return jax.jit(batched, donate_argnums=1, out_shardings=(placement_of(settings, state), None))


def over_runs(function: Callable) -> Callable:
    """A function of one run -> the same of runs along a leading axis of all its arguments.

    One run is taken out of its axis rather than vmapped over it: on a CPU a matrix product with a batch axis, even of
    length 1, misses the fast path.
    """

    def all_runs(*arguments):
        if len(jax.tree.leaves(arguments)[0]) > 1:
            return jax.vmap(function)(*arguments)
        answer = function(*jax.tree.map(lambda x: x[0], arguments))
        return jax.tree.map(lambda x: x[None], answer)

    return all_runs


def runs_mesh() -> Mesh:
    """All devices, each for runs of its own."""
    return Mesh(np.asarray(jax.devices()), ('runs',))


def placement_of(settings: ControlSettings, state: ControlState):
    """Where a state [runs, ...] lives under jit."""
    if split_runs(settings):
        whole = split = NamedSharding(runs_mesh(), P('runs'))
    elif settings.mesh or jax.default_backend() != 'cpu':
        mesh = make_mesh(settings.mesh)
        whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, ('data', 'fsdp')))
    else:
        whole = split = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: whole, state).replace(actors=jax.tree.map(lambda _: split, state.actors))


def place(settings: ControlSettings, state: ControlState) -> ControlState:
    """A state where the program wants it; under pmap the environments [runs, N] become [runs, devices, N / devices]."""
    if settings.backend == 'pmap':
        devices = jax.local_device_count()
        split = lambda x: x.reshape(x.shape[0], devices, x.shape[1] // devices, *x.shape[2:])  # noqa: E731
        return state.replace(actors=jax.tree.map(split, state.actors))
    return jax.device_put(state, placement_of(settings, state))


def gathered(settings: ControlSettings, state: ControlState) -> ControlState:
    """The state as a checkpoint has it, whatever it ran on: undoes the split of `place`."""
    if settings.backend == 'pmap':
        join = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])  # noqa: E731
        return state.replace(actors=jax.tree.map(join, state.actors))
    return state


class HostProgram:
    """The same, for environments that step on the host: the rollout is a loop here, the rest is compiled."""

    def __init__(self, settings: ControlSettings, env: HostEnvironments, agent: Agent, learn: Callable):
        """Takes `learn(hyper, state, actors, frames, key) -> (state, metrics)` of one run."""
        self._settings, self._env = settings, env
        self._decide = make_decider(agent)
        self._learn = jax.jit(over_runs(learn), donate_argnums=1)
        self._compiled = None
        self.compile_seconds = 0.0

    def __call__(self, hyper, state, count):
        """(state, metrics [runs]) after `count` updates."""
        totals = None
        for _ in range(int(count)):
            state, actors, frames, key = collect_on_host(self._env, self._decide, state, self._settings.num_steps)
            if self._compiled is None:
                started = time.perf_counter()
                self._compiled = self._learn.lower(hyper, state, actors, frames, key).compile()
                self.compile_seconds = time.perf_counter() - started
            state, metrics = self._compiled(hyper, state, actors, frames, key)
            totals = metrics if totals is None else jax.tree.map(jnp.add, totals, metrics)
        return state, mean_metrics(totals, int(count))
