"""PPO on language: sample, score, estimate advantages, and take several clipped epochs on them.

    python experiments/ppo.py --task=sort --init_from=runs/sft --reward=gold --out=runs/ppo
    python experiments/ppo.py --task=reviews --init_from=runs/sft --reward=runs/reward_model
    python experiments/ppo.py --data=prompts.jsonl --init_from=runs/sft --reward=my_module:my_rule

The checklist of details that it follows stands in rlax_ft/training/ppo.py. Leaves out formulas: --loss names one of
rlax_ft.losses.policy_gradient, or a function `f(logps, old_logps, advantages, mask) -> float[B, T]` of your own.
"""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.data.loader import local_batch
from rlax_ft.data.records import plain_text, read_prompts
from rlax_ft.data.rows import prompt_arrays
from rlax_ft.errors import InputError
from rlax_ft.harness.evaluator import Evaluator
from rlax_ft.harness.learner import make_learner
from rlax_ft.harness.loading import find_function, load_loss
from rlax_ft.harness.run import open_metrics, open_run
from rlax_ft.harness.settings import Settings, flag, run_script
from rlax_ft.harness.starting_model import announce_model, make_codec, model_folder, starting_model, task_of
from rlax_ft.harness.step import placement, resume, train_setup, within_mesh
from rlax_ft.models.scoring import rollout_branches
from rlax_ft.objectives.ppo import end_scores, ended, estimate, mean_metrics, minibatch, ppo_objective
from rlax_ft.ops.kl import adaptive_coef
from rlax_ft.rewards.learned import load_reward_model
from rlax_ft.rewards.rules import rule_scores
from rlax_ft.sampling.text import make_sampler, trim_prompts
from rlax_ft.training.guard import ChangeGuard
from rlax_ft.training.step import init_state


@dataclasses.dataclass(frozen=True)
class PPOSettings(Settings):
    """Flags of ppo.py."""

    reward: str = flag(
        'gold', "gold (the task's), a reward model's run folder, or MODULE:FUNCTION(prompt, completion)."
    )
    loss: str = flag('ppo_clip', 'ppo_clip, cispo, gspo, ... or MODULE:FUNCTION.')
    loss_args: str = flag('', 'Further hyperparameters of the loss, such as clip_low=0.2,clip_high=0.28.')
    beta: float = flag(0.05, 'Weight of the KL to the starting model, a penalty on every token.')
    target_kl: float = flag(0.0, 'Adapt beta so that the KL of a completion, in nats, goes here; 0 keeps beta fixed.')
    kl_horizon: float = flag(10_000.0, 'Episodes over which beta adapts.')
    max_steps: int = flag(100, 'Number of updates, each on fresh samples.')
    batch_size: int = flag(256, 'Completions sampled in an update, over all devices together.')
    group_size: int = flag(1, 'Completions of each prompt in an update; they share one reading of it.')
    engine_rows: int = flag(0, 'Completions under way at a time, refilled as they end; 0: the whole batch at once.')
    epochs: int = flag(4, 'Passes over the samples of an update.')
    minibatches: int = flag(4, 'Minibatches in a pass; each is one optimiser step.')
    learning_rate: float = flag(1e-3, 'Peak learning rate of AdamW.')
    temperature: float = flag(1.0, 'Of sampling; policy, reference and update divide their logits by it alike.')
    gamma: float = flag(1.0, 'Discount per token.')
    lam: float = flag(0.95, 'Lambda of generalised advantage estimation.')
    value_coef: float = flag(0.1, 'Weight of the value loss.')
    value_clip: float = flag(0.2, 'How far a value may move from its old one in an update; 0 does not clip.')
    entropy_coef: float = flag(0.0, 'Weight of the entropy bonus.')
    missing_eos_penalty: float = flag(-3.0, 'Score of a completion that did not end; nan scores it like the others.')
    prompts: int = flag(10_000, 'With --task: how many prompts to draw from it.')


