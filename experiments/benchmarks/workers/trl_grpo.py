"""TRL's GRPO step on a random Llama, as a worker of grpo_step.py: `trl_grpo.py SIZES SHAPE`, both JSON.

A turn is what `GRPOTrainer.train` does for one optimiser step: generation, texts, a rule's rewards, advantages, and the
update in `rows` completions at a time. Generation is what its `_generate_single_turn` takes. Runs where trl is
installed.
"""

import json
import sys
import tempfile
import time

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rlax_ft.harness.race import Turns
from rlax_ft.harness.words import texts, word_tokenizer


class Timed(GRPOTrainer):
    """Tells how long generation took, and how many tokens it gave."""

    sampling, drawn = 0.0, 0

    def _generate_single_turn(self, *args, **kwargs):
        started = time.perf_counter()
        out = super()._generate_single_turn(*args, **kwargs)
        self.sampling = time.perf_counter() - started
        self.drawn = sum(map(len, out[0]))
        return out


class SplitTurns(TrainerCallback):
    """Holds the trainer before each step until it is its turn, and answers with the parts of the step."""

    def __init__(self):
        """Opens the race; `trainer` is set by whoever made both."""
        self._turns, self.trainer = Turns(), None

    def on_step_begin(self, args, state, control, **_):
        """Waits."""
        control.should_training_stop = not self._turns.wait()
        self._started = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        """Answers."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if not control.should_training_stop:
            update = time.perf_counter() - self._started - self.trainer.sampling
            told = {'seconds_sampling': self.trainer.sampling, 'seconds_update': update}
            self._turns.done(tokens=self.trainer.drawn, **told)


def count(completions, **_):
    """The reward: how many ones the text has."""
    return [float(text.count('1')) for text in completions]


def llama(shape):
    """A random Llama of that shape, float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape['vocab'],
        hidden_size=shape['width'],
        num_hidden_layers=shape['layers'],
        num_attention_heads=shape['heads'],
        num_key_value_heads=shape['kv_heads'],
        head_dim=shape['width'] // shape['heads'],
        intermediate_size=shape['mlp'],
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).to('cuda' if torch.cuda.is_available() else 'cpu')


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
