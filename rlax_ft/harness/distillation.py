"""What distill.py needs around its loop: teachers by domain, completions of the student or of the data, hints.

Leaves out the objective (objectives/distill.py).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.messages import Conversation, tools_of
from rlax_ft.data.rows import prompt_arrays, prompt_of
from rlax_ft.errors import InputError
from rlax_ft.harness.rewards import check_vocabulary
from rlax_ft.harness.starting_model import model_folder
from rlax_ft.harness.step import within_mesh
from rlax_ft.hf.folder import load_pretrained
from rlax_ft.models.transformer import Transformer
from rlax_ft.objectives.distill import TeacherHead, hidden_before_tokens, teacher_head
from rlax_ft.rewards.judge import fill_template
from rlax_ft.types import Params, Rollout


@dataclasses.dataclass(frozen=True)
class Teacher:
    """One teacher.

    Attributes:
      hidden: `f(params, rollout) -> float[B, N, E]`, compiled.
      head: `f(params) -> TeacherHead`, compiled.
      params: None where the policy is its own teacher.
      longest: tokens that it reads.
    """

    hidden: Callable
    head: Callable
    params: Params | None
    longest: int

    def read(self, policy: Params, rollout: Rollout) -> tuple[jax.Array, TeacherHead]:
        """(hidden states before the completion's tokens, LM head).

        Args:
          policy: the policy's parameters now, which a policy that teaches itself reads with.
          rollout: the completions behind the teacher's prompts.
        """
        params = policy if self.params is None else self.params
        return self.hidden(params, rollout), self.head(params)


def make_teachers(settings, codec: Codec, learner) -> dict[str, Teacher]:
    """The teachers that --teacher names, by domain; '' is the domain where there is one teacher for all.

    Raises:
      InputError: no such model, another vocabulary, or a teacher that could not teach anything.
    """
    named = check_teachers(settings)
    teachers = {}
    for domain, source in named.items():
        if source == 'self':
            config, params, apply = learner.config, None, learner.apply
        else:
            config, params, tokenizer = load_pretrained(_teacher_folder(source), dtype=settings.dtype)
            if 'backbone' in params:
                raise InputError(f'--teacher={source}: a reward model where a language model is needed')
            if tokenizer is None:
                raise InputError(f'--teacher={source}: holds no tokenizer, so its words cannot be compared; add it')
            check_vocabulary(f'--teacher={source}', tokenizer, codec)
            config = dataclasses.replace(config, dtype=settings.dtype, kernel=settings.attention)
            apply = Transformer(config).apply
        if config.max_length < codec.max_length:
            raise InputError(
                f'--teacher={source}: reads {config.max_length} tokens, and --max_prompt_tokens={codec.max_prompt} and '
                f'--max_new_tokens={codec.max_new_tokens} are more; give smaller ones'
            )
        hidden = within_mesh(settings, jax.jit(partial(hidden_before_tokens, apply)))
        head: Callable = jax.jit(partial(teacher_head, apply))
        if params is not None:  # Of a fixed teacher it is made once.
            made = head(params)
            head = lambda _, made=made: made  # noqa: E731
        teachers[domain] = Teacher(hidden, head, params, config.max_length)
    return teachers


def check_teachers(settings) -> dict[str, str]:
    """{domain: folder, hub id or self} that --teacher names, looked up before a model is loaded.

    Raises:
      InputError: a folder without a model, or flags that do not fit it.
    """
    named = _named(settings)
    if 'self' in named.values() and not settings.hint:
        raise InputError('--teacher=self: would read what the policy reads; give --hint, such as a file with {answer}')
    for source in named.values():
        if source != 'self':
            _teacher_folder(source)
    return named


def _teacher_folder(source):
    """A folder with a model, or the id of one on the hub."""
    return source if source.count('/') == 1 and not Path(source).exists() else model_folder(source, 'teacher')


def _named(settings) -> dict[str, str]:
    """{domain: folder, hub id or self}."""
    parts = [part.strip() for part in settings.teacher.split(',') if part.strip()]
    if not parts:
        raise InputError('--teacher: give a folder, a run folder, a hub id, self, or DOMAIN=FOLDER,DOMAIN=FOLDER')
    if len(parts) == 1 and ('=' not in parts[0] or Path(parts[0]).exists()):
        if settings.domain_field != type(settings).domain_field:
            raise InputError(f'--domain_field={settings.domain_field}: has no effect with one --teacher for all')
        return {'': parts[0]}
    pairs = [part.partition('=') for part in parts]
    if not all(domain and source for domain, _, source in pairs) or len({d for d, _, _ in pairs}) < len(pairs):
        raise InputError(f'--teacher={settings.teacher}: several teachers are DOMAIN=FOLDER, each domain once')
    return {domain: source for domain, _, source in pairs}


def by_domain(records: list[dict], teachers: dict[str, Teacher], field: str) -> dict[str, np.ndarray]:
    """The numbers of the records that each teacher teaches.

    Raises:
      InputError: a record without a domain, or of one without a teacher; a teacher without records.
    """
    if '' in teachers:
        return {'': np.arange(len(records))}
    found: dict[str, list[int]] = {domain: [] for domain in teachers}
    for number, record in enumerate(records):
        domain = record.get(field)
        if domain not in found:
            raise InputError(
                f'record {number + 1}: field "{field}" is {domain!r}, and --teacher has {", ".join(map(repr, found))}'
            )
        found[domain].append(number)
    for domain, numbers in found.items():
        if not numbers:
            raise InputError(f'--teacher: no record has the domain {domain!r} in its field "{field}"')
    return {domain: np.asarray(numbers) for domain, numbers in found.items()}


def domain_schedule(sizes: dict[str, int], steps: int, seed: int) -> list[tuple[str, int]]:
    """(domain of each step's batch, how many batches that domain had before): drawn in proportion to the sizes."""
    names = list(sizes)
    shares = np.asarray([sizes[name] for name in names], float)
    drawn = np.random.default_rng([seed, 4]).choice(len(names), size=steps, p=shares / shares.sum())
    before = dict.fromkeys(names, 0)
    schedule = []
    for name in (names[i] for i in drawn):
        schedule.append((name, before[name]))
        before[name] += 1
    return schedule


def hinted_prompts(settings, codec: Codec, teachers: dict[str, Teacher], records: list[dict]):
    """The teachers' prompts with --hint as (tokens [N, P], mask [N, P]); None where they read the student's.

    Raises:
      InputError: a hint's field is missing from a record, or a prompt with its hint is longer than a teacher reads.
    """
    if not settings.hint:
        return None
    path = Path(settings.hint)
    template = path.read_text(encoding='utf-8') if '{' not in settings.hint and path.is_file() else settings.hint
    if '{prompt}' not in template:
        raise InputError(f'--hint={settings.hint}: has no {{prompt}}, and stands in its place; put it in')
    room = min(teacher.longest for teacher in teachers.values()) - codec.max_new_tokens
    prompts = [with_hint(prompt_of(record), template, record) for record in records]
    longest = max(map(len, dataclasses.replace(codec, max_prompt=room, truncate=False).encode_prompts(prompts)))
    return prompt_arrays(dataclasses.replace(codec, max_prompt=longest, truncate=False), prompts)


def with_hint(prompt, template: str, record: dict):
    """A prompt as the teacher reads it; of messages the last one that is not the assistant's is filled in."""
    if isinstance(prompt, str):
        return fill_template(template, {**record, 'prompt': prompt})
    messages = [dict(message) for message in prompt]
    last = max(i for i, message in enumerate(messages) if message['role'] != 'assistant')
    messages[last]['content'] = fill_template(template, {**record, 'prompt': messages[last].get('content') or ''})
    return Conversation(messages, tools_of(prompt))


def given_completions(codec: Codec, records: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """The data's completions as (tokens [N, max_new_tokens], mask [N, max_new_tokens]).

    Raises:
      InputError: one learns nothing, is longer, or has turns of others between its own.
    """
    tokens = np.full((len(records), codec.max_new_tokens), codec.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    rows = codec.encode([prompt_of(r) for r in records], [r['completion'] for r in records])
    for i, row in enumerate(rows):
        if not row.response or len(row.response) > codec.max_new_tokens:
            raise InputError(
                f'record {i + 1}: the completion has {len(row.response)} tokens; 1 to {codec.max_new_tokens} '
                '(--max_new_tokens) were expected'
            )
        if not all(row.learned):
            raise InputError(f'record {i + 1}: the completion has turns of others; its last answer alone was expected')
        tokens[i, : len(row.response)] = row.response
        mask[i, : len(row.response)] = row.learned
    return tokens, mask


def mixed(rollout: Rollout, tokens: np.ndarray, mask: np.ndarray, own: int) -> Rollout:
    """The rollout with the student's completions in its first `own` rows, and the data's in the others."""
    rows = (jnp.arange(rollout.tokens.shape[0]) < own)[:, None]
    put = lambda sampled, given: jnp.where(rows, sampled, given)  # noqa: E731
    return replace(
        rollout, tokens=put(rollout.tokens, tokens), mask=put(rollout.mask, mask), logps=put(rollout.logps, 0.0)
    )
