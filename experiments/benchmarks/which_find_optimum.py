"""Which policy-gradient losses find pi* = pi_ref exp(r / beta) / Z, over several seeds, beside what theory says.

    python experiments/benchmarks/which_find_optimum.py --record

The policy is a table on the `exact` task (four prompts, 6^4 completions), in which pi* can be said exactly: a row for
each prompt, place and letter before. All seeds of a row are one vmapped program; KL(pi || pi*) is summed, not sampled.
Rows differ in one thing at a time: the loss, the baseline, the scale, or where the KL goes.
"""

import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from rlax_ft.evaluate.enumeration import kl_divergence, optimal_policy
from rlax_ft.evaluate.tables import Letters, TablePolicy
from rlax_ft.harness.optimum import REWARDS
from rlax_ft.harness.results import RECORD, record
from rlax_ft.losses import policy_gradient
from rlax_ft.objectives.policy import Credit, PolicyBatch, policy_loss, token_advantages
from rlax_ft.objectives.ppo import minibatch
from rlax_ft.ops.kl import kl_estimate
from rlax_ft.tasks import exact

_SEEDS = flags.DEFINE_integer('seeds', 5, 'Runs of each row.')
_BATCHES = flags.DEFINE_integer('batches', 1000, 'Batches of a run.')
_BATCH = flags.DEFINE_integer('batch', 256, 'Completions in a batch.')
_GROUP = flags.DEFINE_integer('group_size', 8, 'Completions of a prompt.')
_RATE = flags.DEFINE_float('learning_rate', 0.02, "Adam's rate, which falls to 0.")
_ONLY = flags.DEFINE_list('only', [], 'Names of rows to run; all when empty.')
BETA, NEAR = 1.0, 0.01
TABLE = TablePolicy(len(exact.PROMPTS), len(exact.LETTERS), exact.LENGTH, markov=True)


def reference() -> jax.Array:
    """The logits of the task's authors, of the shape of the table; they write by the letter before alone."""
    shape = (TABLE.prompts, TABLE.length, TABLE.letters, TABLE.letters)
    habits = jnp.asarray(np.log(np.broadcast_to(exact.HABIT[:, None], shape)), jnp.float32)
    return habits.reshape(TABLE.prompts, TABLE.rows, TABLE.letters)


FIXED = 'yes: at pi* reward less KL is the same for every completion, so that no advantage is left'
NOISY = 'yes as the rate falls: unbiased, but at pi* the steps are as large as before'
AHEAD = 'no: a token pays for its own KL, not for that of what it leads to'
PLAIN = dict(scale='none')
# name: (theory, loss, its credit, KL in the loss (kind, weighted) or None for the reward, (epochs, minibatches))
ROWS = {
    'REINFORCE': (NOISY, 'reinforce', dict(baseline='none', scale='none'), None, (1, 1)),
    'RLOO': (FIXED, 'reinforce', dict(baseline='leave_one_out', scale='none'), None, (1, 1)),
    'GRPO without scale': (FIXED, 'ppo_clip', PLAIN, None, (1, 1)),
    'GRPO scaled by group': (NOISY, 'ppo_clip', {}, None, (1, 1)),
    'GRPO scaled by batch': (NOISY, 'ppo_clip', dict(scale='batch'), None, (1, 1)),
    'REINFORCE++ with baseline': (NOISY, 'ppo_clip', dict(scale='none', whiten='unbiased'), None, (1, 1)),
    'optimal token baseline': (FIXED, 'ppo_clip', dict(baseline='token', scale='none'), None, (1, 1)),
    'MaxRL': (
        'no: divides by the mean reward, which may be below 0 here',
        'ppo_clip',
        dict(scale='mean'),
        None,
        (1, 1),
    ),
}
ROWS |= {
    f'`{name[:-5]}` in 2 epochs of 4': (FIXED, name[:-5], PLAIN, None, (2, 4))
    for name in policy_gradient.__all__
    if name.endswith('_loss')
}
ROWS |= {
    f'KL in the loss by {kind}{" weighted" * weighted}': (theory, 'ppo_clip', PLAIN, (kind, weighted), (1, 1))
    for kind, weighted, theory in (
        ('k1', False, 'no: its gradient is 0 on average'),
        ('k2', False, AHEAD),
        ('k3', False, 'no: its gradient is that of KL(ref || pi), token by token'),
        ('k3', True, AHEAD),
        ('k3_straight', False, AHEAD),
        ('abs', False, 'no: its gradient is that of a total variation'),
    )
}
# GSPO's own bounds of 3e-4 are for long answers.
WIDE = {'clip_low': 0.2, 'clip_high': 0.2}
HYPER = {name: WIDE for name in ('gspo', 'gspo_token', 'luspo')}


