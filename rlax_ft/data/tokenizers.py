"""Tokenizers, all of them transformers' own: a word list for the embedded tasks, bytes or a trained BPE for text.

Leaves out chat templates (templates.py).
"""

import functools
import logging
import re
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rlax_ft.data.sources import LONE_SURROGATES
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


def encode_texts(tokenizer, texts: list[str], *, control: bool = False) -> list[list[int]]:
    """Token ids of whole texts, without BOS and EOS.

    Args:
      tokenizer: a transformers tokenizer.
      texts: N texts; a lone surrogate in one, which no encoding can write, becomes U+FFFD, and how many is logged.
      control: the characters of a special token are that token, as a chat template means them; otherwise they are
        text like any other.

    Raises:
      InputError: the tokenizer knows no other way to write a special token's characters.
    """
    given = _encodable(list(texts))
    # A prompt stands in every pair of a ranking, and an answer in several: each text is encoded once.
    texts = list(dict.fromkeys(given))
    written = [] if control else [i for i, text in enumerate(texts) if special_pattern(tokenizer).search(text)]
    plain = sorted(set(range(len(texts))) - set(written))
    encoded = [None] * len(texts)
    for index, split in ((plain, {}), (written, {'split_special_tokens': True})):
        if index:
            ids = tokenizer([texts[i] for i in index], add_special_tokens=False, **split).input_ids
            for i, row in zip(index, ids):
                encoded[i] = row
    _check_literal(tokenizer, [texts[i] for i in written], [encoded[i] for i in written])
    known = dict(zip(texts, encoded))
    return [list(known[text]) for text in given]


def warn_special(tokenizer, texts: list[str]) -> None:
    """Logs how many texts have the characters of a special token that is none."""
    found = [match[0] for match in map(special_pattern(tokenizer).search, texts) if match]
    if found:
        logging.warning(
            '%d texts have the characters of a special token, such as %r: ordinary text, not the token, which the chat '
            'template alone writes',
            len(found),
            found[0],
        )


def encode_continuations(
    tokenizer, texts: list[str], *, control: bool = False, after: list[str] | None = None
) -> list[list[int]]:
    """Token ids of texts that continue others, without BOS and EOS.

    SentencePiece puts a blank before what it takes for a beginning; here there is none, but where the tokenizer itself
    writes it behind a special token.

    Args:
      tokenizer: a transformers tokenizer.
      texts: N texts.
      control: as in `encode_texts`.
      after: N texts that they continue; only a special token at their end matters.
    """
    if not _blank_first(tokenizer):
        return encode_texts(tokenizer, texts, control=control)
    ends = [_last_special(tokenizer, text) for text in after or [''] * len(texts)]
    if control:
        marks = [end or '\n' for end in ends]
    else:  # A special token in front would be read as text, too.
        marks = ['' if end and _blank_behind(tokenizer, end) else '\n' for end in ends]
    ids = encode_texts(tokenizer, [mark + text for mark, text in zip(marks, texts)], control=control)
    starts = dict(zip(set(marks), encode_texts(tokenizer, list(set(marks)), control=True)))
    rows = []
    for mark, text, row in zip(marks, texts, ids):
        start = starts[mark]
        # Where the mark has become one token with what follows, the text stands alone.
        whole = row[: len(start)] == start
        rows.append(row[len(start) :] if whole else encode_texts(tokenizer, [text], control=control)[0])
    return rows


def decode_continuations(tokenizer, rows: list[list[int]]) -> list[str]:
    """The texts of tokens that continue others, special tokens left out: the reverse of `encode_continuations`.

    Decoded alone, SentencePiece would drop the blank that a first token begins with; so a line break is put in front,
    and cut off again.

    Args:
      tokenizer: a transformers tokenizer.
      rows: N lists of ids.
    """
    start = _blank_first(tokenizer)
    before = tokenizer.decode(start, skip_special_tokens=True)
    texts = tokenizer.batch_decode([[*start, *row] for row in rows], skip_special_tokens=True)
    return [text[len(before) :] for text in texts]


@functools.lru_cache(maxsize=16)
def _blank_first(tokenizer) -> tuple[int, ...]:
    """A line break's ids where the tokenizer, as SentencePiece, puts a blank before a text; empty where it does not."""
    newline = encode_texts(tokenizer, ['\n'], control=True)[0]
    blank = ''.join(tokenizer.convert_ids_to_tokens(newline[:1])).startswith('▁')
    return tuple(newline) if blank else ()


@functools.lru_cache(maxsize=64)
def _blank_behind(tokenizer, special):
    """Whether the tokenizer puts a blank between a special token and a text behind it."""
    ids = encode_texts(tokenizer, [f'{special}a'], control=True)[0]
    return ''.join(tokenizer.convert_ids_to_tokens(ids[1:2])).startswith('▁')


@functools.lru_cache(maxsize=16)
def special_pattern(tokenizer) -> re.Pattern:
    """Matches the characters of a special token, longer ones first."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = sorted(filter(None, added | set(tokenizer.all_special_tokens)), key=len, reverse=True)
    return re.compile('|'.join(map(re.escape, names)) or r'(?!)')


def special_ids(tokenizer) -> set[int]:
    """Ids of the special tokens."""
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)


def _last_special(tokenizer, text):
    ends = [match[0] for match in special_pattern(tokenizer).finditer(text) if match.end() == len(text)]
    return ends[0] if ends else None


def _check_literal(tokenizer, texts, encoded):
    control = special_ids(tokenizer) - {tokenizer.unk_token_id}
    for text, ids in zip(texts, encoded):
        if found := control.intersection(ids):
            name = tokenizer.convert_ids_to_tokens(min(found))
            raise InputError(
                f'the text {text[:40]!r}... has the characters {name!r}, which this tokenizer reads as a control token '
                'wherever they stand; leave them out'
            )


def _encodable(texts):
    clean = [LONE_SURROGATES.sub('\ufffd', text) for text in texts]
    if changed := sum(a != b for a, b in zip(texts, clean)):
        logging.warning('%d of %d texts: lone surrogates replaced by U+FFFD', changed, len(texts))
    return clean


def _wrap(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f'{BOS} $A', special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)
