"""Hugging Face's `generate` on a random Llama, as a worker of alternate.py: `hf_generate.py BATCH PROMPT NEW SHAPE`.

Sampling at temperature 1 from the whole distribution, every row to its full length. On a GPU the cache is static, so
that decoding is compiled. Runs where torch and transformers are installed.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from alternate import serve
from trl_step import llama


def main():
    """Serves whole batches."""
    batch, prompt, new = (int(x) for x in sys.argv[1:4])
    model = llama(json.loads(sys.argv[4])).eval()
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
    main()
