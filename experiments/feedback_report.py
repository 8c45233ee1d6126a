"""What judgements say of annotators and policies: agreement, bias, consistency, times, and a leaderboard.

    python experiments/feedback_report.py --data=feedback.sqlite --out=report

Reads a store of collect_feedback.py, a judgements JSONL, or a PandaLM file; writes report.md, report.html, figures and
summary.json. Leaves out collecting (collect_feedback.py).
"""

import dataclasses
import logging
from pathlib import Path

from rlax_ft.errors import InputError
from rlax_ft.feedback.items import read_items
from rlax_ft.feedback.report import markdown, report_parts, write_report
from rlax_ft.feedback.statistics import flat_summary, read_judgements, summary
from rlax_ft.feedback.store import gold_answers
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.run import write_json
from rlax_ft.harness.settings import Checked, flag


@dataclasses.dataclass(frozen=True)
class ReportSettings(Checked):
    """Flags of feedback_report.py."""

    data: str = flag('', 'The judgements: feedback.sqlite, a judgements JSONL, or a PandaLM .json.')
    out: str = flag('feedback_report', 'Folder that the report is written to.')
    gold: str = flag('', 'JSONL of the gold items with their answers; those of a store are known.')
    resamples: int = flag(1000, 'Of the bootstrap that makes intervals; 0 makes none.', at_least=0)
    seed: int = flag(0, 'Of the bootstrap.', at_least=0)


def report(settings: ReportSettings) -> dict:
    """Writes the report; returns its numbers."""
    if not settings.data:
        raise InputError('--data: give feedback.sqlite, a judgements JSONL, or a PandaLM file')
    folder = Path(settings.out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f'--out={folder}: is a file; give a folder')
    rows, fault = read_judgements(settings.data)
    if fault:
        logging.warning(fault)
    gold = gold_answers(settings.data)
    if settings.gold:
        gold |= {item['id']: item['content']['answer'] for item in read_items([settings.gold], purpose='gold')}
    numbers = summary(rows, seed=settings.seed, resamples=settings.resamples, gold=gold)
    try:
        files = write_report(folder, settings.data, numbers)
    except OSError as error:
        raise InputError(f'--out={folder}: cannot be written ({error.strerror}); give another folder') from error
    write_json(folder / 'summary.json', flat_summary(numbers))
    print(markdown(report_parts(settings.data, numbers, [])))
    print(f'{folder}: ' + ', '.join(files))
    return flat_summary(numbers)


if __name__ == '__main__':
    run_script(ReportSettings, report)
