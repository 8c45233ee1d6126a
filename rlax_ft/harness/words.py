"""Texts of known lengths for peers that take text: one word is one token.

It runs in the interpreter of a peer, and needs numpy, tokenizers and transformers only.
"""

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of one token a word, `w3` to `w{size - 1}`."""
    words = ['<pad>', '<bos>', '<eos>', *(f'w{i}' for i in range(3, size))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token='<pad>'))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token='<pad>', bos_token='<bos>', eos_token='<eos>')


def texts(shape: dict, count: int, length: int, seed: int) -> list[str]:
    """`count` texts of `length` words."""
    rng = np.random.default_rng(seed)
    return [' '.join(f'w{i}' for i in rng.integers(3, shape['vocab'], length)) for _ in range(count)]
