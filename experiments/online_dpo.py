"""Preference optimisation online: groups are sampled from the policy, judged, and learned from at once.

    python experiments/online_dpo.py --data=prompts.jsonl --init_from=runs/sft --reward=runs/rm
    python experiments/online_dpo.py --data=prompts.jsonl --init_from=runs/sft --reward=runs/rm:lcb --group_size=4
    python experiments/online_dpo.py --data=prompts.jsonl --init_from=runs/sft --reward=my.py:good --loss=plackett_luce
    python experiments/online_dpo.py --task=reviews --init_from=runs/sft --judgement=sampled --method=xpo

Whatever --reward names judges: a reward model, an ensemble, a rule, a judge; --judgement=sampled makes a noisy
annotator of it. The reference is the starting model; --sync_reference=N moves it to the policy every N updates, and
--sync_share=0.01 with N = 1 has it follow. That with --batch_size and --minibatches large is iterated DPO, and
--loss=sppo --judgement=soft --pairs=all is SPPO (arXiv 2405.00675). --method=xpo compares with the reference's samples
and explores (2405.21046), --method=nash_md plays against the mixture of both (2312.00886). Leaves out formulas.
"""

import dataclasses
import itertools
from functools import partial

import jax
import numpy as np

from rlax_ft.data.loader import whole_batch
from rlax_ft.data.records import plain_text
from rlax_ft.data.rows import prompt_arrays
from rlax_ft.errors import InputError
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.evaluator import make_evaluator
from rlax_ft.harness.learner import make_learner
from rlax_ft.harness.loading import check_pair_loss, load_loss, reads_whole_batch
from rlax_ft.harness.online import judged_groups, make_groups
from rlax_ft.harness.rewards import check_reward
from rlax_ft.harness.rollouts import RolloutSettings, check_groups, prompt_records
from rlax_ft.harness.run import open_metrics, open_run
from rlax_ft.harness.settings import EvalSettings, ReferenceSettings, Settings, flag
from rlax_ft.harness.starting_model import announce_model, make_codec, starting_model, task_of
from rlax_ft.harness.step import compile_training, resume, with_steps, within_mesh
from rlax_ft.objectives.online import (
    follow,
    group_logps,
    group_objective,
    group_ranking_objective,
    nash_md_objective,
    pick_groups,
)
from rlax_ft.objectives.ppo import mean_over_steps
from rlax_ft.training.step import init_state


@dataclasses.dataclass(frozen=True)
class OnlineDPOSettings(RolloutSettings, ReferenceSettings, EvalSettings, Settings):
    """Flags of online_dpo.py."""

    method: str = flag('dpo', 'dpo, xpo or nash_md: who answers beside the policy.', ('dpo', 'xpo', 'nash_md'))
    loss: str = flag('dpo', 'As of dpo.py: dpo, ipo, sppo, ... or MODULE:FUNCTION; plackett_luce ranks whole groups.')
    loss_args: str = flag('', 'Further hyperparameters of the loss, such as label_smoothing=0.1,gamma=0.5.')
    beta: float = flag(0.1, 'Weight of the KL to the reference in the objective that the loss stands for.', above=0)
    nll_coef: float = flag(
        -1.0,
        "Weight of the better answer's negative log-likelihood a token; -1: the paper's (1 for ORPO and CPO).",
        at_least=-1,
    )
    judgement: str = flag(
        'hard',
        'hard: the higher reward wins; soft: the label is sigma((r_a - r_b) / noise); sampled: a draw of that.',
        ('hard', 'soft', 'sampled'),
    )
    annotator_noise: float = flag(1.0, 'Noise of --judgement=soft and sampled.', at_least=0)
    pairs: str = flag('best_worst', 'Of each group: its best against its worst, or all pairs.', ('best_worst', 'all'))
    xpo_alpha: float = flag(1e-5, "Weight of XPO's exploration.", at_least=0)
    mixture: float = flag(0.125, "Share of the reference in Nash-MD's opponent.", at_least=0, at_most=1)
    sync_reference: int = flag(0, 'Updates after which the reference moves; 0 keeps the first one.', at_least=0)
    sync_share: float = flag(
        1.0,
        'How far it moves: 1, to the policy; less, that share of the way.',
        above=0,
        at_most=1,
        needs='sync_reference',
    )
    group_size: int = flag(2, "Completions of each prompt, the opponent's included.", at_least=2)
    batch_size: int = flag(64, 'Completions sampled in an update, over all devices together.', at_least=2)
    update_epochs: int = flag(1, 'Passes over the samples of an update.', at_least=1)
    minibatches: int = flag(1, 'Minibatches in a pass; each is one optimiser step.', at_least=1)
    learning_rate: float = flag(1e-6, 'Peak learning rate.', above=0)


