"""The labelling page: people compare responses in the browser, and what they say goes into one file for training.

    python experiments/collect_feedback.py --samples=samples.jsonl --out=feedback.sqlite
    python experiments/collect_feedback.py --run=runs/sft --run=runs/dpo --task=reviews --out=feedback.sqlite
    python experiments/collect_feedback.py --samples=samples.jsonl --host=0.0.0.0 --token=SECRET --out=feedback.sqlite
    python experiments/collect_feedback.py --out=feedback.sqlite --export=judgements.jsonl

reward_model.py and dpo.py read either file as --data; feedback_report.py says how far annotators agree. With --run,
responses are sampled in the background from the models of run folders, two policies against each other, while people
judge. Nothing is fetched from the network. Leaves out simulated annotators (collect.py).
"""

import dataclasses
import logging
from pathlib import Path
from typing import ClassVar

from rlax_ft.data.feedback import is_store
from rlax_ft.errors import InputError
from rlax_ft.feedback.items import read_items
from rlax_ft.feedback.protocol import Form
from rlax_ft.feedback.queue import STRATEGIES, Queue
from rlax_ft.feedback.security import is_loopback
from rlax_ft.feedback.store import Store, export_lines, load_rows, readable_rows
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.feedback_sampling import SamplingSettings, background
from rlax_ft.harness.run import write_text
from rlax_ft.harness.settings import flag

GUIDELINES = """\
Read the prompt, then both responses to their end. Choose the one that you would rather be given.

- What is **true** goes before what is well written, and what was **asked for** before what is beyond it.
- Longer is not better. Length counts only where it helps.
- A *tie* is for responses of the same worth; *both bad* for two that you would not want to be given.
- *Skip* what you cannot judge, and say why.
"""


@dataclasses.dataclass(frozen=True)
class CollectFeedbackSettings(SamplingSettings):
    """Flags of collect_feedback.py."""

    group: ClassVar[str] = 'algorithm'

    samples: tuple = flag((), 'JSONL of prompts with their responses, or a run folder; may be given several times.')
    out: str = flag('feedback.sqlite', 'The file of judgements, made where there is none; the same command goes on.')
    export: str = flag('', 'Write the judgements of --out to this JSONL, and end.')
    judgements: str = flag('', 'Put the judgements of this JSONL, as --export wrote it, into --out, and end.')
    host: str = flag('127.0.0.1', 'Address to serve on; 0.0.0.0 is the whole network, and needs --token.')
    port: int = flag(8600, 'Port; 0 takes a free one.', at_least=0, at_most=65535)
    token: str = flag('', 'What annotators must know, 8 characters or more; needed beyond this machine.')
    public_host: str = flag('', 'Further names under which the page is reached, with commas between.', needs='token')
    guidelines: str = flag('', 'Markdown file that annotators see on a key; empty: a few lines of our own.')
    criteria: str = flag('', 'What each response is rated on, 1 to 5, with commas between: helpful,harmless.')
    strength: str = flag('optional', 'Whether A and B say how much better, 1 to 7.', ('off', 'optional', 'required'))
    overlap: int = flag(1, 'Annotators that judge each item.', at_least=1)
    duplicate_rate: float = flag(0.0, 'Share of items that an annotator is asked again.', at_least=0, at_most=0.5)
    gold: str = flag('', 'JSONL of items with their answer (ranks), mixed in unseen.')
    gold_rate: float = flag(0.05, 'Share of gold items among those asked.', at_least=0, at_most=0.5, needs='gold')
    training: str = flag('', 'JSONL of items with their answer, which each annotator is shown first, and told.')
    training_items: int = flag(10, 'How many of them come first.', at_least=1, needs='training')
    responses: int = flag(2, 'Responses of an item made of single samples; three and more are ranked.', at_least=2)
    strategy: str = flag(
        'random',
        'What is asked first: uncertain, the smallest difference in score; disagree, where several scores differ most.',
        STRATEGIES,
    )
    seed: int = flag(0, 'Of the order of items and of the sides.', at_least=0)


