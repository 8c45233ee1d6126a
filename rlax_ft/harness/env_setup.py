"""What ppo_env.py sets up before its loop: flags, runs, environments, agent, optimiser."""

import dataclasses
import itertools
import logging
from typing import ClassVar

import jax
import jax.numpy as jnp

from rlax_ft.envs.adapters import make_environments
from rlax_ft.envs.agent import Agent, NetworkConfig, make_agent
from rlax_ft.envs.distributions import KINDS, Normal, make_distribution
from rlax_ft.envs.environment import Environments
from rlax_ft.envs.programs import Layout
from rlax_ft.envs.state import Hyper
from rlax_ft.errors import InputError
from rlax_ft.harness.settings import DeviceSettings, LoopSettings, RunSettings, flag
from rlax_ft.training.optimizer import make_optimizer


@dataclasses.dataclass(frozen=True)
class EnvSettings(LoopSettings, DeviceSettings, RunSettings):
    """Flags of ppo_env.py."""

    length: ClassVar[tuple[str, ...]] = ('total_steps',)
    micro_batches: ClassVar[int] = 1  # A minibatch is one optimiser step.

    env: str = flag(
        'CartPole-v1',
        'Of gymnax or Gymnasium by name; brax:NAME, playground:NAME, gymnasium:NAME; or your own: MODULE:NAME-v0, '
        'which the module registers with Gymnasium, or MODULE:FUNCTION, which returns a gymnasium.Env or an '
        'rlax_ft.envs Environment. Modules are found from the working directory, too.',
    )
    total_steps: int = flag(500_000, 'Environment steps of each seed.', at_least=1, at_most=2**53, may_change=True)
    num_envs: int = flag(4, 'Environments of each seed, side by side.', at_least=1)
    num_steps: int = flag(128, 'Steps of each environment between updates.', at_least=1)
    num_seeds: int = flag(1, 'Seeds trained together: --seed, --seed + 1, ...', at_least=1)
    update_epochs: int = flag(4, 'Passes over the samples of an update.', at_least=1)
    minibatches: int = flag(4, 'Minibatches in a pass; each is one optimiser step.', at_least=1)
    learning_rate: float = flag(2.5e-4, "Peak learning rate of Adam, whose epsilon is PPO's 1e-5.", at_least=0)
    schedule: str = flag('linear', 'Learning rate over the run.', ('linear', 'cosine', 'constant'))
    clip_norm: float = flag(0.5, 'Largest norm of the gradient; 0 does not clip.', at_least=0)
    gamma: float = flag(0.99, 'Discount.', at_least=0, at_most=1)
    lam: float = flag(0.95, 'Lambda of the estimator.', at_least=0, at_most=1)
    loss: str = flag('ppo_clip', 'ppo_clip, cispo, sapo, ... or MODULE:FUNCTION.')
    loss_args: str = flag('', 'Hyperparameters of the loss, such as clip_low=0.1,clip_high=0.1.')
    beta: float = flag(
        0.0, 'Weight of the KL to the policy that acted; with clip_low=1,clip_high=Infinity KL-penalty PPO.', at_least=0
    )
    target_kl: float = flag(
        0.0,
        'Adapt beta, from --beta and not below a thousandth of it, to hold this KL in nats; 0 keeps beta fixed.',
        at_least=0,
    )
    estimator: str = flag('gae', 'gae, or vtrace, which estimates anew before each epoch.', ('gae', 'vtrace'))
    truncation: str = flag('bootstrap', 'Value after a time limit: the critic, or 0.', ('bootstrap', 'terminate'))
    value_coef: float = flag(0.5, 'Weight of the value loss.', at_least=0)
    value_clip: float = flag(
        0.2, 'How far a value may move from its old one in an update; 0 does not clip.', at_least=0
    )
    entropy_coef: float = flag(0.01, 'Weight of the entropy bonus.', at_least=0)
    normalize_advantages: bool = flag(True, 'Centre and scale the advantages of each minibatch.')
    normalize_observations: bool = flag(False, 'By running mean and variance, then clipped to +-10.')
    scale_rewards: bool = flag(False, 'By the running deviation of discounted sums, then clipped to +-10.')
    policy: str = flag('auto', 'Distribution of actions; auto takes what fits the environment.', KINDS)
    log_std_init: float = flag(0.0, "Start of a normal policy's log standard deviations.")
    network: str = flag('mlp', 'mlp, or cnn for observations [height, width, channels].', ('mlp', 'cnn'))
    layers: str = flag('64,64', 'Widths of the hidden layers.')
    activation: str = flag('tanh', 'tanh, relu or silu.')
    shared: bool = flag(False, 'One body for policy and value.')
    gru: int = flag(0, 'Width of a GRU before the heads, for what cannot be seen at once; 0: none.', at_least=0)
    sequence: int = flag(
        0, "Steps in a row of a recurrent policy's minibatch; 0 takes all of --num_steps.", at_least=0, needs='gru'
    )
    observe: str = flag('', 'Components of the observation to keep, such as 0,2; empty keeps all.')
    time_limit: int = flag(
        0, "Truncate episodes after so many steps; 0 leaves the environment's own limit.", at_least=0
    )
    grid_learning_rate: str = flag('', 'Learning rates to train side by side in one program, such as 1e-4,1e-3.')
    grid_entropy_coef: str = flag('', 'Entropy coefficients to train side by side.')
    eval_episodes: int = flag(100, 'Whole episodes of each seed in an evaluation.', at_least=1, may_change=True)
    eval_steps: int = flag(
        10_000,
        'Longest episode in an evaluation; one that goes on is left there and counted.',
        at_least=1,
        may_change=True,
    )
    eval_mode: str = flag('greedy', "The policy's mode, or its samples.", ('greedy', 'sample'), may_change=True)
    eval_every: int = flag(
        0, 'Updates between evaluations during training; 0 evaluates at the end only.', at_least=0, may_change=True
    )
    log_every: int = flag(0, 'Updates between records; 0 writes about 100 in the run.', at_least=0, may_change=True)
    save_every: int = flag(500, 'Updates between checkpoints.', at_least=1, may_change=True)
    render: bool = flag(False, 'Draw an episode of the first seed as episode.gif.', may_change=True)

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one seed in an update."""
        return self.num_envs * self.num_steps

    @property
    def updates(self) -> int:
        """Updates in the run."""
        return self.total_steps // self.steps_per_update

    @property
    def last_step(self) -> int:
        """The update that the run ends with."""
        return self.updates

    @property
    def row_length(self) -> int:
        """Steps in a row of the losses' arrays: 1 without memory."""
        return (self.sequence or self.num_steps) if self.gru else 1