def run(row, key: jax.Array) -> jax.Array:
    """KL(pi || pi*) at the end of one run."""
    _, name, how, in_loss, (epochs, parts) = row
    loss = functools.partial(getattr(policy_gradient, f'{name}_loss'), **HYPER.get(name, {}))
    kind, weighted = in_loss or ('k1', False)
    credit = Credit(group_size=_GROUP.value, kl_coef=0.0 if in_loss else BETA, **how)
    ref = jax.nn.log_softmax(reference())
    steps = _BATCHES.value * epochs * parts
    optimizer = optax.adam(optax.linear_schedule(_RATE.value, 0.0, steps))
    prompt = jnp.repeat(jnp.arange(_BATCH.value // _GROUP.value) % TABLE.prompts, _GROUP.value)

    def objective(theta, data, total):
        logps = TABLE.letter_logps(jax.nn.log_softmax(theta), data.tokens.prompt, data.tokens.letters)
        kl = dict(kl_coef=BETA if in_loss else 0.0, kl_kind=kind, kl_weighted=weighted)
        # Completions are of one length, so that aggregations differ by a factor alone: as the gradient of J has it.
        rows = data.tokens.mask.shape[0]
        return policy_loss(logps, data, total, rows, loss=loss, mode='seq_mean_token_sum', **kl)[0]

    def update(carry, key):
        theta, state = carry
        pi = jax.nn.log_softmax(theta)
        letters = TABLE.sample(pi, prompt, key)
        logps, ref_logps = (TABLE.letter_logps(t, prompt, letters) for t in (pi, ref))
        mask = jnp.ones(letters.shape)
        scores = REWARDS[prompt, TABLE.number(letters)]
        squares = jnp.sum(jnp.exp(2.0 * TABLE.by_letter(pi, prompt, letters)), axis=-1)
        kl = kl_estimate(logps, ref_logps, 'k1')
        advantages = token_advantages(credit, scores, {}, mask, kl, logps=logps, sum_squares=squares)
        tokens = Letters(letters, prompt, mask)
        data = PolicyBatch(tokens, logps, logps, advantages, None, ref_logps)

        def optimizer_step(carry, at):
            theta, state = carry
            picked, total = minibatch(data, key, *at, count=parts)
            change, state = optimizer.update(jax.grad(objective)(theta, picked, total), state)
            return (optax.apply_updates(theta, change), state), None

        order = jnp.divmod(jnp.arange(epochs * parts), parts)
        (theta, state), _ = jax.lax.scan(optimizer_step, (theta, state), order)
        return (theta, state), None

    start = reference()
    (theta, _), _ = jax.lax.scan(update, (start, optimizer.init(start)), jax.random.split(key, _BATCHES.value))
    best = optimal_policy(TABLE.logps({'table': start}), REWARDS, BETA)
    return kl_divergence(TABLE.logps({'table': theta}), best)


def main(_):
    """Prints the table, and records it if asked."""
    keys = jax.random.split(jax.random.key(0), _SEEDS.value)
    authors = TABLE.logps({'table': reference()})
    far = float(kl_divergence(authors, optimal_policy(authors, REWARDS, BETA)))
    lines = [
        f'| | KL(pi \\|\\| pi\\*), {_SEEDS.value} seeds, worst | mean | <= {NEAR} | theory |',
        '|---|---|---|---|---|',
    ]
    print(f'KL(pi_ref || pi*) = {far:.3f}')
    start = time.process_time()
    if unknown := set(_ONLY.value) - ROWS.keys():
        raise app.UsageError(f'--only={", ".join(unknown)}: no such row; there are {", ".join(ROWS)}')
    for name in _ONLY.value or ROWS:
        row = ROWS[name]
        distances = np.maximum(jax.jit(jax.vmap(functools.partial(run, row)))(keys), 0.0)
        worst, mean = float(np.max(distances)), float(np.mean(distances))
        lines.append(f'| {name} | {worst:.4f} | {mean:.4f} | {"yes" if worst <= NEAR else "no"} | {row[0]} |')
        print(lines[-1], flush=True)
    if RECORD.value:
        setting = (
            f'The reference is {far:.3f} nats from pi\\*; beta {BETA}, {_BATCHES.value} batches of {_BATCH.value} '
            f'completions in groups of {_GROUP.value}, Adam from {_RATE.value} to 0; KL in the reward but where said; '
            f'{time.process_time() - start:.0f} processor seconds in all.\n\n'
        )
        record('Which policy losses find the optimum', setting + '\n'.join(lines), Path(__file__).parent / 'RESULTS.md')


if __name__ == '__main__':
    app.run(main)
