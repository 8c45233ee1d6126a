"""What ppo_control.py sets up before its loop: flags, environment, agent, the compiled program.

Leaves out the algorithm, which is in the script itself and in rlax_ft/training/control.py.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from settings import RunSettings, flag

from rlax_ft.envs.adapters import make_environment
from rlax_ft.envs.environment import Environment
from rlax_ft.envs.wrappers import episode_statistics, select_observation, time_limit
from rlax_ft.errors import InputError
from rlax_ft.models.actor_critic import Agent, NetworkConfig, make_agent
from rlax_ft.models.distributions import KINDS, Normal, make_distribution
from rlax_ft.parallel.compile import PMAP_AXIS
from rlax_ft.parallel.mesh import batch_devices, make_mesh
from rlax_ft.training.control import ControlState


@dataclasses.dataclass(frozen=True)
class ControlSettings(RunSettings):
    """Flags of ppo_control.py."""

    length: ClassVar[str] = 'total_steps'
    micro_batches: ClassVar[int] = 1  # A minibatch is one optimiser step.

    env: str = flag('CartPole-v1', 'Of gymnax or Gymnasium by name; brax:NAME, playground:NAME, or MODULE:FUNCTION.')
    total_steps: int = flag(500_000, 'Environment steps of each seed.')
    num_envs: int = flag(4, 'Environments of each seed, side by side.')
    num_steps: int = flag(128, 'Steps of each environment between updates.')
    num_seeds: int = flag(1, 'Seeds trained together: --seed, --seed + 1, ...')
    epochs: int = flag(4, 'Passes over the samples of an update.')
    minibatches: int = flag(4, 'Minibatches in a pass; each is one optimiser step.')
    learning_rate: float = flag(2.5e-4, "Peak learning rate of Adam, whose epsilon is PPO's 1e-5.")
    schedule: str = flag('linear', 'Learning rate over the run.', ('linear', 'cosine', 'constant'))
    clip_norm: float = flag(0.5, 'Largest norm of the gradient; 0 does not clip.')
    gamma: float = flag(0.99, 'Discount.')
    lam: float = flag(0.95, 'Lambda of the estimator.')
    loss: str = flag('ppo_clip', 'ppo_clip, cispo, sapo, ... or MODULE:FUNCTION.')
    loss_args: str = flag('', 'Hyperparameters of the loss, such as clip_low=0.1,clip_high=0.1.')
    beta: float = flag(0.0, 'Weight of the KL to the policy that acted; above 0, with clip_high=inf: KL-penalty PPO.')
    target_kl: float = flag(0.0, 'Adapt beta so that this KL, in nats, comes to here; 0 keeps beta fixed.')
    estimator: str = flag('gae', 'gae, or vtrace, which estimates anew before each epoch.', ('gae', 'vtrace'))
    truncation: str = flag('bootstrap', 'Value after a time limit: the critic, or 0.', ('bootstrap', 'terminate'))
    value_coef: float = flag(0.5, 'Weight of the value loss.')
    value_clip: float = flag(0.2, 'How far a value may move from its old one in an update; 0 does not clip.')
    entropy_coef: float = flag(0.01, 'Weight of the entropy bonus.')
    normalize_advantages: bool = flag(True, 'Centre and scale the advantages of each minibatch.')
    normalize_observations: bool = flag(False, 'By running mean and variance, then clipped to +-10.')
    scale_rewards: bool = flag(False, "By the running deviation of discounted sums, then clipped to +-10.")
    policy: str = flag('auto', 'Distribution of actions; auto takes what fits the environment.', KINDS)
    log_std_init: float = flag(0.0, "Start of a normal policy's log standard deviations.")
    network: str = flag('mlp', 'mlp, or cnn for observations [height, width, channels].', ('mlp', 'cnn'))
    layers: str = flag('64,64', 'Widths of the hidden layers.')
    activation: str = flag('tanh', 'tanh, relu or silu.')
    shared: bool = flag(False, 'One body for policy and value.')
    gru: int = flag(0, 'Width of a GRU before the heads, for what cannot be seen at once; 0: none.')
    sequence: int = flag(0, "Steps in a row of a recurrent policy's minibatch; 0 takes all of --num_steps.")
    observe: str = flag('', 'Components of the observation to keep, such as 0,2; empty keeps all.')
    time_limit: int = flag(0, "Truncate episodes after so many steps; 0 leaves the environment's own limit.")
    grid_learning_rate: str = flag('', 'Learning rates to train side by side in one program, such as 1e-4,1e-3.')
    grid_entropy_coef: str = flag('', 'Entropy coefficients to train side by side.')
    eval_episodes: int = flag(100, 'Whole episodes of each seed in an evaluation.')
    eval_mode: str = flag('greedy', "The policy's mode, or its samples.", ('greedy', 'sample'))
    eval_every: int = flag(0, 'Updates between evaluations during training; 0 evaluates at the end only.')
    log_every: int = flag(0, 'Updates between records; 0 writes about 100 in the run.')
    save_every: int = flag(500, 'Updates between checkpoints.')
    render: bool = flag(False, 'Draw an episode of the first seed as episode.gif.')

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one seed in an update."""
        return self.num_envs * self.num_steps

    @property
    def updates(self) -> int:
        """Updates in the run."""
        return self.total_steps // self.steps_per_update

    @property
    def row_length(self) -> int:
        """Steps in a row of the losses' arrays: 1 without memory."""
        return (self.sequence or self.num_steps) if self.gru else 1


