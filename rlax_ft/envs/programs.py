"""How functions of one run become one compiled program of all runs, over the devices there are."""

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlax_ft.envs.ppo import mean_metrics
from rlax_ft.envs.state import PPOState
from rlax_ft.parallel.compile import PMAP_AXIS
from rlax_ft.parallel.mesh import batch_devices, make_mesh
from rlax_ft.parallel.placement import reshard


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which devices train what.

    Runs side by side need not talk to each other, so devices take whole runs where these divide over them. Else they
    share the environments of each run; but a CPU's virtual devices do so only when a mesh or pmap asks for it.

    Attributes:
      runs: how many are trained together.
      backend: jit or pmap.
      mesh: such as `data=8`; empty where none was asked for.
    """

    runs: int
    backend: str = 'jit'
    mesh: str = ''

    @property
    def splits_runs(self) -> bool:
        """Whether every device takes whole runs."""
        return self.backend == 'jit' and not self.mesh and self.runs % jax.device_count() == 0

    @property
    def axis_name(self) -> str | None:
        """The mapped axis over which environments are split."""
        return PMAP_AXIS if self.backend == 'pmap' else None

    def environment_devices(self) -> int:
        """Over how many devices the environments of a run are split."""
        if self.backend == 'pmap':
            return jax.local_device_count()
        if self.mesh:
            return batch_devices(make_mesh(self.mesh))
        return batch_devices(make_mesh()) if self._over_all and not self.splits_runs else 1

    @property
    def _over_all(self):
        return bool(self.mesh) or jax.default_backend() != 'cpu' or jax.process_count() > 1

    def shardings(self, state: PPOState):
        """Where a state [runs, ...] lives under jit."""
        if self.splits_runs:
            whole: jax.sharding.Sharding = NamedSharding(_runs_mesh(), P('runs'))
            split = whole
        elif self._over_all:
            mesh = make_mesh(self.mesh)
            whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, ('data', 'fsdp')))
        else:
            whole = split = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        actors = jax.tree.map(lambda _: split, state.actors)
        return dataclasses.replace(jax.tree.map(lambda _: whole, state), actors=actors)

    def place(self, state: PPOState) -> PPOState:
        """A state where the program wants it; pmap's environments [runs, N] become [runs, devices, N / devices]."""
        if self.backend == 'pmap':
            devices = jax.local_device_count()
            split = lambda x: x.reshape(x.shape[0], devices, x.shape[1] // devices, *x.shape[2:])  # noqa: E731
            return dataclasses.replace(state, actors=jax.tree.map(split, state.actors))
        return reshard(state, self.shardings(state))

    def gathered(self, state: PPOState) -> PPOState:
        """The state as a checkpoint has it, whatever it ran on: undoes the split of `place`."""
        if self.backend == 'pmap':
            join = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])  # noqa: E731
            return dataclasses.replace(state, actors=jax.tree.map(join, state.actors))
        return state


class Program:
    """`(hyper, state, count) -> (state, metrics)`: `count` updates of all runs, compiled at its first call.

    The state is donated.

    - Where devices take whole runs, nothing is exchanged (`jax.shard_map` over the runs).
    - Over a mesh the environments (axis 1, after the runs) are split and the compiler does the rest: the numbers are
      those of one device.
    - Under pmap every device shuffles its own environments, and gradients are summed.
    """

    def __init__(self, layout: Layout, iteration: Callable):
        """Takes `iteration(hyper, state) -> (state, metrics)`, one update of one run."""
        self._layout = layout
        self._iteration = iteration
        self._compiled: Callable | None = None
        self.compile_seconds = 0.0

    def __call__(self, hyper, state, count: int):
        """Runs it; the metrics [runs] are means over the updates."""
        updates: jax.Array | np.ndarray = jnp.asarray(count, jnp.int32)
        if jax.process_count() > 1:
            hyper, updates = jax.tree.map(np.asarray, (hyper, updates))  # What all processes have alike.
        if self._compiled is None:
            started = time.perf_counter()
            self._compiled = self._jit(state).lower(hyper, state, updates).compile()
            self.compile_seconds = time.perf_counter() - started
        return self._compiled(hyper, state, updates)

    def _jit(self, state):
        layout = self._layout

        def batched(hyper, state, count):
            return over_runs(lambda one, its: repeated(self._iteration, one, its, count))(hyper, state)

        if layout.backend == 'pmap':
            axes = state.replace(train=None, actors=1, observation_stats=None, return_stats=None, kl_coef=None)
            return jax.pmap(
                batched,
                axis_name=PMAP_AXIS,
                in_axes=(None, axes, None),
                out_axes=(axes, None),
                donate_argnums=1,
            )
        if layout.splits_runs:
            batched = jax.shard_map(
                batched,
                mesh=_runs_mesh(),
                in_specs=(P('runs'), P('runs'), P()),
                out_specs=P('runs'),
                check_vma=False,
            )
        return jax.jit(batched, donate_argnums=1, out_shardings=(layout.shardings(state), None))


def repeated(iteration: Callable, hyper, state: PPOState, count: jax.Array):
    """`count` iterations of one run: (state, means of their metrics)."""

    def one(_, carry):
        state, totals = carry
        state, metrics = iteration(hyper, state)
        return state, jax.tree.map(jnp.add, totals, metrics)

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(iteration, hyper, state)[1])
    state, totals = jax.lax.fori_loop(0, count, one, (state, zeros))
    return state, mean_metrics(totals, count)


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


def _runs_mesh() -> Mesh:
    """All devices, each for runs of its own."""
    return Mesh(np.asarray(jax.devices()), ('runs',))
