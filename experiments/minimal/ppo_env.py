"""PPO on CartPole in one file, to read or to fork: collect, estimate, update, in one compiled loop.

    python experiments/minimal/ppo_env.py --total_steps=200000 --seed=1

T steps of N environments make an update. Seeds side by side, memory and checkpoints are in experiments/ppo_env.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import linen as nn

from rlax_ft.envs.adapters import find_environment
from rlax_ft.envs.wrappers import continue_from, episode_statistics
from rlax_ft.losses.policy_gradient import ppo_clip_loss
from rlax_ft.losses.value import clipped_value_loss
from rlax_ft.ops.logprobs import entropy, token_logprobs
from rlax_ft.ops.reduce import aggregate, masked_whiten
from rlax_ft.ops.returns import gae

N, T, EPOCHS, MINIBATCHES = 8, 64, 8, 4
GAMMA, LAM, CLIP, VALUE_COEF, ENTROPY_COEF, LEARNING_RATE = 0.98, 0.9, 0.2, 0.5, 0.0, 1e-3

_STEPS = flags.DEFINE_integer('total_steps', 200_000, 'Environment steps.', lower_bound=N * T)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of everything random.', lower_bound=0)


class ActorCritic(nn.Module):
    """Observations [..., D] -> (logits [..., A], values [...]): two towers, each of two layers of 64 tanh units."""

    actions: int

    @nn.compact
    def __call__(self, x):
        """Both towers."""

        def tower(h, outputs, gain):
            for width in (64, 64):
                h = nn.tanh(nn.Dense(width, kernel_init=nn.initializers.orthogonal(np.sqrt(2)))(h))
            return nn.Dense(outputs, kernel_init=nn.initializers.orthogonal(gain))(h)

        return tower(x, self.actions, 0.01), tower(x, 1, 1.0)[..., 0]


def objective(params, network, batch):
    """Policy loss + value loss - entropy, over rows [R, 1]: a decision is a sequence of one token."""
    logits, values = network.apply(params, batch['observation'])
    mask = jnp.ones_like(values)
    mean = lambda x: aggregate(x, mask, 'token_mean')  # noqa: E731
    logps, advantages = token_logprobs(logits, batch['action']), masked_whiten(batch['advantage'], mask)
    policy_loss = mean(ppo_clip_loss(logps, batch['logp'], advantages, mask, clip_low=CLIP, clip_high=CLIP))
    value_loss = mean(clipped_value_loss(values, batch['value'], batch['target'], clip=None))
    return policy_loss + VALUE_COEF * value_loss - ENTROPY_COEF * mean(entropy(logits))


def make_update(env, network, optimizer):
    """`update(carry, key) -> (carry, mean return of the episodes that ended)`; carry = (params, moments, envs)."""

    def act(params, actors, key):
        """One step of every environment."""
        states, observation = actors
        act_key, step_key, reset_key = jax.random.split(key, 3)
        logits, value = network.apply(params, observation)
        action = jax.random.categorical(act_key, logits)
        states, answer = jax.vmap(env.step)(jax.random.split(step_key, N), states, action)
        done = answer.terminated | answer.truncated
        # What the action led to, also where the episode ended there: a time limit is no termination.
        _, next_value = network.apply(params, answer.observation)
        seen = dict(observation=observation, action=action, value=value, logp=token_logprobs(logits, action))
        seen |= dict(reward=answer.reward, next_value=next_value, terminated=answer.terminated, done=done)
        fresh = jax.vmap(env.reset)(jax.random.split(reset_key, N))
        return continue_from(done, fresh, (states, answer.observation)), seen | {'return': states.episode_return}

    def update(carry, key):
        (params, moments, actors), (collect_key, shuffle_key) = carry, jax.random.split(key)
        # Collect: [T, N].
        actors, seen = jax.lax.scan(lambda a, k: act(params, a, k), actors, jax.random.split(collect_key, T))
        # Estimate: a termination has no value after it, and any end cuts the trace.
        discounts, traces = GAMMA * (1.0 - seen['terminated']), 1.0 - seen['done']
        advantages, targets = gae(seen['reward'], seen['value'], seen['next_value'], discounts, traces, lam=LAM)
        # Update: [T, N] -> rows [T N, 1], shuffled anew in each epoch.
        batch = seen | {'advantage': advantages, 'target': targets}
        rows = jax.tree.map(lambda x: x.reshape(T * N, 1, *x.shape[2:]), batch)
        orders = jax.vmap(lambda k: jax.random.permutation(k, T * N))(jax.random.split(shuffle_key, EPOCHS))

        def step(carry, part):
            grads = jax.grad(objective)(carry[0], network, jax.tree.map(lambda x: x[part], rows))
            updates, moments = optimizer.update(grads, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), moments), None

        (params, moments), _ = jax.lax.scan(step, (params, moments), orders.reshape(EPOCHS * MINIBATCHES, -1))
        return (params, moments, actors), jnp.sum(seen['return'] * seen['done']) / jnp.sum(seen['done'])

    return update


def train(total_steps: int, seed: int):
    """(parameters, mean return of the episodes that ended in each update, or NaN)."""
    env = episode_statistics(find_environment('CartPole-v1'))
    network, updates = ActorCritic(env.action.n), total_steps // (N * T)
    rate = optax.linear_schedule(LEARNING_RATE, 0.0, updates * EPOCHS * MINIBATCHES)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate, eps=1e-5))
    init_key, reset_key, key = jax.random.split(jax.random.key(seed), 3)
    actors = jax.vmap(env.reset)(jax.random.split(reset_key, N))  # (states, observations)
    params = network.init(init_key, actors[1])
    run = jax.jit(lambda carry, keys: jax.lax.scan(make_update(env, network, optimizer), carry, keys))
    (params, _, _), returns = run((params, optimizer.init(params), actors), jax.random.split(key, updates))
    return params, returns


def main(_):
    """Trains and prints the return of the last tenth of the updates."""
    _, returns = train(_STEPS.value, _SEED.value)
    print(f'episode return over the last tenth: {np.nanmean(returns[-max(len(returns) // 10, 1) :]):.1f}')


if __name__ == '__main__':
    app.run(main)