@struct.dataclass
class Hyper:
    """Traced hyperparameters, each float32[runs] before vmap: a grid is trained in one program."""

    learning_rate: jax.Array
    entropy_coef: jax.Array


def check(settings: ControlSettings) -> None:
    """Refuses numbers that do not fit together.

    Raises:
      InputError: naming the flag.
    """
    if settings.updates < 1:
        raise InputError(
            f'--total_steps={settings.total_steps}: less than one update of --num_envs={settings.num_envs} times '
            f'--num_steps={settings.num_steps} = {settings.steps_per_update} steps'
        )
    if settings.num_steps % settings.row_length:
        raise InputError(f'--sequence={settings.sequence}: does not divide --num_steps={settings.num_steps}')
    rows, devices = settings.steps_per_update // settings.row_length, environment_devices(settings)
    if settings.num_envs % devices:
        raise InputError(f'--num_envs={settings.num_envs}: does not divide over {devices} devices')
    share = rows // devices if settings.backend == 'pmap' else rows
    if share % settings.minibatches:
        what = f'{settings.num_envs} environments x {settings.num_steps} steps'
        near = [n for n in range(1, share + 1) if share % n == 0]
        raise InputError(
            f'--minibatches={settings.minibatches}: does not divide the {share} rows of an update ({what}); '
            f'nearest that does: {min(near, key=lambda n: abs(n - settings.minibatches))}'
        )
    for name in ('gamma', 'lam'):
        if not 0.0 <= getattr(settings, name) <= 1.0:
            raise InputError(f'--{name}={getattr(settings, name)}: must be in [0, 1]')


def environment_devices(settings: ControlSettings) -> int:
    """Over how many devices the environments are split."""
    return jax.local_device_count() if settings.backend == 'pmap' else batch_devices(make_mesh(settings.mesh))


def numbers(text: str, name: str, kind: type = int) -> tuple:
    """Numbers of a flag such as `64,64`.

    Raises:
      InputError: it holds something else.
    """
    try:
        return tuple(kind(part) for part in text.split(',') if part)
    except ValueError as error:
        raise InputError(f'--{name}={text}: {error}; give numbers with commas between') from error


def make_env(settings: ControlSettings) -> Environment | None:
    """The environment with its wrappers, or None where it steps on the host."""
    env = make_environment(settings.env)
    if env is None:
        return None
    if settings.observe:
        env = select_observation(env, numbers(settings.observe, 'observe'))
    if settings.time_limit:
        env = time_limit(env, settings.time_limit)
    return episode_statistics(env)


def agent_for(settings: ControlSettings, observation, action) -> Agent:
    """The network and distribution that the flags name, for the spaces of an environment."""
    distribution = make_distribution(action, settings.policy)
    config = NetworkConfig(
        outputs=distribution.outputs,
        log_std=distribution.size if isinstance(distribution, Normal) else 0,
        log_std_init=settings.log_std_init,
        layers=numbers(settings.layers, 'layers'),
        activation=settings.activation,
        shared=settings.shared,
        cnn=settings.network == 'cnn',
        gru=settings.gru,
    )
    return make_agent(config, distribution, observation.shape)


