"""Our models in the Language Model Evaluation Harness (`pip install 'rlax_ft[lm_eval]'`), through its own API.

Its tasks ask three things of a model: the log-likelihood of continuations, that of whole texts, and completions up to a
stop text. Leaves out tasks and metrics, which are the harness's.
"""

import dataclasses
from collections import defaultdict
from functools import cached_property, partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from rlax_ft.data.codec import Codec
from rlax_ft.data.tokenizers import start_ids
from rlax_ft.errors import InputError
from rlax_ft.models.config import ModelConfig
from rlax_ft.models.transformer import Transformer
from rlax_ft.ops.logprobs import token_logprobs
from rlax_ft.sampling.text import make_sampler, map_rows, sample_prompts
from rlax_ft.types import Params

if TYPE_CHECKING:  # Slow to import.
    from transformers import PreTrainedTokenizerBase

# Longest completion where a task names no length.
_NEW_TOKENS = 256


def lm_eval_scores(model: 'HarnessModel', tasks: list[str], *, limit: int = 0, include: str = '') -> dict[str, float]:
    """`TASK/METRIC` of every task, and `TASK/METRIC_stderr`.

    Args:
      model: to be asked.
      tasks: names that the harness knows.
      limit: documents of each task; 0 takes all.
      include: folder of task files of your own.

    Raises:
      InputError: the harness is not installed, or knows no such task.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(f"--lm_eval: needs lm_eval ({error}); pip install 'rlax_ft[lm_eval]'") from error
    manager = TaskManager(include_path=include or None)
    for task in tasks:
        if task not in manager.all_tasks:
            raise InputError(
                f'--lm_eval={",".join(tasks)}: lm_eval knows no task {task!r}; `lm_eval ls tasks` lists them'
            )
    found = lm_eval.simple_evaluate(
        model=model.as_lm(), tasks=tasks, limit=limit or None, task_manager=manager, log_samples=False
    )
    scores = {}
    for task, numbers in found['results'].items():
        for name, value in numbers.items():
            # The harness names a metric with the filter that answers went through: `acc,none`.
            metric, _, through = name.partition(',')
            if isinstance(value, int | float) and through:
                scores[f'{task}/{metric}' if through == 'none' else f'{task}/{metric}/{through}'] = float(value)
    return scores


@dataclasses.dataclass(frozen=True)
class HarnessModel:
    """A language model as the harness asks it.

    Attributes:
      config, params: of the model.
      tokenizer: its own.
      batch_size: rows at once.
    """

    config: ModelConfig
    params: Params
    tokenizer: 'PreTrainedTokenizerBase'
    batch_size: int = 16

    def as_lm(self):
        """An `lm_eval.api.model.LM`."""
        from lm_eval.api.model import LM
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        ours, start = self, self.start

        class _Ours(LM):
            def loglikelihood(self, requests):
                return ours.continuations([ours.split(*request.args) for request in requests])

            def loglikelihood_rolling(self, requests):
                totals = []
                for (text,) in (request.args for request in requests):
                    windows = get_rolling_token_windows(
                        ours.encode(text), prefix_token=start[0], max_seq_len=ours.config.max_length - 1, context_len=1
                    )
                    pairs = [make_disjoint_window(window) for window in windows]
                    totals.append(sum(logp for logp, _ in ours.continuations(pairs)))
                return totals

            def generate_until(self, requests):
                return ours.complete([request.args for request in requests])

        return _Ours()

    @cached_property
    def start(self) -> list[int]:
        """What every text begins with: BOS, or EOS where there is none."""
        return start_ids(self.tokenizer) or [self.tokenizer.eos_token_id]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special ones."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context and of what follows it; blanks between them belong to what follows."""
        blanks = len(context) - len(context.rstrip())
        if blanks:
            context, continuation = context[:-blanks], context[-blanks:] + continuation
        known, whole = self.encode(context), self.encode(context + continuation)
        return self.start + known, whole[len(known) :]

    def continuations(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding writes it) of each continuation; long contexts lose their front."""
        groups = defaultdict(list)
        rows = [((known + new)[-self.config.max_length :], len(new)) for known, new in pairs]
        for i, (ids, new_ids) in enumerate(rows):
            # Few shapes compile: lengths are rounded up to powers of two.
            groups[_rounded(len(ids)), _rounded(new_ids)].append(i)
        found = [(0.0, True)] * len(pairs)
        for (length, most), members in groups.items():
            tokens = np.zeros((len(members), length), np.int32)
            real, count = np.zeros_like(tokens), np.zeros(len(members), np.int32)
            for row, i in enumerate(members):
                ids, count[row] = rows[i]
                tokens[row, : len(ids)], real[row, : len(ids)] = ids, 1
            score = partial(self._score, most)
            logps, greedy = map_rows(score, (tokens, real, count), batch_size=self.batch_size)
            for row, i in enumerate(members):
                found[i] = float(logps[row]), bool(greedy[row])
        return found

    def complete(self, asked: list[tuple[str, dict]]) -> list[str]:
        """A completion of each context, cut before the first of its stop texts."""
        groups = defaultdict(list)
        for i, (_, how) in enumerate(asked):
            heat = float(how.get('temperature', 0.0)) if how.get('do_sample') else 0.0
            groups[int(how.get('max_gen_toks', _NEW_TOKENS)), heat].append(i)
        texts = [''] * len(asked)
        for (longest, temperature), members in groups.items():
            longest = min(longest, self.config.max_length - 1)
            codec = Codec(self.tokenizer, self.config.max_length - longest, longest, truncate=True)
            sample = make_sampler(Transformer(self.config).apply, codec, temperature=temperature)
            prompts = [asked[i][0] for i in members]
            size = min(self.batch_size, len(prompts))
            rollout = sample_prompts(sample, self.params, codec, prompts, jax.random.key(0), batch_size=size)
            for i, text in zip(members, codec.decode(rollout)[0]):
                until = asked[i][1].get('until') or []
                stops = [text.find(stop) for stop in ([until] if isinstance(until, str) else until) if stop in text]
                texts[i] = text[: min(stops)] if stops else text
        return texts

    def _score(self, most, rows):
        return self._scorer(self.params, *rows, most=most)

    @cached_property
    def _scorer(self):
        apply = Transformer(self.config).apply

        @partial(jax.jit, static_argnames='most')
        def score(params, tokens, real, count, *, most):
            positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
            hidden, _ = apply({'params': params}, tokens, positions, real)
            # The last `count` real tokens of each row are scored, each from the hidden state before it.
            at = real.sum(axis=1)[:, None] - count[:, None] + jnp.arange(most)
            mask = jnp.arange(most) < count[:, None]
            at = jnp.where(mask, at, 1)
            targets = jnp.take_along_axis(tokens, at, axis=1)
            logits = apply({'params': params}, jnp.take_along_axis(hidden, at[..., None] - 1, axis=1), method='unembed')
            logps = jnp.where(mask, token_logprobs(logits, targets), 0.0).sum(axis=1)
            return logps, jnp.all((jnp.argmax(logits, axis=-1) == targets) | ~mask, axis=1)

        return score


def _rounded(count):
    return 1 << max(count - 1, 0).bit_length()
