"""Items for the labelling page that are made while people work: responses of policies, and reward models' scores.

Models are loaded before the page is served, so that a mistake in a flag ends the program; a thread then samples and
scores. Leaves out the page (rlax_ft/feedback/).
"""

import contextlib
import dataclasses
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.feedback import said
from rlax_ft.data.records import read_prompts
from rlax_ft.data.rows import ranking_rows
from rlax_ft.errors import InputError
from rlax_ft.feedback.items import make_item
from rlax_ft.feedback.queue import priority
from rlax_ft.harness.run import Run
from rlax_ft.harness.settings import Checked, LanguageSettings, flag
from rlax_ft.harness.starting_model import make_codec, model_folder, starting_model, task_of
from rlax_ft.models.transformer import Transformer
from rlax_ft.rewards.learned import load_reward_model
from rlax_ft.sampling.text import make_sampler, map_rows, sample_prompts
from rlax_ft.tasks import Task, get_task

_BATCH = 16  # Prompts sampled, and items scored, at a time.
_LOOK_EVERY = 5.0  # Seconds between looks for a reward model that has been trained again.


@dataclasses.dataclass(frozen=True)
class SamplingSettings(Checked):
    """Flags of what is sampled and scored in the background."""

    group: ClassVar[str] = 'model'

    run: tuple = flag((), 'Run folder, or its checkpoints/STEP, to sample from; given twice, two against each other.')
    task: str = flag('', 'With --run: embedded task whose prompts are answered.')
    data: str = flag('', 'With --run: records whose prompts are answered.')
    comparisons: int = flag(1024, 'With --run: how many items to sample.', at_least=1)
    temperature: float = flag(1.0, 'With --run: of the sampling.', above=0)
    max_prompt_tokens: int = flag(0, 'With --run: longest prompt in tokens; 0: as in training.', at_least=0)
    max_new_tokens: int = flag(0, 'With --run: longest response in tokens; 0: as in training.', at_least=0)
    reward_model: tuple = flag(
        (), 'Run folder of a reward model that gives --strategy its scores; may be given several times.'
    )


