"""A language model as the judge of completions: the log-odds of two answers to a question, or a score that it writes.

The question is a template in which {prompt}, {completion} and any field of the record are filled in; a model with a
chat template gets it as a user's message. The log-odds need one reading and no sampling (arXiv 2408.15240). The judge
has a tokenizer of its own, so it may be of another family than the policy.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from rlax_ft.data.codec import Codec, Text
from rlax_ft.data.ragged import batch_width
from rlax_ft.data.records import plain_text
from rlax_ft.data.rows import token_rows
from rlax_ft.errors import InputError
from rlax_ft.hf.folder import load_pretrained
from rlax_ft.models.scoring import sequence_logps
from rlax_ft.models.transformer import Transformer
from rlax_ft.rewards.fields import field_of
from rlax_ft.sampling.text import make_sampler, map_rows, sample_prompts

_QUESTION = """{prompt}

Proposed answer: {completion}

Is the proposed answer right and helpful? Reply Yes or No.
"""
_BATCH = 32
_WRITTEN = 64  # Tokens in which a judge may write its score.


def judge(records, completions, *, model, template=_QUESTION, good='Yes', bad='No', pattern='', **_):
    """log p(good | question) - log p(bad | question), or, with a pattern, the number that the judge writes.

    Args:
      records: with a prompt, and the other fields that the template names.
      completions: texts.
      model: folder, run folder or hub id of the judge, any language model.
      template: the question, or a file that holds it.
      good: the answer that counts for a completion.
      bad: the answer that counts against it.
      pattern: a regular expression with one group, the score in the judge's reply, such as 'Score: (\\d+)'; the judge
        then decodes greedily, and a reply without a score is a failure. Empty: log-odds.

    Raises:
      InputError: there is no such model, or a field of the template is not in a record.
      ValueError: a reply without a score.
    """
    text = _template(template)
    questions = [_filled(text, record, completion) for record, completion in zip(records, completions)]
    if pattern:
        return [_score(pattern, reply) for reply in _written(model)(questions)]
    logps = _scored(model)(questions, (good, bad))
    return (logps[:, 0] - logps[:, 1]).tolist()


def fill_template(template: str, values: dict) -> str:
    """The template with {name} replaced by the value of that name; braces around anything else stay.

    Raises:
      InputError: a name has no value.
    """
    return re.sub(r'\{(\w+)\}', lambda match: str(field_of(values, match[1])), template)


def _filled(template, record, completion):
    values = {**record, 'completion': completion}
    if 'prompt' in record:
        values['prompt'] = plain_text(record['prompt'])
    return fill_template(template, values)


def _template(text):
    """The template, read where it is the name of a file."""
    try:
        return Path(text).read_text(encoding='utf-8') if '{' not in text and Path(text).is_file() else text
    except (OSError, ValueError) as error:
        raise InputError(f'judge(template={text!r}): cannot be read as UTF-8 ({error})') from error


def _score(pattern, reply):
    found = re.search(pattern, reply)
    if found is None:
        raise ValueError(f'the judge wrote {reply!r}, in which {pattern!r} finds no score')
    return float(found[1] if found.re.groups else found[0])


@functools.lru_cache(maxsize=2)
def _loaded(model):
    """(apply, params, tokenizer, config) of a judge."""
    folder = Path(model) / 'model'
    config, params, tokenizer = load_pretrained(folder if (folder / 'config.json').exists() else model)
    if 'backbone' in params:
        raise InputError(
            f'judge(model={model!r}): a reward model; give it as --reward itself, and here a language model'
        )
    if tokenizer is None:
        raise InputError(f'judge(model={model!r}): the folder holds no tokenizer')
    return Transformer(config).apply, params, tokenizer, config


@functools.lru_cache(maxsize=4)
def _scored(model) -> Callable:
    """`f(questions, answers) -> float32[N, answers]`, the log-probability of each answer to each question."""
    apply, params, tokenizer, config = _loaded(model)
    logps = jax.jit(lambda params, rows: sequence_logps(apply, {'params': params}, rows))

    def score(questions: list[str], answers: tuple[str, ...]) -> np.ndarray:
        room = max(len(ids) for ids in tokenizer(list(answers), add_special_tokens=False).input_ids) + 8
        codec = Codec(
            tokenizer, config.max_length - room, room, ends=False, truncate=True, vocab_size=config.vocab_size
        )
        asked = [_question(tokenizer, q) for q in questions]
        prompts = [q for q in asked for _ in answers]
        # A text is continued as it stands; a message gets the answer as a message.
        rows = token_rows(codec, prompts, list(answers) * len(questions))
        pad = batch_width(rows.tokens.shape[1], config.max_length) - rows.tokens.shape[1]
        rows = jax.tree.map(lambda leaf: np.pad(leaf, ((0, 0), (0, pad))), rows)
        return map_rows(functools.partial(logps, params), rows, batch_size=_BATCH).reshape(len(questions), -1)

    return score


@functools.lru_cache(maxsize=4)
def _written(model) -> Callable:
    """`f(questions) -> what the judge writes`, greedily."""
    apply, params, tokenizer, config = _loaded(model)
    room = min(_WRITTEN, config.max_length // 4)
    codec = Codec(tokenizer, config.max_length - room, room, truncate=True, vocab_size=config.vocab_size)
    sample = make_sampler(apply, codec, temperature=0.0)

    def write(questions: list[str]) -> list[str]:
        asked = [_question(tokenizer, question) for question in questions]
        rollout = sample_prompts(sample, params, codec, asked, jax.random.key(0), batch_size=_BATCH)
        return codec.decode(rollout)[0]

    return write


def _question(tokenizer, text: str) -> Text:
    """The question as a message where the tokenizer has a chat template, else the text."""
    return [{'role': 'user', 'content': text}] if tokenizer.chat_template else text