def train(settings: OnlineDPOSettings) -> dict:
    """Runs the stage, or resumes it; returns its summary."""
    check(settings)
    run = open_run(settings, 'online_dpo')
    if run.summary:
        return run.summary
    task = task_of(settings)
    records, held_out = prompt_records(settings, task)
    codec = make_codec(settings, run, lambda: [plain_text(record['prompt']) for record in records])
    settings = with_steps(settings, len(records) * settings.group_size)
    learner = make_learner(settings, *starting_model(settings, codec))
    announce_model(run, learner.config, codec)
    collect, score = make_groups(settings, task, codec, learner)
    rewarded = lambda records, texts, _, rows: score(rows, records, lambda: texts)[0]  # noqa: E731
    measures = {} if settings.reward == 'gold' else {'reward': rewarded}
    evaluator = make_evaluator(settings, run, codec, learner, task, held_out, measures)
    logps_of = within_mesh(settings, jax.jit(partial(group_logps, learner.apply, temperature=settings.temperature)))
    judge = jax.jit(partial(judged_groups, settings))
    pick = jax.jit(partial(pick_groups, count=settings.minibatches))
    move = jax.jit(partial(follow, share=settings.sync_share))
    updates = settings.max_steps * settings.update_epochs * settings.minibatches
    optimizer, step = compile_training(settings, make_objective(settings, learner), learner.base, max_updates=updates)
    state = init_state(learner.start(), optimizer, jax.random.key(settings.seed))
    moving = settings.sync_reference > 0  # Then a checkpoint holds the reference, too, which starts as the policy does.
    state, start = resume(settings, run, (state, learner.start()) if moving else state)
    state, anchor = (state[0], learner.rest(state[1])) if moving else (state, None)
    rows = (*prompt_arrays(codec, [record['prompt'] for record in records]), np.arange(len(records)))
    batch_of = partial(whole_batch, rows, batch_size=settings.batch_size // settings.group_size, seed=settings.seed)

    last, show = settings.max_steps, ('objective/scores', 'rewards/margins', 'loss', 'eval/gold', 'eval/kl')
    passes = 2 + 3 * settings.update_epochs  # Sampling, the reference, and the updates.
    with open_metrics(settings, run, learner.config, start, title='online dpo', show=show, passes=passes) as writer:
        for i in range(start, last):
            tokens, mask, index = batch_of(i)
            keys = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), i), 3)
            # Collect.
            policy = learner.whole(state.params)
            reference = learner.whole(learner.ready(anchor)) if moving else learner.ready(learner.reference)
            groups, scores, metrics = collect(policy, reference, tokens, mask, [records[j] for j in index], keys[0])
            # Judge.
            data = judge(groups, scores, logps_of(reference, groups), keys[1])
            del reference  # It is on the devices for no longer than it is read.
            # Update.
            steps = []
            for epoch, part in itertools.product(range(settings.update_epochs), range(settings.minibatches)):
                state, step_metrics = step(state, pick(data, keys[2], epoch, part))
                steps.append(step_metrics)
            if moving and (i + 1) % settings.sync_reference == 0:
                anchor = learner.rest(move(learner.ready(anchor), state.params))
            metrics |= mean_over_steps(steps)
            if settings.eval_every and (i + 1) % settings.eval_every == 0:
                metrics |= evaluator.metrics(learner.whole(state.params), i + 1)
            writer.write(i + 1, metrics, groups)
            run.save_if_due(settings, i + 1, last, writer, lambda: (state, anchor) if moving else state)  # noqa: B023

    learner.export(run, state.params, codec)
    return run.finish({'steps': last, **evaluator.finish(learner.whole(state.params), last)})


