"""TRL's GRPO step on a random Llama, as a worker of grpo_step.py: `trl_grpo.py SIZES SHAPE`, both JSON.

A turn is what `GRPOTrainer.train` does for one optimiser step: generation, texts, a rule's rewards, advantages, and the
update in `rows` completions at a time. Generation is what its `_generate_single_turn` takes. Runs where trl is
installed.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from rlax_ft.harness.words import texts, word_tokenizer

sys.path.append(str(Path(__file__).parent))
from torch_worker import OneStepATurn, llama


class Timed(GRPOTrainer):
    """Tells how long generation took, and how many tokens it gave."""

    sampling, drawn = 0.0, 0

    def _generate_single_turn(self, *args, **kwargs):
        started = time.perf_counter()
        out = super()._generate_single_turn(*args, **kwargs)
        self.sampling = time.perf_counter() - started
        self.drawn = sum(map(len, out[0]))
        return out


class SplitTurns(OneStepATurn):
    """Answers with the parts of the step."""

    def on_step_end(self, args, state, control, **_):
        """As its base, with what the trainer has told."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if not control.should_training_stop:
            whole = time.perf_counter() - self._turns._started
            told = {'seconds_sampling': self.trainer.sampling, 'seconds_update': whole - self.trainer.sampling}
            self._turns.done(tokens=self.trainer.drawn, **told)


def count(completions, **_):
    """The reward: how many ones the text has."""
    return [float(text.count('1')) for text in completions]


def trainer(sizes, shape, out):
    """TRL's trainer."""
    batch = sizes['prompts'] * sizes['group']
    config = GRPOConfig(
        output_dir=out,
        per_device_train_batch_size=sizes['rows'],
        gradient_accumulation_steps=batch // sizes['rows'],
        num_generations=sizes['group'],
        max_completion_length=sizes['new'],
        generation_kwargs={'min_new_tokens': sizes['new']},
        top_k=0,
        loss_type='grpo',
        beta=0.0,
        max_steps=1000,
        report_to=[],
        save_strategy='no',
        logging_strategy='no',
        disable_tqdm=True,
        learning_rate=1e-6,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )
    data = Dataset.from_dict({'prompt': texts(shape, sizes['prompts'], sizes['prompt'], 0)})
    return Timed(llama(shape), count, config, train_dataset=data, processing_class=word_tokenizer(shape['vocab']))


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as folder:
        turns = SplitTurns()
        turns.trainer = trainer(json.loads(sys.argv[1]), json.loads(sys.argv[2]), folder)
        turns.trainer.add_callback(turns)
        turns.trainer.train()
