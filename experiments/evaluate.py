"""Trained models measured: policies on samples, reward models and other judges on comparisons, several side by side.

    python experiments/evaluate.py --task=reviews --models=runs/sft,runs/dpo,runs/ppo --reference=runs/sft
    python experiments/evaluate.py --models=runs/sft,runs/ppo --data=problems.jsonl --reward=my_rewards.py:is_right \\
        --samples=16 --pass_at=1,4,16
    python experiments/evaluate.py --models=runs/sft,runs/dpo --data=prompts.jsonl --judge=my_judge.py:better
    python experiments/evaluate.py --on=pairs --models=runs/rm,ORG/REWARD_MODEL --data=rewardbench.jsonl
    python experiments/evaluate.py --on=pairs --models=runs/dpo --reference=runs/sft --data=rewardbench.jsonl
    python experiments/evaluate.py --models=runs/sft,runs/dpo --lm_eval=arc_easy,gsm8k

Comparisons are {"prompt", "chosen", "rejected"} with a "subset", as RewardBench's. Policies are compared with the first
of --models: by --judge, `f(records, first, second) -> P(first is better)`, which is asked in both orders, else by their
reward. The run folder gets report.md, summary.json, models.png and every policy's samples; what was measured once is
not measured again. Leaves out training.
"""

import dataclasses
from functools import partial

from rlax_ft.errors import InputError
from rlax_ft.evaluate.calibration import reliability
from rlax_ft.evaluate.model_report import judge_panels, judge_report, policy_panels, policy_report
from rlax_ft.evaluate.plots import plot_bars, plot_reliability
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.evaluation import Compared, Sampled, load_model, load_weights, model_names
from rlax_ft.harness.lm_eval import HarnessModel, lm_eval_scores
from rlax_ft.harness.run import open_run, write_text
from rlax_ft.harness.settings import DataSettings, RunSettings, flag
from rlax_ft.hf.folder import read_tokenizer
from rlax_ft.models.attention import KERNELS

# What is read with a model alone.
_OF_MODELS = (
    *('reference', 'batch_size', 'chat_template', 'dtype', 'attention', 'max_prompt_tokens', 'max_new_tokens'),
    *('truncate', 'task', 'seed'),
)


@dataclasses.dataclass(frozen=True)
class EvaluateSettings(DataSettings, RunSettings):
    """Flags of evaluate.py."""

    on: str = flag(
        'samples',
        'samples: what policies write for prompts. pairs: what judges say of --data, comparisons.',
        ('samples', 'pairs'),
    )
    models: str = flag(
        '',
        '[NAME=]PATH, several with commas: run folders, their checkpoints/STEP, model folders, hub ids; of an ensemble '
        'of reward models also runs/rm:min or runs/rm:lcb=K.',
    )
    reference: str = flag('', 'Model to which the KL of policies is measured; of --on=pairs the implicit reward.')
    reward: str = flag(
        '',
        "What completions are worth: gold (the task's, the default there), a reward model, MODULE:FUNCTION; as ppo.py.",
    )
    judge: str = flag('', 'MODULE:FUNCTION or FILE.py:FUNCTION(records, first, second) -> P(first is better), 0 to 1.')
    prompts: int = flag(0, 'How many prompts to sample; 0: all of --data, 512 of a --task.', at_least=0)
    samples: int = flag(1, 'Completions of each prompt.', at_least=1)
    temperature: float = flag(1.0, 'Of sampling; 0 takes the likeliest token, and measures no KL.', at_least=0)
    pass_at: str = flag('', 'Numbers k, such as 1,4: pass@k by --reward over --samples.')
    right: float = flag(1.0, 'Reward from which on a completion is right.', needs='pass_at')
    beta: float = flag(
        0.1, 'Of the implicit reward beta (log pi - log pi_ref) of --on=pairs.', above=0, needs='reference'
    )
    lm_eval: str = flag('', 'Tasks of the Language Model Evaluation Harness instead, several with commas.')
    lm_eval_limit: int = flag(0, 'Documents of each of its tasks; 0: all.', at_least=0, needs='lm_eval')
    lm_eval_tasks: str = flag('', 'Folder of its task files of your own.', needs='lm_eval')
    batch_size: int = flag(64, 'Rows sampled or scored at once.', at_least=1)
    chat_template: str = flag('', "For message lists: plain, chatml or a file; empty: the tokenizer's own, or plain.")
    dtype: str = flag('float32', 'Of parameters and activations.', ('float32', 'bfloat16'))
    attention: str = flag('auto', 'What computes attention; auto is what suits the platform.', KERNELS)


