"""Policies' distributions: what turns a network's outputs, one flat array, into actions and log-probabilities.

Each is a frozen dataclass of pure functions of `outputs: float[..., outputs]`. `noise` draws all randomness and
`sample` is deterministic in it, so that a rollout may draw before its loop starts. Actions are kept as the policy made
them and go to the environment through `to_env`: a normal's are clipped there, a squashed one's squashed.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.envs.environment import Box, Discrete, MultiDiscrete
from rlax_ft.errors import InputError

_LOG_2PI = float(np.log(2.0 * np.pi))
KINDS = ('auto', 'categorical', 'normal', 'tanh_normal')


@dataclasses.dataclass(frozen=True)
class Categorical:
    """pi(a) = softmax(outputs)_a; an action is int32[...]."""

    n: int

    @property
    def outputs(self) -> int:
        """Number of network outputs."""
        return self.n

    def noise(self, key, shape):
        """Gumbel noise, float32[*shape, n]."""
        return jax.random.gumbel(key, (*shape, self.n))

    def sample(self, outputs, noise):
        """The Gumbel-max draw, int32[...]."""
        return jnp.argmax(outputs + noise, axis=-1)

    def mode(self, outputs):
        """The likeliest action."""
        return jnp.argmax(outputs, axis=-1)

    def log_prob(self, outputs, action):
        """log pi(action), float32[...]."""
        # A comparison in place of a gather, whose gradient would be a scatter.
        chosen = jnp.arange(self.n) == action[..., None]
        return jnp.sum(jnp.where(chosen, jax.nn.log_softmax(outputs), 0.0), axis=-1)

    def entropy(self, outputs):
        """-sum p log p, in nats."""
        logps = jax.nn.log_softmax(outputs)
        return -jnp.sum(jnp.exp(logps) * logps, axis=-1)

    def kl(self, outputs, other):
        """KL(outputs || other), in nats."""
        logps = jax.nn.log_softmax(outputs)
        return jnp.sum(jnp.exp(logps) * (logps - jax.nn.log_softmax(other)), axis=-1)

    def to_env(self, action):
        """The action itself."""
        return action


@dataclasses.dataclass(frozen=True)
class MultiCategorical:
    """Independent categoricals, one per component of a MultiDiscrete; an action is int32[..., components]."""

    sizes: tuple[int, ...]

    @property
    def outputs(self) -> int:
        """Number of network outputs."""
        return sum(self.sizes)

    def _parts(self, x):
        ends = np.cumsum(self.sizes)[:-1].tolist()
        return [(Categorical(n), part) for n, part in zip(self.sizes, jnp.split(x, ends, axis=-1))]

    def noise(self, key, shape):
        """Gumbel noise, float32[*shape, outputs]."""
        return jax.random.gumbel(key, (*shape, self.outputs))

    def sample(self, outputs, noise):
        """One draw per component."""
        return self.mode(outputs + noise)

    def mode(self, outputs):
        """The likeliest of each component."""
        return jnp.stack([one.mode(part) for one, part in self._parts(outputs)], axis=-1)

    def log_prob(self, outputs, action):
        """The sum over components."""
        return sum(one.log_prob(part, action[..., i]) for i, (one, part) in enumerate(self._parts(outputs)))

    def entropy(self, outputs):
        """The sum over components, in nats."""
        return sum(one.entropy(part) for one, part in self._parts(outputs))

    def kl(self, outputs, other):
        """KL(outputs || other), the sum over components, in nats."""
        return sum(one.kl(p, q) for (one, p), (_, q) in zip(self._parts(outputs), self._parts(other)))

    def to_env(self, action):
        """The action itself."""
        return action


@dataclasses.dataclass(frozen=True)
class Normal:
    """Independent normals, outputs = (means, log standard deviations); clipped to the box on the way out."""

    box: Box

    @property
    def size(self) -> int:
        """Components of an action."""
        return int(np.prod(self.box.shape))

    @property
    def outputs(self) -> int:
        """Number of network outputs, means and log standard deviations."""
        return 2 * self.size

    def noise(self, key, shape):
        """Standard normals, float32[*shape, size]."""
        return jax.random.normal(key, (*shape, self.size))

    def sample(self, outputs, noise):
        """mean + std noise, float32[..., size]."""
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        return mean + jnp.exp(log_std) * noise

    def mode(self, outputs):
        """The mean."""
        return jnp.split(outputs, 2, axis=-1)[0]

    def log_prob(self, outputs, action):
        """The sum over components of the log density of what was drawn, before any clipping."""
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        z = (action - mean) * jnp.exp(-log_std)
        return jnp.sum(-0.5 * jnp.square(z) - log_std - 0.5 * _LOG_2PI, axis=-1)

    def entropy(self, outputs):
        """The sum over components of log std + (1 + log 2 pi) / 2, in nats."""
        return jnp.sum(jnp.split(outputs, 2, axis=-1)[1] + 0.5 * (1.0 + _LOG_2PI), axis=-1)

    def kl(self, outputs, other):
        """KL(outputs || other), in nats."""
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        mean_q, log_std_q = jnp.split(other, 2, axis=-1)
        ratio = jnp.exp(2.0 * (log_std - log_std_q))
        shift = jnp.square((mean - mean_q) * jnp.exp(-log_std_q))
        return jnp.sum(0.5 * (ratio + shift - 1.0) + log_std_q - log_std, axis=-1)

    def to_env(self, action):
        """Clipped to the box and shaped as the environment wants it."""
        return self._shaped(jnp.clip(action, jnp.asarray(self.box.low), jnp.asarray(self.box.high)))

    def _shaped(self, action):
        return action.reshape(*action.shape[:-1], *self.box.shape)


@dataclasses.dataclass(frozen=True)
class TanhNormal(Normal):
    """A normal u squashed into the box, a = low + (high - low) (tanh(u) + 1) / 2; actions are kept as u.

    Densities are those of a. The KL is that of the normals, since squashing is one to one.
    """

    def log_prob(self, outputs, action):
        """log N(u) - sum log |da/du|, from u and so finite at the box's edge."""
        return super().log_prob(outputs, action) - jnp.sum(self._log_slope(action), axis=-1)

    def entropy(self, outputs):
        """H(u) + E[log |da/du|], the expectation by 16-point Gauss-Hermite quadrature; in nats."""
        points, weights = np.polynomial.hermite_e.hermegauss(16)
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        u = mean[..., None] + jnp.exp(log_std)[..., None] * jnp.asarray(points, outputs.dtype)
        slope = jnp.sum(self._log_slope(jnp.moveaxis(u, -1, 0)), axis=-1)
        weights = jnp.asarray(weights / weights.sum(), outputs.dtype)
        return super().entropy(outputs) + jnp.tensordot(weights, slope, axes=1)

    def to_env(self, action):
        """Squashed into the box."""
        low, high = jnp.asarray(self.box.low), jnp.asarray(self.box.high)
        return self._shaped(low + 0.5 * (high - low) * (jnp.tanh(action) + 1.0))

    def _log_slope(self, u):
        # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u))
        half = 0.5 * (jnp.asarray(self.box.high) - jnp.asarray(self.box.low))
        return 2.0 * (float(np.log(2.0)) - u - jax.nn.softplus(-2.0 * u)) + jnp.log(half)


