"""The PyTorch peers on a random Llama, as a worker of train_step.py, generate.py and accelerator.py.

    torch_worker.py sft|dpo|dpo_cached|kto SHAPE     TRL's optimiser step; dpo_cached has its reference computed ahead
    torch_worker.py generate BATCH PROMPT NEW SHAPE  Hugging Face's `generate`, every row to its full length

SHAPE is one of rlax_ft.harness.benchmark, as JSON. What is timed of a step is what `Trainer.train` does with one batch:
forward, backward, clipping, AdamW, schedule; collating is left out, in the peer's favour. Sampling is at temperature 1
from the whole distribution; on a GPU the cache is static, so that decoding is compiled. Runs where torch and
transformers are installed, the steps where trl is, too.
"""

import json
import sys
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from rlax_ft.harness.race import Turns, serve
from rlax_ft.harness.words import texts, word_tokenizer


def llama(shape):
    """A random Llama of that shape."""
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
    dtype = torch.bfloat16 if shape['dtype'] == 'bfloat16' else torch.float32
    return LlamaForCausalLM(config).to(dtype).to('cuda' if torch.cuda.is_available() else 'cpu')


def trainer(stage, shape, out):
    """TRL's trainer of that stage."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

    rows = shape['rows']
    shared = dict(
        output_dir=out,
        per_device_train_batch_size=rows,
        max_steps=1000,
        report_to=[],
        save_strategy='no',
        logging_strategy='no',
        disable_tqdm=True,
        learning_rate=1e-5,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )
    model, tokenizer = llama(shape), word_tokenizer(shape['vocab'])
    if stage == 'sft':
        length = shape['prompt'] + shape['response']
        data = Dataset.from_dict({'text': texts(shape, rows, length - 1, 0)})
        config = SFTConfig(**shared, max_length=length)
        return SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer)
    prompt, answer = shape['prompt'], shape['response'] - 1
    if stage == 'kto':
        columns = {'prompt': texts(shape, rows, prompt, 0), 'label': [i % 2 == 1 for i in range(rows)]}
        columns['completion'] = [' ' + t for t in texts(shape, rows, answer, 1)]
        config = KTOConfig(**shared, max_length=prompt + answer + 1, train_sampling_strategy='sequential')
        data = Dataset.from_dict(columns)
        return KTOTrainer(model, llama(shape), config, train_dataset=data, processing_class=tokenizer)
    data = Dataset.from_dict(
        {
            'prompt': texts(shape, rows, prompt, 0),
            'chosen': [' ' + t for t in texts(shape, rows, answer, 1)],
            'rejected': [' ' + t for t in texts(shape, rows, answer, 2)],
        }
    )
    cached = stage == 'dpo_cached'
    config = DPOConfig(**shared, precompute_ref_log_probs=cached, max_length=prompt + answer + 1)
    return DPOTrainer(model, llama(shape), config, train_dataset=data, processing_class=tokenizer)


class OneStepATurn(TrainerCallback):
    """Holds the trainer before each step until it is its turn."""

    def __init__(self):
        """Opens the race."""
        self._turns = Turns()

    def on_step_begin(self, args, state, control, **_):
        """Waits."""
        control.should_training_stop = not self._turns.wait()

    def on_step_end(self, args, state, control, **_):
        """Answers."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if not control.should_training_stop:
            self._turns.done()


def train(stage, shape):
    """Serves steps until nobody asks."""
    turns = OneStepATurn()
    with tempfile.TemporaryDirectory() as out:
        t = trainer(stage, shape, out)
        t.add_callback(turns)
        t.train()


def generate(batch, prompt, new, shape):
    """Serves whole batches."""
    model = llama(shape).eval()
    tokens = torch.randint(3, model.config.vocab_size, (batch, prompt)).to(model.device)
    static = {'cache_implementation': 'static'} if torch.cuda.is_available() else {}

    def work():
        with torch.no_grad():
            out = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                top_k=0,
                max_new_tokens=new,
                min_new_tokens=new,
                **static,
            )
        return {'tokens': out.shape[1] - prompt}

    serve(work)


if __name__ == '__main__':
    what, *sizes, given = sys.argv[1:]
    if what == 'generate':
        generate(*map(int, sizes), json.loads(given))
    else:
        train(what, json.loads(given))