@contextlib.contextmanager
def background(settings: SamplingSettings, collection) -> Iterator[None]:
    """Samples and scores into the collection while the body runs.

    Raises:
      InputError: a folder holds no model, or flags do not fit together.
    """
    jobs = []
    if settings.run:
        jobs.append(sampling_job(settings, collection))
    elif settings.task or settings.data:
        raise InputError('--task, --data: have no effect without --run=FOLDER, whose model answers their prompts')
    if settings.reward_model:
        if collection.strategy == 'random':
            raise InputError('--reward_model: has no effect under --strategy=random; give uncertain or disagree')
        jobs.append(scoring_job(settings, collection))
    stop = threading.Event()
    threads = [threading.Thread(target=_run, args=(job, stop), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=60)


def _run(job, stop):
    try:
        job(stop)
    except Exception as error:  # The page goes on: what has been sampled can be judged.
        logging.warning('sampling in the background ended: %s: %s', type(error).__name__, error)


def sampling_job(settings: SamplingSettings, collection) -> Callable:
    """`job(stop)` that samples items of --run; the models are loaded now."""
    policies = [_policy(settings, path) for path in settings.run]
    task = task_of(settings)
    seed = collection.form.seed
    if settings.data:
        records = list(itertools.islice(itertools.cycle(read_prompts(settings.data)), settings.comparisons))
    else:
        records = [{'prompt': prompt} for prompt in task.sample_prompts(settings.comparisons, seed)]
    pairs = list(itertools.combinations(range(len(policies)), 2)) or [(0, 0)]

    def job(stop):
        for number, start in enumerate(range(0, len(records), _BATCH)):
            batch = records[start : start + _BATCH]
            sides = [
                _sampled(policies[p], batch, (seed, start, side)) for side, p in enumerate(pairs[number % len(pairs)])
            ]
            if stop.is_set():
                return
            collection.add([_item(record, a, b) for record, a, b in zip(batch, *sides) if a['text'] != b['text']])

    return job


def _policy(settings, path):
    """(name, checkpoint, codec, parameters, sampler) of a run folder."""
    model_folder(path, 'run')  # Refuses a folder without a model under the flag's own name.
    given = LanguageSettings(
        init_from=path,
        task=settings.task,
        data=settings.data,
        max_prompt_tokens=settings.max_prompt_tokens,
        max_new_tokens=settings.max_new_tokens,
    )
    codec = make_codec(given, Run(Path(path), None, None), list)
    config, params = starting_model(given, codec)
    folder, checkpoint = Path(path), None
    if folder.parent.name == 'checkpoints':
        folder, checkpoint = folder.parent.parent, folder.name
    sample = make_sampler(Transformer(config).apply, codec, temperature=settings.temperature)
    return folder.resolve().name, checkpoint, codec, params, sample


def _sampled(policy, records, seed):
    name, checkpoint, codec, params, sample = policy
    key = jax.random.key(0)
    for part in seed:
        key = jax.random.fold_in(key, part)
    prompts = [record['prompt'] for record in records]
    rollout = sample_prompts(sample, params, codec, prompts, key, batch_size=_BATCH)
    texts, _ = codec.decode(rollout)
    return [{'text': text, 'policy': name, 'checkpoint': checkpoint} for text in texts]


def _item(record, a, b):
    fields = {key: value for key, value in record.items() if key != 'prompt'}
    return make_item(record['prompt'], [a, b], fields=fields)


def scoring_job(settings: SamplingSettings, collection) -> Callable:
    """`job(stop)` that scores the items with --reward_model, and all of them again when a model has been trained on."""
    folders = [model_folder(path, 'reward_model') for path in settings.reward_model]
    task = get_task(settings.task) if settings.task else None
    for folder in folders:
        load_reward_model(folder)  # A mistake is told before the page is served.

    def job(stop):
        scored, stamp = set(), None
        while not stop.is_set():
            now = [(folder / 'config.json').stat().st_mtime_ns for folder in folders]
            if now != stamp:
                stamp, scored = now, set()
                models = [model_scorer(folder, task) for folder in folders]
            with collection.lock:
                names = [name for name in collection.queue.names if name not in scored][:_BATCH]
            if not names:
                stop.wait(_LOOK_EVERY)
                continue
            items = [collection.store.item(name) for name in names]
            scores = np.stack([score(items) for score in models], axis=-1)  # [B, K, models]
            ranked = {
                item['id']: priority(rows[: len(item['completions'])].tolist(), collection.strategy)
                for item, rows in zip(items, scores)
            }
            collection.rank(ranked)
            scored.update(names)

    return job


def model_scorer(folder: Path, task: Task | None = None) -> Callable:
    """`score(items) -> float[B, K]` of a reward model, of items with "prompt" and "completions".

    An item gets NaN where a response is empty or longer than the model's context.

    Args:
      folder: of the model.
      task: whose samples they are; where there is none, lengths are those of the items.
    """
    model, tokenizer = load_reward_model(folder)
    context = model.config.max_length
    compiled = jax.jit(lambda model, candidates: model.candidates(candidates))

    def score(items):
        most = max(len(item['completions']) for item in items)
        scores = np.full((len(items), most), np.nan)
        texts = [[said(text) for text in item['completions']] for item in items]
        prompts = [said(item['prompt']) for item in items]
        uncut = iter(
            Codec(tokenizer, context, context).encode_uncut(
                [p for p, some in zip(prompts, texts) for _ in some], [t for some in texts for t in some]
            )
        )
        rows = [[next(uncut) for _ in some] for some in texts]
        # A text of a task that fills all its room was cut off there, and has no EOS.
        most_tokens = task.max_new_tokens + 1 if task else context - 1
        fits = [all(any(row.learned) and len(row.response) <= most_tokens for row in some) for some in rows]
        if not any(fits):
            return scores
        longest = max(len(row.response) for some, fit in zip(rows, fits) if fit for row in some)
        # Few widths compile; prompts keep the room that they need, as far as the responses leave it.
        room = max(context - max(len(row.prompt) for some in rows for row in some), 1)
        longest = min(max(longest, min(-(-longest // 16) * 16, room)), context - 1)
        records = [
            {'prompt': p, 'completions': some, 'ranks': [0] * len(some)}
            for p, some, f in zip(prompts, texts, fits)
            if f
        ]
        codec = Codec(tokenizer, context - longest, longest, truncate=True)
        if task:
            lengths = task.max_prompt_tokens, task.max_new_tokens
            codec = Codec(tokenizer, *lengths, ends=task.ends, truncate=True, cut_off=True)
        batch = ranking_rows(codec, records)
        found = map_rows(lambda c: compiled(model, c), batch.candidates, batch_size=_BATCH)
        scores[np.flatnonzero(fits), : found.shape[1]] = found
        return scores

    return score
