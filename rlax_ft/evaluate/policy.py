"""What is measured on a policy's samples where the task has a gold reward.

Leaves out sampling.
"""

import dataclasses

import numpy as np

from rlax_ft.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Measured:
    """Samples of one policy and what they are worth.

    Attributes:
      completions: N texts.
      gold: float[N].
      kl: float[N], log pi(y|x) - log pi_ref(y|x) of each sample; its mean estimates KL(pi || pi_ref) in nats.
      length: int[N], tokens.
      ungrammatical: bool[N].
    """

    completions: list[str]
    gold: np.ndarray
    kl: np.ndarray
    length: np.ndarray
    ungrammatical: np.ndarray

    def summary(self) -> dict[str, float]:
        """The means: `gold`, `kl`, `length`, `ungrammatical`."""
        names = ('gold', 'kl', 'length', 'ungrammatical')
        return {name: float(np.mean(getattr(self, name))) for name in names}


def measure(
    task: Task,
    prompts: list[str],
    completions: list[str],
    ended: list[bool],
    *,
    logps: np.ndarray,
    ref_logps: np.ndarray,
    length: np.ndarray,
) -> Measured:
    """Scores samples by the task's gold reward; one that did not end counts as ungrammatical.

    Args:
      task: the task.
      prompts: N texts.
      completions: N texts, truncated at their end.
      ended: [N], whether the policy ended the text.
      logps: float[N], log pi(y | x).
      ref_logps: float[N], log pi_ref(y | x).
      length: int[N], tokens.
    """
    gold = np.asarray([task.reward(p, c) for p, c in zip(prompts, completions)])
    grammatical = [task.grammatical(p, c) and e for p, c, e in zip(prompts, completions, ended)]
    return Measured(completions, gold, logps - ref_logps, length, ~np.asarray(grammatical, bool))
