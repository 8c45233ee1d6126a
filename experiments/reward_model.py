"""A reward model from comparisons, rankings, ratings or judged steps; or an ensemble of them under one vmap.

    python experiments/reward_model.py --data=pairs.jsonl --init_from=runs/sft --out=runs/reward_model
    python experiments/reward_model.py --data=rankings.jsonl --model=FOLDER_OR_ID --loss=plackett_luce
    python experiments/reward_model.py --data=pairs.jsonl --init_from=runs/sft --ensemble=5
    python experiments/reward_model.py --data=ratings.jsonl --init_from=runs/sft --loss=regression
    python experiments/reward_model.py --data=solutions.jsonl --init_from=runs/sft --loss=step

The model is centred on the responses that it was trained on, so that a KL coefficient keeps its meaning. Ratings are
{"prompt", "completion", "score"}; steps {"prompt", "steps": [..], "labels": [..]}. Members of an ensemble are heads on
one backbone, or with --lora_rank an adapter and a head each on a frozen one; --reward=runs/rm:mean, :min or :lcb=K of
ppo.py reduces them. summary.json says how well held-out comparisons are predicted, and how well calibrated the
probabilities are before and after a temperature (reliability.png). Leaves out what the rewards are used for.
"""

import dataclasses
from functools import partial

import jax

from rlax_ft.errors import InputError
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.comparisons import comparison_batches
from rlax_ft.harness.learner import make_learner
from rlax_ft.harness.reward_data import reward_data, votes
from rlax_ft.harness.run import open_metrics, open_run
from rlax_ft.harness.settings import FeedbackSettings, flag
from rlax_ft.harness.starting_model import starting_model
from rlax_ft.harness.step import compile_training, resume, with_steps
from rlax_ft.objectives.reward import ensemble_objective
from rlax_ft.parallel.hosts import on_first
from rlax_ft.parallel.placement import on_host
from rlax_ft.rewards.ensemble import mean_disagreement, save_ensemble
from rlax_ft.rewards.learned import RewardModel, save_reward_model
from rlax_ft.sampling.text import map_rows
from rlax_ft.training.step import init_state


@dataclasses.dataclass(frozen=True)
class RewardModelSettings(FeedbackSettings):
    """Flags of reward_model.py."""

    loss: str = flag(
        'bradley_terry',
        'On pairs (bradley_terry), on whole rankings, on ratings (regression), or on the steps of solutions.',
        ('bradley_terry', 'plackett_luce', 'regression', 'step'),
    )
    center_coef: float = flag(0.0, 'Weight of (chosen + rejected)^2, with --loss=bradley_terry.', at_least=0)
    scale_rewards: bool = flag(False, 'Divide the centred reward by its standard deviation, too.')
    ensemble: int = flag(0, 'Members of an ensemble, trained together; 0 trains one model.', at_least=0)
    bootstrap: bool = flag(
        False, 'Each member has a bootstrap sample of the data; else they differ in their start.', needs='ensemble'
    )


def train(settings: RewardModelSettings) -> dict:
    """Runs the stage, or resumes it; returns its summary."""
    check(settings)
    run = open_run(settings, 'reward_model')
    if run.summary:
        return run.summary
    data = reward_data(settings, run)
    learner = make_learner(settings, *starting_model(settings, data.codec))
    rows, objective = data.rows, data.make_objective(learner.scalar_apply)
    count = len(jax.tree.leaves(rows)[0])
    if settings.ensemble:
        drawn = votes(count, settings.ensemble, bootstrap=settings.bootstrap, seed=settings.seed)
        rows, objective = (rows, drawn), ensemble_objective(objective)
        start_params = learner.start_ensemble(settings.ensemble)
    else:
        start_params = learner.start_reward()

    settings = with_steps(settings, count)
    optimizer, step = compile_training(settings, objective, learner.base)
    state = init_state(start_params, optimizer, jax.random.key(settings.seed))
    state, start = resume(settings, run, state)
    last, show = settings.max_steps, ('loss', 'rewards/accuracies', 'padding_share')
    with open_metrics(settings, run, learner.config, start, title='reward model', show=show) as writer:
        for i, batch, padding in comparison_batches(settings, rows, range(start, last)):
            state, metrics = step(state, batch)
            writer.write(i + 1, metrics | padding, batch)
            run.save_if_due(settings, i + 1, last, writer, lambda: state)  # noqa: B023

    finish = ensemble_model if settings.ensemble else single_model
    summary = finish(settings, run, data, learner, state.params)
    return run.finish({'steps': last, **data.facts, **summary})


def single_model(settings, run, data, learner, params) -> dict:
    """Centres, measures and writes one reward model; returns what the summary says of it."""
    ends = data.step_ends if settings.loss == 'step' else None
    model = RewardModel(learner.config, learner.merged(params), step_ends=ends)
    measured = data.measure(model, run)
    if data.scored is not None:
        score = partial(jax.jit(lambda model, rows: model.candidates(rows)), model)
        model = model.normalized(
            map_rows(score, data.scored, batch_size=settings.batch_size), scale=settings.scale_rewards
        )
    model = model.replace(params=on_host(model.params))
    on_first(lambda: save_reward_model(run.folder / 'model', model, data.codec.tokenizer), 'model')
    learner.export_adapter(run, params)
    return measured | {'reward_mean': model.mean, 'reward_scale': model.scale}


def ensemble_model(settings, run, data, learner, params) -> dict:
    """The same of an ensemble: the figures are those of its mean, and the spread of its members beside them."""
    model = learner.ensemble(params)
    measured = data.measure(model, run)
    score = partial(jax.jit(lambda model, rows: model.member_candidates(rows)), model)
    scores = map_rows(score, data.scored, batch_size=settings.batch_size)  # [N, K, E]
    scores = scores.reshape(-1, settings.ensemble).T
    spread = mean_disagreement(scores)
    model = on_host(model.normalized(scores, scale=settings.scale_rewards))
    on_first(lambda: save_ensemble(run.folder / 'model', model, data.codec.tokenizer), 'model')
    return measured | {'members': settings.ensemble, 'disagreement': spread, 'reward_scale': float(model.scale)}


def check(settings: RewardModelSettings) -> None:
    """Refuses flags that have no effect together.

    Raises:
      InputError: naming the flag.
    """
    unused = () if settings.loss == 'bradley_terry' else ('center_coef', 'packing')
    unused += ('scale_rewards', 'ensemble') if settings.loss == 'step' else ()
    for name in unused:
        if getattr(settings, name):
            raise InputError(f'--{name}: --loss={settings.loss} has no use for it; leave it out')
    if settings.ensemble and settings.packing:
        raise InputError('--packing: members of an --ensemble weigh every pair by themselves; leave one out')


if __name__ == '__main__':
    run_script(RewardModelSettings, train)
