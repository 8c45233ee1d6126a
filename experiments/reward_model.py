"""A reward model from comparisons (Bradley-Terry) or rankings (Plackett-Luce).

    python experiments/reward_model.py --task=reviews --init_from=runs/sft --out=runs/reward_model
    python experiments/reward_model.py --data=comparisons.jsonl.gz --init_from=runs/sft --truncate

The model is centred on the responses that it was trained on, so that a KL coefficient keeps its meaning. Leaves out
what the rewards are used for (ppo.py, dpo.py).
"""

import dataclasses
from functools import partial

import jax
import numpy as np

from rlax_ft.data.branches import share_prompts
from rlax_ft.data.packing import pack_pairs
from rlax_ft.data.records import record_texts
from rlax_ft.data.rows import fitting, preference_rows, ranking_rows
from rlax_ft.evaluate.win_rate import accuracy_interval, length_baseline
from rlax_ft.harness.comparisons import check_packing, comparisons, flatten, pair_batches
from rlax_ft.harness.learner import make_learner
from rlax_ft.harness.run import open_metrics, open_run
from rlax_ft.harness.settings import FeedbackSettings, flag, run_script
from rlax_ft.harness.starting_model import make_codec, starting_model
from rlax_ft.harness.step import resume, train_setup
from rlax_ft.objectives.packed import packed_reward_objective
from rlax_ft.objectives.reward import reward_objective, reward_ranking_objective
from rlax_ft.rewards.learned import RewardModel, save_reward_model
from rlax_ft.sampling.text import map_rows
from rlax_ft.training.guard import ChangeGuard
from rlax_ft.training.step import init_state


@dataclasses.dataclass(frozen=True)
class RewardModelSettings(FeedbackSettings):
    """Flags of reward_model.py."""

    loss: str = flag('bradley_terry', 'On pairs or on whole rankings.', ('bradley_terry', 'plackett_luce'))
    center_coef: float = flag(0.0, 'Weight of (chosen + rejected)^2, with bradley_terry.')
    scale_rewards: bool = flag(False, 'Divide the centred reward by its standard deviation, too.')
    max_steps: int = flag(150, 'Number of training steps.')
    learning_rate: float = flag(1e-3, 'Peak learning rate of AdamW.')
    warmup_steps: int = flag(10, 'Steps over which the learning rate rises to its peak.')
    weight_decay: float = flag(0.01, "AdamW's decoupled weight decay.")


def train(settings: RewardModelSettings) -> dict:
    """Runs the stage, or goes on with it; returns its summary."""
    run = open_run(settings, 'reward_model')
    if run.summary:
        return run.summary
    rankings, held_out = comparisons(settings, run)
    codec = make_codec(settings, run, lambda: record_texts(rankings))
    rankings, held_out = fitting(codec, rankings), fitting(codec, held_out)
    pairs, eval_pairs = flatten(rankings), flatten(held_out)
    by_rank = settings.loss == 'plackett_luce'
    check_packing(settings)
    train_rows, eval_rows = preference_rows(codec, pairs), preference_rows(codec, eval_pairs)
    if settings.packing:
        rows = pack_pairs(train_rows, codec.max_length)
    else:
        rows = share_prompts(ranking_rows(codec, rankings) if by_rank else train_rows)
    learner = make_learner(settings, *starting_model(settings, codec))
    apply = learner.scalar_apply
    on_pairs = packed_reward_objective if settings.packing else reward_objective
    objective = reward_ranking_objective(apply) if by_rank else on_pairs(apply, center_coef=settings.center_coef)
    optimizer, step = train_setup(settings, objective, learner.base)
    state = init_state(learner.start_reward(), optimizer, jax.random.key(settings.seed))
    state, start = resume(settings, run, state)
    guard = ChangeGuard(state.params, start)

    show = ('loss', 'rewards/accuracies', 'padding_share')
    with open_metrics(settings, run, learner.config, start, title='reward model', show=show) as writer:
        for i, batch, padding in pair_batches(settings, rows, range(start, settings.max_steps)):
            state, metrics = step(state, batch)
            writer.write(i + 1, metrics | padding, batch)
            guard.check(i + 1, state.params)
            if (i + 1) % settings.save_every == 0 or i + 1 == settings.max_steps:
                run.checkpoints.save(i + 1, state)

    model = RewardModel(learner.config, learner.merged(state.params))
    score = jax.jit(lambda model, candidates: model.candidates(candidates))
    reference, held = (
        map_rows(partial(score, model), share_prompts(r).candidates, batch_size=settings.batch_size)
        for r in (train_rows, eval_rows)
    )
    model = model.normalized(reference, scale=settings.scale_rewards)
    save_reward_model(run.folder / 'model', model, codec.tokenizer)
    right = ((1 + np.sign(held[:, 0] - held[:, 1])) / 2).sum()
    accuracy, low, high = accuracy_interval(right, len(eval_pairs))
    lengths = [side for r in (train_rows, eval_rows) for side in r.candidates.mask.sum(axis=2).T]
    return run.finish(
        {
            'steps': settings.max_steps,
            'train_pairs': len(pairs),
            'eval_pairs': len(eval_pairs),
            'eval_accuracy': accuracy,
            'eval_accuracy_low': low,
            'eval_accuracy_high': high,
            'length_baseline_accuracy': length_baseline(*lengths),
            'reward_mean': model.mean,
            'reward_scale': model.scale,
        }
    )


if __name__ == '__main__':
    run_script(RewardModelSettings, train)
