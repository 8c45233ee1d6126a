"""Tokenizers, all of them transformers' own: a word list for the embedded tasks, bytes or a trained BPE for text.

Leaves out chat templates.
"""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlax_ft.errors import InputError

PAD, BOS, EOS = '<pad>', '<bos>', '<eos>'
_SPECIAL = (PAD, BOS, EOS)


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a word, words apart by blanks; ids 0, 1, 2 are PAD, BOS and EOS."""
    vocabulary = {word: index for index, word in enumerate([*_SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrap(tokenizer)


def train_tokenizer(kind: str, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer for text: `bytes` (256 tokens and the special ones), or `bpe:SIZE` trained on `texts`.

    Raises:
      InputError: `kind` is neither.
    """
    name, _, size = kind.partition(':')
    if kind != 'bytes' and not (name == 'bpe' and size.isdigit() and int(size) >= 300):
        raise InputError(f'--tokenizer={kind}: use bytes, or bpe:SIZE with a SIZE of at least 300 such as bpe:2048')
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=int(size) if name == 'bpe' else 256 + len(_SPECIAL),
        special_tokens=[AddedToken(token, special=True) for token in _SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer)


def _wrap(tokenizer):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)
