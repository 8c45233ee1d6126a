"""What is measured on a policy's samples.

Leaves out sampling, and what the measures are.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Samples:
    """Samples of one policy and what they are worth.

    Attributes:
      records: N records with a `prompt`.
      completions: N texts.
      kl: float[N], log pi(y|x) - log pi_ref(y|x) of each sample; its mean estimates KL(pi || pi_ref) in nats.
        None where there is no reference.
      length: int[N], tokens.
      measures: float[N] by name, such as `gold`, `ungrammatical` or `reward`.
    """

    records: list[dict]
    completions: list[str]
    kl: np.ndarray | None
    length: np.ndarray
    measures: dict[str, np.ndarray]

    def summary(self) -> dict[str, float]:
        """The means: every measure, `kl` and `length`."""
        return {name: float(np.mean(values)) for name, values in self._columns().items()}

    def rows(self, index: np.ndarray) -> 'Samples':
        """Some of them."""
        pick = lambda values: [values[i] for i in index]  # noqa: E731
        measures = {name: values[index] for name, values in self.measures.items()}
        kl = None if self.kl is None else self.kl[index]
        return Samples(pick(self.records), pick(self.completions), kl, self.length[index], measures)

    def to_records(self, step: int) -> list[dict]:
        """One record a sample, for samples.jsonl: step, prompt, completion, and what was measured."""
        columns = self._columns()
        return [
            {'step': step, 'prompt': record['prompt'], 'completion': completion}
            | {name: round(float(values[i]), 6) for name, values in columns.items()}
            for i, (record, completion) in enumerate(zip(self.records, self.completions))
        ]

    def _columns(self):
        kl = {} if self.kl is None else {'kl': self.kl}
        return {**self.measures, **kl, 'length': self.length}