def evaluate(settings: EvaluateSettings) -> dict:
    """Measures all models; returns the summary."""
    names = check(settings)
    run = open_run(settings, 'evaluate')
    if run.summary:
        return run.summary
    if settings.lm_eval:
        summary, text = with_lm_eval(settings, run, names)
    else:
        reference = (
            load_model(settings, run, 'reference', settings.reference, 'reference') if settings.reference else None
        )
        summary, text = (on_pairs if settings.on == 'pairs' else on_samples)(settings, run, names, reference)
    write_text(run.folder / 'report.md', text + '\n')
    print(text)
    print(f'{run.folder}: report.md, summary.json, figures')
    return run.finish(summary)


def check(settings: EvaluateSettings) -> dict[str, str]:
    """The models by name; refuses flags that have no effect together.

    Raises:
      InputError: naming the flag.
    """
    names, pairs = model_names(settings.models), settings.on == 'pairs'
    unused = ('samples', 'pass_at', 'temperature', 'prompts') if pairs else ('beta',)
    if settings.lm_eval:
        unused = ('judge', 'reward', 'reference', 'data', 'task', 'on', 'samples', 'pass_at', 'temperature', 'prompts')
        unused += ('chat_template', 'max_prompt_tokens', 'max_new_tokens', 'truncate')
    elif pairs and not (names or settings.reward):
        unused += _OF_MODELS
    for name in unused:
        if getattr(settings, name) != getattr(EvaluateSettings, name):
            mode = '--lm_eval' if settings.lm_eval else f'--on={settings.on}'
            mode += ' without a model' if name in _OF_MODELS and not names else ''
            raise InputError(f'--{name}={getattr(settings, name)}: {mode} has no use for it; leave it out')
    if pairs and not settings.data:
        raise InputError('--on=pairs: give a file of comparisons {"prompt", "chosen", "rejected"} as --data')
    if not names and not (pairs and (settings.judge or settings.reward)):
        raise InputError('--models: give at least one run folder, model folder or hub id')
    if settings.pass_at and not (settings.reward or settings.task or not settings.data):
        raise InputError(f'--pass_at={settings.pass_at}: give the --reward that says which completions are right')
    return names


def on_samples(settings: EvaluateSettings, run, names: dict[str, str], reference) -> tuple[dict, str]:
    """(summary, report) of policies."""
    sampled, records, baseline = Sampled(settings, run, reference), [], None
    for name, path in names.items():
        record, samples = sampled.measure(name, partial(load_model, settings, run, name, path), baseline)
        records.append(record)
        baseline = baseline or samples
    plot_bars(run.folder / 'models.png', policy_panels(records))
    return {'models': records}, policy_report(records)


def on_pairs(settings: EvaluateSettings, run, names: dict[str, str], reference) -> tuple[dict, str]:
    """(summary, report) of reward models, policies as reward models, functions and judges."""
    compared = Compared(settings, run, reference)
    records = [compared.model(load_model(settings, run, name, path)) for name, path in names.items()]
    records += [compared.rule(name) for name in [settings.reward] if name]
    records += [compared.judge(name) for name in [settings.judge] if name]
    plot_bars(run.folder / 'models.png', judge_panels(records))
    if calibrated := {r['name']: reliability(r['margins']) for r in records if 'ece' in r}:
        plot_reliability(run.folder / 'reliability.png', calibrated)
    return {'models': [{k: v for k, v in r.items() if k != 'margins'} for r in records]}, judge_report(records)


def with_lm_eval(settings: EvaluateSettings, run, names: dict[str, str]) -> tuple[dict, str]:
    """(summary, report) of the harness's tasks."""
    tasks, records = [task.strip() for task in settings.lm_eval.split(',') if task.strip()], []
    for name, path in names.items():
        config, params, source, _ = load_weights(settings, path)
        asked = HarnessModel(config, params, read_tokenizer(source), settings.batch_size)
        how = dict(limit=settings.lm_eval_limit, include=settings.lm_eval_tasks)
        records.append({'name': name, **lm_eval_scores(asked, tasks, **how)})
    plot_bars(run.folder / 'models.png', policy_panels(records))
    return {'models': records}, policy_report(records)


if __name__ == '__main__':
    run_script(EvaluateSettings, evaluate)