def collect(settings: CollectFeedbackSettings) -> None:
    """Serves the page until it is stopped; or exports or loads, and ends."""
    check(settings)
    if settings.export:
        return export(settings)
    with Store(settings.out) as store:
        if settings.judgements:
            print(f'{settings.out}: {load_rows(store, settings.judgements)} judgements of {settings.judgements}')
            return
        serve(settings, store)


def check(settings: CollectFeedbackSettings) -> None:
    """Refuses flags that do not fit together.

    Raises:
      InputError: naming the flag.
    """
    if not is_store(settings.out):
        raise InputError(f'--out={settings.out}: give a file that ends in .sqlite')
    if settings.export and settings.judgements:
        raise InputError(f'--judgements={settings.judgements}: has no effect beside --export; give one after the other')
    if settings.export and not Path(settings.out).is_file():
        raise InputError(f'--out={settings.out}: no such file; there is nothing to export')
    if not is_loopback(settings.host) and not settings.token:
        raise InputError(
            f'--host={settings.host}: others can reach it; give --token=SECRET, which annotators must know'
        )
    if settings.token and (len(settings.token) < 8 or not settings.token.isascii()):
        raise InputError('--token: too short or not ASCII; give 8 characters or more')
    new = not Path(settings.out).exists()
    if new and not (settings.samples or settings.run or settings.judgements):
        raise InputError('--samples: give a JSONL of prompts with their responses, or --run=FOLDER to sample from')
    if settings.strategy == 'disagree' and len(settings.reward_model) == 1:
        raise InputError('--strategy=disagree: one reward model cannot disagree; give --reward_model several times')


def export(settings: CollectFeedbackSettings) -> None:
    """Writes what can be read of the store as JSONL."""
    rows, fault = readable_rows(settings.out)
    if fault:
        logging.warning('%s: %s; what could be read is written', settings.out, fault)
    write_text(Path(settings.export), ''.join(export_lines(rows)))
    print(f'{settings.export}: {len(rows)} judgements of {settings.out}')


def serve(settings: CollectFeedbackSettings, store: Store) -> None:
    """The page, until Ctrl-C."""
    try:
        from rlax_ft.feedback.app import Collection, guideline_hash
        from rlax_ft.feedback.serving import live_statistics, serve_app
    except ImportError as error:
        raise InputError('the page needs starlette and uvicorn; pip install "rlax_ft[feedback]"') from error
    try:
        text = Path(settings.guidelines).read_text(encoding='utf-8') if settings.guidelines else GUIDELINES
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f'--guidelines={settings.guidelines}: cannot be read ({error}); give a Markdown file'
        ) from error
    names = [name.strip() for name in settings.criteria.split(',') if name.strip()]
    form = Form(tuple(dict.fromkeys(names)), settings.strength, guideline_hash(text), settings.seed)
    queue = Queue(
        seed=settings.seed,
        overlap=settings.overlap,
        duplicate_rate=settings.duplicate_rate,
        gold_rate=settings.gold_rate if settings.gold else 0.0,
        training=settings.training_items if settings.training else 0,
    )
    collection = Collection(store, queue, form, text, settings.strategy)
    for source, purpose in ((settings.training, 'training'), (settings.gold, 'gold')):
        if source:
            collection.add(read_items([source], purpose=purpose))
    if settings.samples:
        collection.add(read_items(list(settings.samples), together=settings.responses))
    if not queue.names and not settings.run:
        raise InputError(f'--out={settings.out}: holds no item yet; give --samples=FILE.jsonl or --run=FOLDER')
    with background(settings, collection):
        serve_app(
            collection,
            host=settings.host,
            port=settings.port,
            token=settings.token,
            public_hosts=tuple(filter(None, settings.public_host.split(','))),
            statistics=live_statistics(collection),
        )


if __name__ == '__main__':
    run_script(CollectFeedbackSettings, collect)
