"""Human feedback: completions of the model are sampled, compared, and written to a judgements file.

    python experiments/collect.py --task=reviews --init_from=runs/sft --out=runs/feedback

The annotator is simulated: it ranks by the task's gold reward with Bradley-Terry noise. What it says goes where a
person's labels would go. Leaves out learning from it (reward_model.py, dpo.py).
"""

import dataclasses

from rlax_ft.data.records import ranking_pairs, write_records
from rlax_ft.errors import InputError
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.comparisons import judge
from rlax_ft.harness.run import open_run
from rlax_ft.harness.settings import ComparisonSettings, LanguageSettings
from rlax_ft.harness.starting_model import make_codec, starting_model
from rlax_ft.models.transformer import Transformer
from rlax_ft.parallel.hosts import on_first


@dataclasses.dataclass(frozen=True)
class CollectSettings(ComparisonSettings, LanguageSettings):
    """Flags of collect.py."""


def collect(settings: CollectSettings) -> dict:
    """Runs the stage; returns its summary."""
    if settings.data:
        raise InputError(
            f'--data={settings.data}: the simulated annotator judges by the gold reward of an embedded task only; '
            'give --task instead'
        )
    if not settings.init_from:
        raise InputError('--init_from: give the run folder of the model whose completions are to be judged')
    run = open_run(settings, 'feedback')
    if run.summary:
        return run.summary
    codec = make_codec(settings, run, list)
    config, params = starting_model(settings, codec)
    judgements = judge(settings, codec, Transformer(config).apply, params)
    on_first(lambda: write_records(run.folder / 'judgements.jsonl', judgements), 'judgements')
    return run.finish({'judgements': len(judgements), 'comparisons': sum(len(ranking_pairs(j)) for j in judgements)})


if __name__ == '__main__':
    run_script(CollectSettings, collect)
