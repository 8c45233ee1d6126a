"""Tokenizers, all of them transformers' own: a word list for the embedded tasks, bytes or a trained BPE for text.

Leaves out chat templates (templates.py).
"""

import functools
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
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


def train_tokenizer(kind: str, texts: Iterable[str], special: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer for text: `bytes` (256 tokens and the special ones), or `bpe:SIZE` trained on `texts`.

    Args:
      kind: `bytes` or `bpe:SIZE`.
      texts: to train on.
      special: further special tokens, such as those that a chat template writes.

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
        vocab_size=int(size) if name == 'bpe' else 256 + len(_SPECIAL) + len(special),
        special_tokens=[AddedToken(token, special=True) for token in (*_SPECIAL, *special)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer)


@functools.lru_cache(maxsize=16)
def start_ids(tokenizer) -> list[int]:
    """What stands in front of a text: one BOS where the tokenizer itself would put it, or leaves that open."""
    bos = tokenizer.bos_token_id
    open_question = getattr(getattr(tokenizer, 'backend_tokenizer', None), 'post_processor', None) is None
    if bos is None or not (open_question or tokenizer('a').input_ids[:1] == [bos]):
        return []
    return [bos]


def encode_texts(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of whole texts, without BOS and EOS."""
    return tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []


def encode_continuations(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of texts that go on from others, without BOS and EOS.

    SentencePiece puts a blank before what it takes for a beginning; here there is none.
    """
    mark = encode_texts(tokenizer, ['\n'])[0]
    if not ''.join(tokenizer.convert_ids_to_tokens(mark[:1])).startswith('▁'):
        return encode_texts(tokenizer, texts)
    after_mark = encode_texts(tokenizer, ['\n' + text for text in texts])
    alone = encode_texts(tokenizer, texts)
    return [ids[len(mark) :] if ids[: len(mark)] == mark else own for ids, own in zip(after_mark, alone)]


def _wrap(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f'{BOS} $A', special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)