def runs_of(settings: ControlSettings) -> list[dict]:
    """What is trained side by side: every seed at every point of the grid."""
    rates = numbers(settings.grid_learning_rate, 'grid_learning_rate', float) or (settings.learning_rate,)
    coefs = numbers(settings.grid_entropy_coef, 'grid_entropy_coef', float) or (settings.entropy_coef,)
    seeds = range(settings.seed, settings.seed + settings.num_seeds)
    return [
        {'seed': seed, 'learning_rate': rate, 'entropy_coef': coef}
        for rate, coef, seed in itertools.product(rates, coefs, seeds)
    ]


def hyper_of(runs: list[dict]) -> Hyper:
    """The traced hyperparameters of the runs."""
    column = lambda name: jnp.asarray([run[name] for run in runs], jnp.float32)  # noqa: E731
    return Hyper(column('learning_rate'), column('entropy_coef'))


def compile_options(lowered):
    """Compiles a lowered program, on a CPU without the scheduler that deadlocks vmapped programs in jaxlib 0.10.2."""
    if jax.default_backend() == 'cpu':
        try:
            return lowered.compile(compiler_options={'xla_cpu_enable_concurrency_optimized_scheduler': False})
        except jax.errors.JaxRuntimeError as error:
            if 'No such compile option' not in str(error):
                raise
    return lowered.compile()


class Program:
    """A function of (hyper, state, ...) for all runs at once, compiled at its first call, the state donated.

    Under `jit` the environments (axis 1, after the runs) are split over the mesh and the compiler does the rest: the
    numbers are those of one device. Under `pmap` every device shuffles its own environments, and gradients are summed.
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
            self._compiled = compile_options(self._jit(state, len(shared)).lower(hyper, state, *shared))
            self.compile_seconds = time.perf_counter() - started
        return self._compiled(hyper, state, *shared)

    def _jit(self, state, shared):
        batched = jax.vmap(self._function, in_axes=(0, 0) + (None,) * shared)
        if self._settings.backend == 'pmap':
            axes = jax.tree.map(lambda _: None, state).replace(actors=1)
            return jax.pmap(
                batched,
                axis_name=PMAP_AXIS,
                in_axes=(None, axes) + (None,) * shared,
                out_axes=(axes, None),
                donate_argnums=1,
            )
        return jax.jit(batched, donate_argnums=1, out_shardings=(placement_of(self._settings, state), None))


def placement_of(settings: ControlSettings, state: ControlState):
    """Where a state [runs, ...] lives under jit: environments split over the mesh, all else everywhere."""
    mesh = make_mesh(settings.mesh)
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, ('data', 'fsdp')))
    return jax.tree.map(lambda _: whole, state).replace(actors=jax.tree.map(lambda _: split, state.actors))


def place(settings: ControlSettings, state: ControlState) -> ControlState:
    """A state where the program wants it; under pmap the environments [runs, N] become [runs, devices, N / devices]."""
    if settings.backend == 'pmap':
        devices = jax.local_device_count()
        split = lambda x: x.reshape(x.shape[0], devices, x.shape[1] // devices, *x.shape[2:])  # noqa: E731
        return state.replace(actors=jax.tree.map(split, state.actors))
    return jax.device_put(state, placement_of(settings, state))


def gathered(settings: ControlSettings, state: ControlState) -> ControlState:
    """The state as a checkpoint has it, whatever it ran on: undoes `place`."""
    if settings.backend == 'pmap':
        join = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])  # noqa: E731
        return state.replace(actors=jax.tree.map(join, state.actors))
    return state


def boundaries(settings: ControlSettings, start: int) -> list[int]:
    """The updates after `start` at which the loop comes back from the device."""
    every = settings.log_every or max(settings.updates // 100, 1)
    stops = {settings.updates}
    for step in filter(None, (every, settings.save_every, settings.eval_every)):
        stops |= set(range(step, settings.updates, step))
    return sorted(s for s in stops if s > start)


def log_record(metrics: dict, runs: int) -> dict:
    """Metrics [runs] as numbers: means over runs, and each run's episode return under its own name."""
    record = {name: jnp.mean(value) for name, value in metrics.items() if not name.startswith('episode')}
    record |= {name: jnp.nanmean(metrics[name]) for name in ('episode_return', 'episode_length')}
    if runs > 1:
        record |= {f'episode_return/{i}': metrics['episode_return'][i] for i in range(runs)}
    return record


def as_list(x) -> list[float]:
    """A device array as plain numbers."""
    return np.asarray(x, np.float64).tolist()
