"""Feedback: completions of the model are sampled, compared by an annotator, and written to a judgements file.

    python experiments/collect.py --task=reviews --init_from=runs/sft --out=runs/feedback
    python experiments/collect.py --data=prompts.jsonl --init_from=runs/sft --annotator=human --candidates=2
    python experiments/collect.py --data=prompts.jsonl --init_from=runs/sft --annotator=my_module:judge

The simulated annotator ranks by the task's gold reward with Bradley-Terry noise. With --annotator=human the samples are
written down, and the command to open the labelling page is said; given again when people have judged them all, the
script ends. Whoever judges, the records are the same. Leaves out learning from them (reward_model.py, dpo.py).
"""

import dataclasses

from rlax_ft.data.records import ranking_pairs, write_records
from rlax_ft.errors import InputError
from rlax_ft.harness.annotators import asked_of_people, check_annotator
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.comparisons import candidates_of, judge
from rlax_ft.harness.run import open_run
from rlax_ft.harness.settings import ComparisonSettings, LanguageSettings, flag
from rlax_ft.harness.starting_model import make_codec, starting_model
from rlax_ft.models.transformer import Transformer
from rlax_ft.parallel.hosts import on_first


@dataclasses.dataclass(frozen=True)
class CollectSettings(ComparisonSettings, LanguageSettings):
    """Flags of collect.py."""

    enough: int = flag(
        0, 'Items that people judge before it goes on; 0: all.', at_least=0, may_change=True, needs='annotator=human'
    )


def collect(settings: CollectSettings) -> dict:
    """Runs the stage; returns its summary."""
    if settings.data and settings.annotator == 'simulated':
        raise InputError(
            f'--data={settings.data}: the simulated annotator judges by the gold reward of an embedded task only; '
            'give --task or another --annotator instead'
        )
    if not settings.init_from:
        raise InputError('--init_from: give the run folder of the model whose completions are to be judged')
    check_annotator(settings.annotator)
    run = open_run(settings, 'feedback')
    if run.summary:
        return run.summary
    codec = make_codec(settings, run, list)
    config, params = starting_model(settings, codec)
    apply = Transformer(config).apply
    if settings.annotator == 'human':
        samples = lambda: to_judge(*candidates_of(settings, codec, apply, params), settings)  # noqa: E731
        judgements = asked_of_people(run, samples, settings.enough)
        if judgements is None:
            return {}
    else:
        judgements = judge(settings, codec, apply, params)
    on_first(lambda: write_records(run.folder / 'judgements.jsonl', judgements), 'judgements')
    return run.finish(
        {'judgements': len(judgements), 'comparisons': sum(len(ranking_pairs(j)) for j in judgements if j['ranks'])}
    )


def to_judge(records, candidates, settings) -> list[dict]:
    """Samples as the labelling page reads them."""
    policies = [settings.init_from] * settings.candidates
    return [
        {**record, 'id': str(i), 'completions': texts, 'policies': policies}
        for i, (record, texts) in enumerate(zip(records, candidates))
    ]


if __name__ == '__main__':
    run_script(CollectSettings, collect)