def train(settings: PPOSettings) -> dict:
    """Runs the stage, or goes on with it; returns its summary."""
    run = open_run(settings, 'ppo')
    if run.summary:
        return run.summary
    check(settings)
    task = task_of(settings)
    if settings.data:
        prompts = [record['prompt'] for record in read_prompts(settings.data)]
    else:
        prompts = task.sample_prompts(settings.prompts, settings.seed)
    codec = make_codec(settings, run, lambda: map(plain_text, prompts))
    learner = make_learner(settings, *starting_model(settings, codec))
    announce_model(run, learner.config, codec)
    apply, value_apply, ref_params = learner.apply, learner.scalar_apply, learner.reference
    evaluator = Evaluator(task, codec, apply, ref_params) if task else None
    collect = make_collector(settings, task, codec, learner)
    how = dict(temperature=settings.temperature, gamma=settings.gamma, lam=settings.lam)
    estimator = within_mesh(settings, jax.jit(partial(estimate, apply, value_apply, **how)))
    pick = jax.jit(partial(minibatch, count=settings.minibatches))
    adapt = jax.jit(
        partial(adaptive_coef, target=settings.target_kl, horizon=settings.kl_horizon, n_steps=settings.batch_size)
    )
    optimizer, step = make_update(settings, learner)
    params = {'policy': learner.start(), 'value': learner.start_value()}
    state = init_state(params, optimizer, jax.random.key(settings.seed))
    kl_coef = jnp.asarray(settings.beta, jnp.float32)
    (state, kl_coef), start = resume(settings, run, (state, kl_coef))
    guard = ChangeGuard(state.params['policy'], start)
    rows = (*prompt_arrays(codec, prompts), np.arange(len(prompts)))

    show = ('objective/scores', 'objective/kl', 'eval/gold', 'eval/kl')
    # Sampling and the reference are one pass each; values and every epoch's update are two models'.
    passes = 4 + 6 * settings.epochs
    with open_metrics(settings, run, learner.config, start, title='ppo', show=show, passes=passes) as writer:
        for i in range(start, settings.max_steps):
            tokens, mask, index = local_batch(
                rows, i, batch_size=settings.batch_size // settings.group_size, seed=settings.seed
            )
            key, shuffle_key = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), i))
            # Collect.
            whole = learner.whole(state.params)
            rollout, batch, scores, finished = collect(whole['policy'], tokens, mask, [prompts[j] for j in index], key)
            # Estimate.
            data, metrics = estimator(whole, ref_params, batch, rollout.logps, scores, kl_coef)
            # Update.
            steps = []
            for epoch, part in itertools.product(range(settings.epochs), range(settings.minibatches)):
                state, step_metrics = step(state, pick(data, shuffle_key, epoch, part))
                steps.append(step_metrics)
            if settings.target_kl:
                kl_coef = adapt(kl_coef, metrics['objective/kl'])
            metrics |= {'val/num_eos_tokens': finished.sum(), **mean_metrics(steps)}
            if evaluator and settings.eval_every and (i + 1) % settings.eval_every == 0:
                metrics |= evaluator.metrics(learner.whole(state.params['policy']), seed=settings.seed)
            writer.write(i + 1, metrics, batch)
            guard.check(i + 1, state.params['policy'])
            if (i + 1) % settings.save_every == 0 or i + 1 == settings.max_steps:
                run.checkpoints.save(i + 1, (state, kl_coef))

    learner.export(run, state.params['policy'], codec)
    summary = {'steps': settings.max_steps, 'kl_coef': float(kl_coef)}
    if evaluator:
        summary |= evaluator.finish(
            learner.whole(state.params['policy']), run.folder / 'samples.jsonl', seed=settings.seed
        )
    return run.finish(summary)


def check(settings: PPOSettings) -> None:
    """Refuses what the flags alone show to be wrong.

    Raises:
      InputError: a batch that does not divide into groups and minibatches, or a policy with dropout.
    """
    if settings.lora_dropout:
        raise InputError(
            f'--lora_dropout={settings.lora_dropout}: the ratio of PPO needs a policy without dropout; give 0'
        )
    group = settings.group_size
    for name, parts in (('group_size', group), ('minibatches', settings.minibatches * group)):
        if parts < 1 or settings.batch_size % parts:
            raise InputError(
                f'--{name}={getattr(settings, name)}: does not divide --batch_size={settings.batch_size} '
                f'in groups of {max(group, 1)}'
            )


def make_update(settings: PPOSettings, learner):
    """(optimiser, compiled step on a minibatch)."""
    objective = ppo_objective(
        learner.apply,
        learner.scalar_apply,
        loss=load_loss(settings, settings.loss, 'rlax_ft.losses.policy_gradient', settings.loss_args),
        value_clip=settings.value_clip or None,
        value_coef=settings.value_coef,
        entropy_coef=settings.entropy_coef,
        temperature=settings.temperature,
    )
    updates = settings.max_steps * settings.epochs * settings.minibatches
    return train_setup(settings, objective, learner.base, max_updates=updates, eps=1e-5)


def make_collector(settings: PPOSettings, task, codec, learner):
    """`collect(params, tokens, mask, prompts, key) -> (rollout, its batch, scores, which completions ended)`.

    Each prompt is answered `group_size` times.
    """
    group, place = settings.group_size, placement(settings)
    score = make_reward(settings, task, codec)
    sample = make_sampler(learner.apply, codec, rows=settings.engine_rows or None, temperature=settings.temperature)

    def collect(params, tokens, mask, prompts, key):
        tokens, mask = (np.repeat(x, group, axis=0) for x in (tokens, mask))
        rollout = sample(params, *place(trim_prompts(tokens, mask)), key)
        batch = rollout_branches(rollout, group)
        finished = ended(rollout, codec.eos_ids)
        scores = score(rollout, batch, [prompt for prompt in prompts for _ in range(group)])
        if not np.isnan(settings.missing_eos_penalty):
            scores = end_scores(scores, finished, settings.missing_eos_penalty)
        return rollout, batch, scores, finished

    return collect


def make_reward(settings: PPOSettings, task, codec):
    """`score(rollout, batch, prompts) -> float[B]`: a rule on text, or a reward model on tokens."""
    rule = task.reward if settings.reward == 'gold' and task else None
    if settings.reward == 'gold' and not task:
        raise InputError('--reward=gold: only an embedded --task has one; give a reward model or MODULE:FUNCTION')
    if ':' in settings.reward:
        rule = find_function(settings.reward, 'reward')
    if rule is not None:
        return lambda rollout, batch, prompts: rule_scores(rule, prompts, codec.decode(rollout)[0])
    model, tokenizer = load_reward_model(model_folder(settings.reward, 'reward'))
    if len(tokenizer) != len(codec.tokenizer):
        raise InputError(f'--reward={settings.reward}: has {len(tokenizer)} tokens, the policy {len(codec.tokenizer)}')
    compiled = jax.jit(lambda model, batch: model(batch))
    return lambda rollout, batch, prompts: compiled(model, batch)


if __name__ == '__main__':
    run_script(PPOSettings, train)
