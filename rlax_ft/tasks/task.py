"""What an embedded task is: a vocabulary, prompts, demonstrations and a gold reward.

Leaves out tokens and arrays: a task speaks in text.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Task:
    """A language task that fits in one file.

    Attributes:
      name: as in `--task`.
      words: the vocabulary without the special tokens; text is words with blanks between them.
      max_new_tokens: longest completion in tokens, EOS included where the task has it.
      max_prompt_tokens: longest prompt in tokens, BOS included.
      ends: completions end with EOS; False means that all have exactly `max_new_tokens` words.
      prompts: (generator, n) -> n prompts, drawn at random.
      demonstrate: (generator, prompt) -> a completion such as an author would write.
      reward: (prompt, completion) -> the gold reward, exact.
      grammatical: (prompt, completion) -> whether the text is well formed.
    """

    name: str
    words: tuple[str, ...]
    max_new_tokens: int
    max_prompt_tokens: int
    ends: bool
    prompts: Callable[[np.random.Generator, int], list[str]]
    demonstrate: Callable[[np.random.Generator, str], str]
    reward: Callable[[str, str], float]
    grammatical: Callable[[str, str], bool]

    def demonstrations(self, count: int, seed: int) -> list[dict]:
        """`count` records `{"prompt", "completion"}`; the same seed gives the same records."""
        rng = np.random.default_rng([seed, 1])
        return [{'prompt': p, 'completion': self.demonstrate(rng, p)} for p in self.prompts(rng, count)]

    def sample_prompts(self, count: int, seed: int) -> list[str]:
        """`count` prompts; the same seed gives the same prompts."""
        return self.prompts(np.random.default_rng([seed, 2]), count)
