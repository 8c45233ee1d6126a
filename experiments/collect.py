"""Human feedback: completions of the model are sampled, compared, and written to a judgements file.

    python experiments/collect.py --task=reviews --init_from=runs/sft --out=runs/feedback

The annotator is simulated: it ranks by the task's gold reward with Bradley-Terry noise. What it says goes where a
person's labels would go. Leaves out learning from it (reward_model.py, dpo.py).
"""

from rlax_ft.data.records import ranking_pairs, write_records
from rlax_ft.errors import InputError
from rlax_ft.harness.comparisons import judge
from rlax_ft.harness.run import open_run
from rlax_ft.harness.settings import FeedbackSettings, run_script
from rlax_ft.harness.starting_model import make_codec, starting_model
from rlax_ft.models.transformer import Transformer


def collect(settings: FeedbackSettings) -> dict:
    """Runs the stage; returns its summary."""
    run = open_run(settings, 'feedback')
    if run.summary:
        return run.summary
    if not settings.init_from:
        raise InputError('--init_from: give the run folder of the model whose completions are to be judged')
    codec = make_codec(settings, run, list)
    config, params = starting_model(settings, codec)
    judgements = judge(settings, codec, Transformer(config).apply, params)
    write_records(run.folder / 'judgements.jsonl', judgements)
    return run.finish({'judgements': len(judgements), 'comparisons': sum(len(ranking_pairs(j)) for j in judgements)})


if __name__ == '__main__':
    run_script(FeedbackSettings, collect)
