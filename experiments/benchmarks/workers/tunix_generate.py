"""Tunix's sampler on a random Llama, as a worker of alternate.py: `tunix_generate.py BATCH PROMPT NEW SHAPE`.

Sampling at temperature 1 from the whole distribution. Its input is text, so tokenising is in the time; it is a small
part. Runs where tunix is installed.
"""

import json
import sys
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from alternate import serve
from tunix.generate.sampler import CacheConfig, Sampler
from workers.tunix_step import llama
from workers.words import texts, word_tokenizer


def main():
    """Serves whole batches."""
    batch, prompt, new = (int(x) for x in sys.argv[1:4])
    shape = json.loads(sys.argv[4])
    # Tunix pads prompts to a power of two, with a token in front.
    cache = CacheConfig(2 * prompt + new + 1, shape['layers'], shape['kv_heads'], shape['width'] // shape['heads'])
    sampler = Sampler(llama(shape), word_tokenizer(shape['vocab']), cache)
    words, seeds = texts(shape, batch, prompt, 0), count()

    def work():
        # No token is the end: every row goes to its full length.
        out = sampler(
            words, new, max_prompt_length=prompt, temperature=1.0, top_p=1.0, eos_tokens=[-1], seed=next(seeds)
        )
        return {'tokens': len(out.tokens[0])}

    serve(work)


if __name__ == '__main__':
    main()
