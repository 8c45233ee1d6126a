"""Records as the model sees them: prompt, learned and masked tokens told apart, and what fits.

    python experiments/inspect_data.py --data=pairs.jsonl --model=FOLDER_OR_ID
    python experiments/inspect_data.py --data=OWNER/NAME:train --model=FOLDER_OR_ID --show=10 --chat_template=chatml

Special tokens are written out. Colours on a terminal; brackets elsewhere, or where NO_COLOR is set. Without a --model
that brings a tokenizer, one is trained on the data as the training scripts would. Trains nothing, writes nothing.
"""

import dataclasses
import logging
import sys
import tempfile
from pathlib import Path

import numpy as np

from rlax_ft.data.forms import convert
from rlax_ft.data.packing import batch_padding, pack_rows, padding_share, row_lengths
from rlax_ft.data.records import read_demonstrations, read_judged, read_pairs, read_prompts, read_rankings, record_texts
from rlax_ft.data.rows import fitting, ragged_rows
from rlax_ft.data.scored import read_scored, read_steps
from rlax_ft.data.show import count_table, legend, row_text, wants_colour
from rlax_ft.data.sources import read_raw
from rlax_ft.data.templates import Dialogue
from rlax_ft.errors import InputError
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.run import Run
from rlax_ft.harness.settings import Checked, DataSettings, ModelSettings, flag
from rlax_ft.harness.starting_model import make_codec

READERS = {
    'demonstrations': read_demonstrations,
    'judged': read_judged,
    'pairs': read_pairs,
    'rankings': read_rankings,
    'ratings': read_scored,
    'solutions': lambda source: [r | {'completion': ''.join(f'{s}\n' for s in r['steps'])} for r in read_steps(source)],
    'prompts': read_prompts,
}


@dataclasses.dataclass(frozen=True)
class InspectSettings(ModelSettings, DataSettings, Checked):
    """Flags of inspect_data.py."""

    show: int = flag(3, 'How many records to print.', at_least=0)
    first: int = flag(0, 'Number of the first record to print, from 0.', at_least=0)
    kind: str = flag('', 'Read the records as these; empty: as what the first one is.', tuple(['', *READERS]))


def inspect(settings: InspectSettings) -> dict:
    """Prints records and counts; returns the counts."""
    if not settings.data:
        raise InputError('--data: give the records to look at')
    kind = settings.kind or kind_of(settings.data)
    records = READERS[kind](settings.data)
    with tempfile.TemporaryDirectory() as folder:
        texts = lambda: record_texts(r if kind != 'prompts' else {**r, 'completion': ''} for r in records)  # noqa: E731
        codec = make_codec(settings, Run(Path(folder), None, None), texts)
    kept = fitting(codec, records) if kind != 'prompts' else records
    colour = wants_colour(sys.stdout)
    print(f'{settings.data}: {len(records):,} {kind}    {legend(colour)}')
    # What the warnings below would say is counted at the end.
    logging.disable(logging.WARNING)
    try:
        for number, record in enumerate(kept[settings.first : settings.first + settings.show], settings.first):
            show_record(codec, number, record, colour)
        return counts(codec, records, kept)
    finally:
        logging.disable(logging.NOTSET)


def kind_of(source: str) -> str:
    """What the first record of a source is."""
    record = next((convert(raw, where) for raw, where in read_raw(source)), {})
    fields = dict.fromkeys(('score', 'rating', 'scores', 'ratings'), 'ratings') if 'chosen' not in record else {}
    fields |= {'labels': 'solutions', 'chosen': 'pairs', 'completions': 'rankings', 'label': 'judged'}
    fields |= {'completion': 'demonstrations'}
    return next((kind for field, kind in fields.items() if field in record), 'prompts')


def show_record(codec, number, record, colour) -> None:
    """Prints each answer of a record behind its prompt."""
    answers = {k: record[k] for k in ('completion', 'chosen', 'rejected') if k in record}
    if 'ranks' in record:
        answers = {f'rank {rank}': c for rank, c in zip(record['ranks'], record['completions'])}
    for name in ('score', 'labels'):
        if name in record and 'completion' in record:
            numbers = ', '.join(f'{number:g}' for number in np.atleast_1d(record[name]))
            answers = {f'{name} {numbers}': record['completion']}
    if 'label' in record:
        answers = {f'label {str(record["label"]).lower()}': record['completion']}
    rows = codec.encode([record['prompt']] * len(answers), list(answers.values()))
    if not answers:
        answers, rows = {'prompt': None}, [Dialogue(codec.encode_prompts([record['prompt']])[0], [], [])]
    for name, row in zip(answers, rows):
        sizes = f'{len(row.prompt)} + {len(row.response)} tokens, {sum(row.learned)} learned'
        print(f'\n--- record {number}, {name}: {sizes}')
        print(row_text(codec.tokenizer, row, colour))


def counts(codec, records, kept) -> dict:
    """Prints and returns how many tokens there are, what was cut or left out, and the share of padding."""
    answers = [r.get('completions') or [r[k] for k in ('completion', 'chosen', 'rejected') if k in r] for r in kept]
    prompts = [record['prompt'] for record in kept]
    encoded = codec.encode_prompts(prompts)
    table = {'prompt': [len(ids) for ids in encoded]}
    numbers = {'records': len(records), 'left_out': len(records) - len(kept)}
    numbers['cut_prompts'] = codec.count_too_long(prompts)
    pairs = [(p, a) for p, some in zip(prompts, answers) for a in some]
    if pairs:
        rows = ragged_rows(codec, *map(list, zip(*pairs)))
        table |= {'learned': rows.counts, 'row': row_lengths(rows)}
        numbers['padding_share'] = float(batch_padding(rows))
        numbers['padding_share_packed'] = float(padding_share(pack_rows(rows, codec.max_length)))
    print('\n' + count_table({name: np.asarray(values).astype(int) for name, values in table.items()}))
    print(
        f'{numbers["left_out"]:,} of {numbers["records"]:,} records left out (response over {codec.max_new_tokens}), '
        f'{numbers["cut_prompts"]:,} prompts cut at {codec.max_prompt}'
    )
    if pairs:
        print(f'padding {numbers["padding_share"]:.1%} of all positions, packed {numbers["padding_share_packed"]:.1%}')
    return numbers


if __name__ == '__main__':
    run_script(InspectSettings, inspect)