def check(settings: EnvSettings) -> None:
    """Refuses numbers that do not fit together.

    Raises:
      InputError: naming the flag.
    """
    if settings.backend == 'pmap' and jax.process_count() > 1:
        raise InputError('--backend=pmap: works on the devices of one process; use --backend=jit on several')
    if settings.updates < 1:
        raise InputError(
            f'--total_steps={settings.total_steps}: less than one update of --num_envs={settings.num_envs} times '
            f'--num_steps={settings.num_steps} = {settings.steps_per_update} steps'
        )
    if settings.num_steps % settings.row_length:
        raise InputError(f'--sequence={settings.sequence}: does not divide --num_steps={settings.num_steps}')
    rows, devices = settings.steps_per_update // settings.row_length, layout_of(settings).environment_devices()
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
    for name in ('learning_rate', 'entropy_coef'):
        grid, one = getattr(settings, f'grid_{name}'), getattr(settings, name)
        if grid and one != getattr(EnvSettings, name):
            logging.warning('--%s=%s: has no effect beside --grid_%s=%s', name, one, name, grid)
    if settings.target_kl and not settings.beta:
        raise InputError(
            f'--target_kl={settings.target_kl}: multiplies --beta, which is 0 and would stay 0; give a --beta to start '
            'from, such as 1'
        )


def layout_of(settings: EnvSettings) -> Layout:
    """Which devices train what."""
    return Layout(len(runs_of(settings)), settings.backend, settings.mesh)


def optimizer_of(settings: EnvSettings, learning_rate):
    """Adam with PPO's epsilon over all minibatch steps of the run; the rate may be traced."""
    return make_optimizer(
        learning_rate,
        max_steps=settings.updates * settings.update_epochs * settings.minibatches,
        schedule=settings.schedule,
        clip_norm=settings.clip_norm,
        eps=1e-5,
    )


def numbers(text: str, name: str, kind: type = int) -> tuple:
    """Numbers of a flag such as `64,64`.

    Raises:
      InputError: it holds something else.
    """
    try:
        return tuple(kind(part) for part in text.split(',') if part)
    except ValueError as error:
        raise InputError(f'--{name}={text}: {error}; give numbers with commas between') from error


def make_envs(settings: EnvSettings) -> Environments:
    """The environments of all runs.

    Raises:
      InputError: no such environment, or --render where it cannot be drawn.
    """
    envs = make_environments(
        settings.env,
        [one['seed'] for one in runs_of(settings)],
        settings.num_envs,
        observe=numbers(settings.observe, 'observe'),
        time_limit=settings.time_limit,
    )
    if settings.render and not envs.drawable:
        raise InputError(f'--render: {envs.name} cannot be drawn; leave it out')
    return envs


def agent_for(settings: EnvSettings, envs: Environments) -> Agent:
    """The network and distribution that the flags name, for the spaces of the environments."""
    distribution = make_distribution(envs.action, settings.policy)
    if settings.log_std_init != EnvSettings.log_std_init and not isinstance(distribution, Normal):
        raise InputError(
            f'--log_std_init={settings.log_std_init}: a {type(distribution).__name__} policy has no deviation; '
            'leave it out'
        )
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
    return make_agent(config, distribution, envs.observation.shape)


def runs_of(settings: EnvSettings) -> list[dict]:
    """What is trained side by side: every seed at every point of the grid."""
    rates = numbers(settings.grid_learning_rate, 'grid_learning_rate', float) or (settings.learning_rate,)
    coefs = numbers(settings.grid_entropy_coef, 'grid_entropy_coef', float) or (settings.entropy_coef,)
    seeds = range(settings.seed, settings.seed + settings.num_seeds)
    return [
        {'seed': seed, 'learning_rate': rate, 'entropy_coef': coef}
        for rate, coef, seed in itertools.product(rates, coefs, seeds)
    ]


def points_of(runs: list[dict]) -> dict[tuple, list[int]]:
    """(learning rate, entropy coefficient) -> the numbers of the runs that have them: their seeds."""
    points: dict[tuple, list[int]] = {}
    for i, one in enumerate(runs):
        points.setdefault((one['learning_rate'], one['entropy_coef']), []).append(i)
    return points


def hyper_of(runs: list[dict]) -> Hyper:
    """The traced hyperparameters of the runs."""
    column = lambda name: jnp.asarray([run[name] for run in runs], jnp.float32)  # noqa: E731
    return Hyper(column('learning_rate'), column('entropy_coef'))


def boundaries(settings: EnvSettings, start: int) -> list[int]:
    """The updates after `start` at which the loop comes back from the device."""
    every = settings.log_every or max(settings.updates // 100, 1)
    stops = {settings.updates}
    for step in filter(None, (every, settings.save_every, settings.eval_every)):
        stops |= set(range(step, settings.updates, step))
    return sorted(s for s in stops if s > start)
