"""Actor-critic networks for environments: MLP or MinAtar CNN, towers shared or apart, with or without a GRU.

Initialisation is PPO's: orthogonal with gain sqrt 2 in the body, 0.01 at the policy's head, 1 at the value's, biases 0.
One set of functions serves both kinds of network: `hidden`
is a float32[N, H] for a recurrent one and an empty tuple for the rest.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from rlax_ft.errors import InputError

ACTIVATIONS = {'tanh': nn.tanh, 'relu': nn.relu, 'silu': nn.silu}


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """What an actor-critic is made of.

    Attributes:
      outputs: numbers that the policy's distribution takes.
      log_std: how many of them, at the end, are a free parameter rather than the network's outputs; 0: none.
      log_std_init: their start.
      layers: widths of the hidden layers.
      activation: one of ACTIVATIONS.
      shared: one body for policy and value.
      cnn: a 3 x 3 convolution with 16 channels in front, for observations [height, width, channels].
      gru: width of the GRU between body and heads; 0: none. A GRU's body is shared.
    """

    outputs: int
    log_std: int = 0
    log_std_init: float = 0.0
    layers: tuple[int, ...] = (64, 64)
    activation: str = 'tanh'
    shared: bool = False
    cnn: bool = False
    gru: int = 0


def _dense(width, gain, name):
    return nn.Dense(width, kernel_init=nn.initializers.orthogonal(gain), name=name)


def _patches(x):
    """[N, H, W, C] -> [N, H - 2, W - 2, 9 C]: a 3 x 3 convolution is a matrix product on these.

    With parameters batched over seeds a convolution would become a grouped one, which is slow on a CPU.
    """
    height, width = x.shape[1] - 2, x.shape[2] - 2
    corners = [(i, j) for i in range(3) for j in range(3)]
    return jnp.concatenate([x[:, i : i + height, j : j + width] for i, j in corners], axis=-1)


class Body(nn.Module):
    """Observation -> features; any leading axes."""

    config: NetworkConfig
    rank: int

    @nn.compact
    def __call__(self, x):
        """float[..., *observation] -> float[..., layers[-1]]."""
        activation = ACTIVATIONS[self.config.activation]
        # One leading axis: a gradient that sums over two is no plain matrix product, and slow on a CPU.
        lead = x.shape[: x.ndim - self.rank]
        x = x.reshape(-1, *x.shape[len(lead) :])
        if self.config.cnn:
            x = activation(_dense(16, np.sqrt(2), 'conv')(_patches(x)))
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.config.layers):
            x = activation(_dense(width, np.sqrt(2), f'dense_{i}')(x))
        return x.reshape(*lead, -1)


class ActorCritic(nn.Module):
    """The network; used through `init`, `act`, `value` and `evaluate` of this file."""

    config: NetworkConfig
    rank: int

    def setup(self):
        """Bodies, memory and heads."""
        config = self.config
        if config.shared or config.gru:
            self.body = Body(config, self.rank)
        else:
            self.policy_body, self.value_body = Body(config, self.rank), Body(config, self.rank)
        if config.gru:
            self.cell = nn.GRUCell(config.gru, kernel_init=nn.initializers.orthogonal(1.0))
        self.policy_head = _dense(config.outputs - config.log_std, 0.01, None)
        self.value_head = _dense(1, 1.0, None)
        if config.log_std:
            fill = nn.initializers.constant(config.log_std_init)
            self.log_std = self.param('log_std', fill, (config.log_std,))

    def _outputs(self, features):
        outputs = self.policy_head(features)
        if not self.config.log_std:
            return outputs
        log_std = jnp.broadcast_to(self.log_std, (*outputs.shape[:-1], self.config.log_std))
        return jnp.concatenate([outputs, log_std], axis=-1)

    def act(self, hidden, observation):
        """([N, ...]) -> (outputs [N, K], hidden)."""
        if self.config.gru:
            hidden, features = self.cell(hidden, self.body(observation))
        else:
            features = self.body(observation) if self.config.shared else self.policy_body(observation)
        return self._outputs(features), hidden

    def value(self, hidden, observation):
        """([..., observation]) -> float[...]; `hidden` is the one before this observation."""
        if self.config.gru:
            features = self.cell(hidden, self.body(observation))[1]
        else:
            features = self.body(observation) if self.config.shared else self.value_body(observation)
        return self.value_head(features)[..., 0]

    def evaluate(self, hidden, observation, first):
        """Rows [R, L, ...], hidden [R, H], first bool[R, L] -> (outputs [R, L, K], values [R, L])."""
        config = self.config
        if config.gru:
            features = self._unroll(hidden, self.body(observation), first)
            return self._outputs(features), self.value_head(features)[..., 0]
        if config.shared:
            features = self.body(observation)
            return self._outputs(features), self.value_head(features)[..., 0]
        return self._outputs(self.policy_body(observation)), self.value_head(self.value_body(observation))[..., 0]

    def _unroll(self, hidden, inputs, first):
        def step(cell, hidden, at):
            x, start = at
            return cell(jnp.where(start[:, None], 0.0, hidden), x)

        scan = nn.scan(step, variable_broadcast='params', split_rngs={'params': False}, in_axes=1, out_axes=1, unroll=4)
        return scan(self.cell, hidden, (inputs, first))[1]


@dataclasses.dataclass(frozen=True)
class Agent:
    """A network and its distribution, as the pure functions that rollouts and losses call.

    The parameters are one vector: an optimiser's step on a dozen small arrays costs their number, not their size. A
    loop gives `tree(params)` instead, so as to cut the vector up only once.

    Attributes:
      network: an ActorCritic.
      distribution: of rlax_ft.envs.distributions.
      observation_shape: of one observation.
      tree: the vector -> the parameters by name.
    """

    network: ActorCritic
    distribution: Any
    observation_shape: tuple[int, ...]
    tree: Callable

    def init(self, key: jax.Array) -> jax.Array:
        """New parameters, as one vector."""
        return ravel_pytree(_init(self.network, self.observation_shape, key))[0]

    def initial_hidden(self, count: int):
        """The hidden state at the start of an episode: zeros [count, H], or ()."""
        return _initial_hidden(self.network.config, count)

    def act(self, params, hidden, observation):
        """(outputs [N, K], hidden) for observations [N, ...]."""
        return self._apply('act', params, hidden, observation)

    def value(self, params, hidden, observation):
        """Values float32[...] of observations [..., observation], given the hidden states before them."""
        return self._apply('value', params, hidden, observation)

    def evaluate(self, params, hidden, observation, first):
        """(outputs [R, L, K], values [R, L]) of rows of observations; hidden states restart where `first`."""
        return self._apply('evaluate', params, hidden, observation, first)

    def _apply(self, method, params, *arguments):
        named = params if isinstance(params, dict) else self.tree(params)
        return self.network.apply({'params': named}, *arguments, method=method)


def _init(network, observation_shape, key):
    observation, first = jnp.zeros((1, 1, *observation_shape)), jnp.zeros((1, 1), bool)
    return network.init(key, _initial_hidden(network.config, 1), observation, first, method='evaluate')['params']


def _initial_hidden(config, count):
    return jnp.zeros((count, config.gru)) if config.gru else ()


def make_agent(config: NetworkConfig, distribution, observation_shape: tuple[int, ...]) -> Agent:
    """An agent for observations of a shape.

    Raises:
      InputError: a CNN for observations that are not [height, width, channels] of at least 3 x 3, or an unknown
        activation.
    """
    if config.activation not in ACTIVATIONS:
        raise InputError(f'--activation={config.activation}: one of {", ".join(ACTIVATIONS)}')
    if config.cnn and (len(observation_shape) != 3 or min(observation_shape[:2]) < 3):
        raise InputError(f'--network=cnn: observations have shape {observation_shape}, not [height, width, channels]')
    network = ActorCritic(config, len(observation_shape))
    shapes = jax.eval_shape(lambda key: _init(network, observation_shape, key), jax.random.key(0))
    tree = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))[1]
    return Agent(network, distribution, tuple(observation_shape), tree)
