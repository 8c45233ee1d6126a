"""A reward model from comparisons (Bradley-Terry) or rankings (Plackett-Luce).

    python experiments/reward_model.py --data=pairs.jsonl --init_from=runs/sft --out=runs/reward_model
    python experiments/reward_model.py --data=rankings.jsonl --model=FOLDER_OR_ID --loss=plackett_luce

The model is centred on the responses that it was trained on, so that a KL coefficient keeps its meaning. Leaves out
what the rewards are used for (ppo.py, dpo.py).
"""

import dataclasses
from functools import partial

import jax

from rlax_ft.data.branches import share_prompts
from rlax_ft.data.packing import pack_pairs
from rlax_ft.data.records import record_texts
from rlax_ft.data.rows import fitting, preference_rows, ranking_rows
from rlax_ft.errors import InputError
from rlax_ft.evaluate.win_rate import length_baseline
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.comparisons import check_fields, comparison_batches, comparisons, implied_pairs
from rlax_ft.harness.labels import pair_lengths, preference_accuracy
from rlax_ft.harness.learner import make_learner
from rlax_ft.harness.run import open_metrics, open_run
from rlax_ft.harness.settings import FeedbackSettings, flag
from rlax_ft.harness.starting_model import make_codec, starting_model
from rlax_ft.harness.step import compile_training, resume, with_steps
from rlax_ft.objectives.packed import packed_reward_objective
from rlax_ft.objectives.reward import reward_objective, reward_ranking_objective
from rlax_ft.parallel.hosts import on_first
from rlax_ft.parallel.placement import on_host
from rlax_ft.rewards.learned import RewardModel, save_reward_model
from rlax_ft.sampling.text import map_rows
from rlax_ft.training.step import init_state


@dataclasses.dataclass(frozen=True)
class RewardModelSettings(FeedbackSettings):
    """Flags of reward_model.py."""

    loss: str = flag('bradley_terry', 'On pairs or on whole rankings.', ('bradley_terry', 'plackett_luce'))
    center_coef: float = flag(0.0, 'Weight of (chosen + rejected)^2, with --loss=bradley_terry.', at_least=0)
    scale_rewards: bool = flag(False, 'Divide the centred reward by its standard deviation, too.')


def train(settings: RewardModelSettings) -> dict:
    """Runs the stage, or resumes it; returns its summary."""
    by_rank = check(settings)
    run = open_run(settings, 'reward_model')
    if run.summary:
        return run.summary
    records, held_out = comparisons(settings, run, rankings=by_rank)
    codec = make_codec(settings, run, lambda: record_texts(records))
    records, held_out = fitting(codec, records), fitting(codec, held_out)
    check_fields(records, set() if by_rank else {'label', 'margin', 'weight'}, settings.loss)
    encode = partial(ranking_rows if by_rank else preference_rows, ragged=True)
    plain, plain_held_out = encode(codec, records), encode(codec, held_out)
    train_rows, eval_rows = share_prompts(plain), share_prompts(plain_held_out)
    rows = pack_pairs(plain, codec.max_length) if settings.packing else train_rows
    learner = make_learner(settings, *starting_model(settings, codec))
    apply = learner.scalar_apply
    on_pairs = packed_reward_objective if settings.packing else reward_objective
    objective = reward_ranking_objective(apply) if by_rank else on_pairs(apply, center_coef=settings.center_coef)

    settings = with_steps(settings, len(jax.tree.leaves(rows)[0]))
    optimizer, step = compile_training(settings, objective, learner.base)
    state = init_state(learner.start_reward(), optimizer, jax.random.key(settings.seed))
    state, start = resume(settings, run, state)
    last, show = settings.max_steps, ('loss', 'rewards/accuracies', 'padding_share')
    with open_metrics(settings, run, learner.config, start, title='reward model', show=show) as writer:
        for i, batch, padding in comparison_batches(settings, rows, range(start, last)):
            state, metrics = step(state, batch)
            writer.write(i + 1, metrics | padding, batch)
            run.save_if_due(settings, i + 1, last, writer, lambda: state)  # noqa: B023

    model = RewardModel(learner.config, learner.merged(state.params))
    score = jax.jit(lambda model, candidates: model.candidates(candidates))
    scored = map_rows(partial(score, model), train_rows.candidates, batch_size=settings.batch_size)
    accuracy = preference_accuracy(partial(score, model), eval_rows, settings.batch_size)
    model = model.normalized(scored, scale=settings.scale_rewards)
    model = model.replace(params=on_host(model.params))
    on_first(lambda: save_reward_model(run.folder / 'model', model, codec.tokenizer), 'model')
    learner.export_adapter(run, state.params)
    lengths = (side for r in (plain, plain_held_out) for side in pair_lengths(r))
    return run.finish(
        {
            'steps': last,
            'train_pairs': len(implied_pairs(records)),
            **accuracy,
            'length_baseline_accuracy': length_baseline(*lengths),
            'reward_mean': model.mean,
            'reward_scale': model.scale,
        }
    )


def check(settings: RewardModelSettings) -> bool:
    """Whether the loss is on whole rankings; refuses flags that have no effect together.

    Raises:
      InputError: naming the flag.
    """
    by_rank = settings.loss == 'plackett_luce'
    for name in ('center_coef', 'packing') if by_rank else ():
        if getattr(settings, name):
            raise InputError(f'--{name}: --loss=plackett_luce has no use for it; leave it out')
    return by_rank


if __name__ == '__main__':
    run_script(RewardModelSettings, train)