def check(settings: OnlineDPOSettings) -> None:
    """Refuses what the flags alone show to be wrong.

    Raises:
      InputError: naming the flag.
    """
    check_groups(settings)
    check_reward(settings.reward)
    unused = {
        'xpo_alpha': settings.method != 'xpo' and 'is read by --method=xpo only',
        'mixture': settings.method != 'nash_md' and 'is read by --method=nash_md only',
        'annotator_noise': settings.judgement == 'hard' and '--judgement=hard has none',
        'loss': settings.method == 'nash_md' and '--method=nash_md has a loss of its own',
        'sync_share': settings.param_dtype == 'bfloat16' and '--param_dtype=bfloat16 rounds most of it away',
        'pairs': settings.method != 'dpo' and f'--method={settings.method} compares policy with opponent',
    }
    if settings.loss == 'plackett_luce' or settings.method == 'nash_md':
        by = f'--method={settings.method}' if settings.method == 'nash_md' else '--loss=plackett_luce'
        unused |= dict.fromkeys(('loss_args', 'nll_coef'), f'{by} has no use for it')
        unused['pairs'] = f'{by} has no use for it'
    for name, reason in unused.items():
        value = getattr(settings, name)
        if reason and value != getattr(OnlineDPOSettings, name):
            raise InputError(f'--{name}={value}: {reason}; leave it out')
    if settings.loss == 'plackett_luce' and (settings.judgement == 'soft' or settings.method == 'xpo'):
        other = '--judgement=soft' if settings.judgement == 'soft' else '--method=xpo'
        raise InputError(f'{other}: compares two answers, and --loss=plackett_luce ranks a group; give another --loss')
    if settings.method != 'dpo' and settings.group_size % 2:
        raise InputError(f"--group_size={settings.group_size}: half of a group is the opponent's; give an even number")
    if settings.method == 'nash_md' and settings.update_epochs * settings.minibatches > 1:
        raise InputError(
            '--method=nash_md: its gradient is right at the policy that sampled; leave --update_epochs and '
            '--minibatches at 1'
        )
    if settings.sync_share < 1 and settings.lora_rank:
        raise InputError(f'--sync_share={settings.sync_share}: a share of an adapter is no share of its model; give 1')


def make_objective(settings: OnlineDPOSettings, learner):
    """The objective that --method and --loss name."""
    how = dict(beta=settings.beta, temperature=settings.temperature)
    if settings.method == 'nash_md':
        return nash_md_objective(learner.apply, **how)
    if settings.loss == 'plackett_luce':
        return group_ranking_objective(learner.apply, **how)
    loss = load_loss(settings, settings.loss, 'rlax_ft.losses.preference', settings.loss_args, beta=settings.beta)
    check_pair_loss(loss, settings.loss)
    if reads_whole_batch(loss):
        raise InputError(f'--loss={settings.loss}: sorts the pairs of a batch, and a judgement belongs to one pair')
    given = getattr(loss.func, 'nll_coef', 0.0) if settings.nll_coef < 0 else settings.nll_coef
    explore = settings.xpo_alpha if settings.method == 'xpo' else 0.0
    return group_objective(learner.apply, loss, nll_coef=given, explore=explore, **how)


if __name__ == '__main__':
    run_script(OnlineDPOSettings, train)
