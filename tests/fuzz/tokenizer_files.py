"""Mutated files of tokenizers: one that encodes and decodes without an id beyond the model, or one line."""

import shutil
import tempfile
from pathlib import Path

import values

from rlax_ft.data.codec import Codec
from rlax_ft.data.tokenizers import train_tokenizer, word_tokenizer
from rlax_ft.hf.folder import read_tokenizer

FOLDERS: list[Path] = []
PROMPTS = ['a b', '', [{'role': 'user', 'content': 'a b'}]]
ANSWERS = [' c <eos>', 'd', [{'role': 'assistant', 'content': 'e'}]]


def folders():
    """Bytes, a BPE, and words."""
    if not FOLDERS:
        root = Path(tempfile.mkdtemp(prefix='fuzz-tokenizers-'))
        made = {
            'bytes': train_tokenizer('bytes', ['a'], ('<|im_start|>', '<|im_end|>')),
            'bpe': train_tokenizer('bpe:300', ['a b c hello there'] * 20),
            'words': word_tokenizer('abcde'),
        }
        for name, tokenizer in made.items():
            tokenizer.save_pretrained(root / name)
            (root / name / 'generation_config.json').write_text('{"eos_token_id": [2, 5]}')
            FOLDERS.append(root / name)
    return FOLDERS


def mutation(rng, workdir):
    """Mutates one file, reads the tokenizer, and encodes texts and a conversation."""
    folder = workdir / 'model'
    shutil.copytree(rng.choice(folders()), folder)
    values.write_mutated(rng, rng.choice(sorted(folder.iterdir())))
    tokenizer = read_tokenizer(folder)
    codec = Codec(tokenizer, 256, 256, vocab_size=300)
    for prompt, answer in zip(PROMPTS, ANSWERS):
        row = codec.encode([prompt], [answer])[0]
        if max(row.prompt + row.response) >= 300 or min(row.prompt + row.response) < 0:
            return f'wrong: ids {row}'
        if codec.encode_prompts([prompt])[0] != row.prompt:
            return 'wrong: the sampler gets another prompt'
        tokenizer.decode(row.response)
    return None if codec.eos_ids else 'wrong: nothing ends a text'
