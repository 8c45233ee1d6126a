"""A peer in control.py: PPO in JAX as single-file programs write it. `plain_ppo.py STEPS SEEDS`.

A restatement, in words of our own, of what purejaxrl's `ppo.py` computes, with its settings: one compiled program of
nested scans over updates, epochs and minibatches; two towers of 64 x 64 tanh through flax; optax's Adam; gymnax's own
`step` with its auto-reset, under an episode log; keys split at every step; done is done, with no value after a time
limit; the episode log of every step is returned. The original runs with gymnax before 1.0 alone. As there,
nothing is evaluated or kept, and truncation is termination.
"""

import sys

from rlax_ft.harness import cpu_flags  # noqa: F401  Before jax: what a CPU needs.

# isort: split
import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState
from gymnax.wrappers.purerl import FlattenObservationWrapper, LogWrapper

from rlax_ft.harness.race import serve

GAMMA, LAM, CLIP, ENTROPY, VALUE = 0.99, 0.95, 0.2, 0.01, 0.5


class Net(nn.Module):
    """Policy logits and value, from towers of their own."""

    actions: int

    @nn.compact
    def __call__(self, x):
        """float[..., observation] -> (logits, value)."""
        heads = []
        for width, gain in ((self.actions, 0.01), (1, 1.0)):
            h = x
            for _ in range(2):
                h = nn.tanh(nn.Dense(64, kernel_init=nn.initializers.orthogonal(2**0.5))(h))
            heads.append(nn.Dense(width, kernel_init=nn.initializers.orthogonal(gain))(h))
        return heads[0], heads[1][..., 0]


def make_train(env_name='CartPole-v1', *, total=500_000, envs=4, steps=128, epochs=4, parts=4, rate=2.5e-4):
    """key -> what the whole run returns; jit it, or vmap it over keys first."""
    env, env_params = gymnax.make(env_name)
    env = LogWrapper(FlattenObservationWrapper(env))
    updates, size = total // (envs * steps), envs * steps
    net = Net(env.action_space(env_params).n)
    anneal = lambda count: rate * (1.0 - (count // (parts * epochs)) / updates)  # noqa: E731

    def logp_of(logits, action):
        return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], -1)[..., 0]

    def loss_fn(params, batch):
        obs, action, old_logp, old_value, advantage, target = batch
        logits, value = net.apply(params, obs)
        bounded = old_value + (value - old_value).clip(-CLIP, CLIP)
        value_loss = 0.5 * jnp.maximum((value - target) ** 2, (bounded - target) ** 2).mean()
        ratio = jnp.exp(logp_of(logits, action) - old_logp)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        policy_loss = -jnp.minimum(ratio * advantage, ratio.clip(1 - CLIP, 1 + CLIP) * advantage).mean()
        entropy = -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1).mean()
        return policy_loss + VALUE * value_loss - ENTROPY * entropy, (value_loss, policy_loss, entropy)

    def env_step(carry, _):
        state, env_state, obs, key = carry
        key, act_key = jax.random.split(key)
        logits, value = net.apply(state.params, obs)
        action = jax.random.categorical(act_key, logits)
        key, step_key = jax.random.split(key)
        step = jax.vmap(env.step, in_axes=(0, 0, 0, None))
        after, env_state, reward, ended, cut, info = step(
            jax.random.split(step_key, envs), env_state, action, env_params
        )
        log = {name: info[name] for name in ('returned_episode_returns', 'returned_episode_lengths')}
        frame = (obs, action, logp_of(logits, action), value, reward, ended | cut, log)
        return (state, env_state, after, key), frame

    def update(carry, _):
        carry, (obs, action, logp, value, reward, done, log) = jax.lax.scan(env_step, carry, None, steps)
        state, env_state, last, key = carry
        last_value = net.apply(state.params, last)[1]

        def back(carry, at):
            advantage, following = carry
            value, reward, done = at
            delta = reward + GAMMA * following * (1 - done) - value
            advantage = delta + GAMMA * LAM * (1 - done) * advantage
            return (advantage, value), advantage

        start = (jnp.zeros_like(last_value), last_value)
        _, advantage = jax.lax.scan(back, start, (value, reward, done), reverse=True, unroll=16)
        data = (obs, action, logp, value, advantage, advantage + value)

        def epoch(carry, _):
            state, key = carry
            key, shuffle = jax.random.split(key)
            order = jax.random.permutation(shuffle, size)
            flat = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:])[order], data)
            batches = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), flat)

            def minibatch(state, batch):
                total, grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch)
                return state.apply_gradients(grads=grads), total

            state, losses = jax.lax.scan(minibatch, state, batches)
            return (state, key), losses

        (state, key), _ = jax.lax.scan(epoch, (state, key), None, epochs)
        return (state, env_state, last, key), log

    def train(key):
        key, init_key, reset_key, run_key = jax.random.split(key, 4)
        params = net.init(init_key, jnp.zeros(env.observation_space(env_params).shape))
        tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(anneal, eps=1e-5))
        state = TrainState.create(apply_fn=net.apply, params=params, tx=tx)
        obs, env_state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(reset_key, envs), env_params)
        return jax.lax.scan(update, (state, env_state, obs, run_key), None, updates)

    return train


def main(steps: int, seeds: int) -> None:
    """Serves whole runs, for so many seeds."""
    train, key = make_train(total=steps), jax.random.key(0)
    train, key = (jax.vmap(train), jax.random.split(key, seeds)) if seeds > 1 else (train, key)
    compiled = jax.jit(train).lower(key).compile()

    def work():
        jax.block_until_ready(compiled(key))

    serve(work)


if __name__ == '__main__':
    main(int(sys.argv[1]), int(sys.argv[2]))