def make_distribution(action, kind: str = 'auto'):
    """The distribution for an action space.

    Args:
      action: Discrete, MultiDiscrete or Box.
      kind: `auto` (categorical, or normal for a Box), `categorical`, `normal` or `tanh_normal`.

    Raises:
      InputError: the kind does not fit the space.
    """
    fits = {Discrete: ('categorical',), MultiDiscrete: ('categorical',), Box: ('normal', 'tanh_normal')}[type(action)]
    if kind not in ('auto', *fits):
        raise InputError(f'--policy={kind}: the actions are {describe(action)}; give {" or ".join(fits)}, or auto')
    if isinstance(action, Discrete):
        return Categorical(action.n)
    if isinstance(action, MultiDiscrete):
        return MultiCategorical(action.sizes)
    if kind != 'tanh_normal':
        return Normal(action)
    if not np.all(np.isfinite([*action.low, *action.high])):
        raise InputError(f'--policy=tanh_normal: the actions are {describe(action)}; squashing needs finite bounds')
    return TanhNormal(action)


def describe(action) -> str:
    """An action space in words."""
    if isinstance(action, Discrete):
        return f'discrete, 1 of {action.n}'
    if isinstance(action, MultiDiscrete):
        return f'discrete, {len(action.sizes)} at once'
    return f'continuous, {int(np.prod(action.shape))} in [{min(action.low):g}, {max(action.high):g}]'
