"""Conversations of a model with a text environment: played, measured and written down; or demonstrations for sft.py.

    python experiments/converse.py --env=calculator --demonstrations=4000 --out=runs/shown
    python experiments/sft.py --data=runs/shown/demonstrations.jsonl --tokenizer=bytes --model=tiny --out=runs/sft
    python experiments/converse.py --env=calculator --init_from=runs/sft --out=runs/played
    python experiments/converse.py --env=my_talks.py:counts --data=numbers.jsonl --model=FOLDER_OR_ID

An environment of your own is MODULE:FUNCTION; --data gives its records where it brings none. Leaves out training.
"""

import dataclasses

import jax
import numpy as np

from rlax_ft.data.records import read_prompts, write_records
from rlax_ft.envs.text import TextEnvironment
from rlax_ft.errors import InputError
from rlax_ft.harness.command_line import run_script
from rlax_ft.harness.conversations import ConversationSettings, make_conversations, text_environment
from rlax_ft.harness.run import open_run
from rlax_ft.harness.settings import LanguageSettings, RunSettings, flag
from rlax_ft.harness.starting_model import make_codec, model_source, starting_model
from rlax_ft.models.transformer import Transformer
from rlax_ft.sampling.progress import shown

_BATCH = 64


@dataclasses.dataclass(frozen=True)
class ConverseSettings(ConversationSettings, LanguageSettings):
    """Flags of converse.py."""

    demonstrations: int = flag(
        0, "Write so many of the environment's own demonstrations, and play nothing; no model is needed.", at_least=0
    )
    conversations: int = flag(
        256, 'How many conversations to play, each from another record as long as there are any.', at_least=1
    )
    temperature: float = flag(1.0, 'Of sampling; 0 takes the likeliest token.', at_least=0)


def converse(settings: ConverseSettings) -> dict:
    """Runs the stage; returns its summary."""
    env = text_environment(settings.env)
    if settings.task:
        raise InputError(f'--task={settings.task}: has no effect here; --env says what is learned')
    if not settings.demonstrations and not model_source(settings):
        raise InputError('--init_from, --model: give the run folder or model that talks, or --demonstrations')
    # All but the environment's name is of conversations that are played.
    read = {'env', 'demonstrations', *(field.name for field in dataclasses.fields(RunSettings))}
    read |= {'coordinator', 'num_processes', 'process_id'}
    for name in (field.name for field in dataclasses.fields(settings)) if settings.demonstrations else ():
        if name not in read and getattr(settings, name) != getattr(ConverseSettings, name):
            raise InputError(
                f'--{name}={getattr(settings, name)}: has no effect beside --demonstrations; leave one out'
            )
    run = open_run(settings, 'converse')
    if run.summary:
        return run.summary
    if settings.demonstrations:
        demonstrations = env.demonstrations(settings.demonstrations, settings.seed)
        write_records(run.folder / 'demonstrations.jsonl', demonstrations)
        return run.finish({'demonstrations': len(demonstrations)})
    records = conversation_records(settings, env)
    codec = make_codec(settings, run, list)
    config, params = starting_model(settings, codec)
    how = dict(temperature=settings.temperature)
    collect = make_conversations(settings, env, codec, Transformer(config).apply, **how)
    played, scores = [], []
    devices = jax.device_count()
    size = -(-min(_BATCH, len(records)) // devices) * devices
    for start in shown(range(0, len(records), size), 'conversations'):
        # Every batch has one shape; what fills up the last one is left out.
        batch = [records[i % len(records)] for i in range(start, start + size)]
        talks = collect(params, batch, jax.random.fold_in(jax.random.key(settings.seed), start))
        count = min(size, len(records) - start)
        for i in range(count):
            said = {'messages': talks.messages[i], 'reward': float(talks.scores[i]), 'turns': int(talks.turns[i])}
            played.append({**said, 'ended': bool(talks.ended[i])})
        scores.append(talks.scores[:count])
    write_records(run.folder / 'conversations.jsonl', played)
    scores = np.concatenate(scores)
    summary = {'conversations': len(played), 'reward': float(scores.mean()), 'reward_std': float(scores.std())}
    summary |= {'turns': float(np.mean([p['turns'] for p in played]))}
    summary |= {'cut': float(np.mean([not p['ended'] for p in played]))}
    return run.finish(summary | ({'optimum': env.optimum(records)} if env.optimum else {}))


def conversation_records(settings: ConverseSettings, env: TextEnvironment) -> list[dict]:
    """What the conversations are about.

    Raises:
      InputError: neither the environment nor --data says it.
    """
    if settings.data:
        records = read_prompts(settings.data, optional=True)
        return [records[i % len(records)] for i in range(settings.conversations)]
    if env.records is None:
        raise InputError(f'--env={settings.env}: brings no records of its own; give --data')
    return env.records(settings.conversations, settings.seed + 1000)


if __name__ == '__main__':
    run_script(ConverseSettings, converse)
