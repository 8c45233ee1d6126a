"""Any record of any form, from any storage: tokens of the template's own text, of which the assistant's is learned."""

import gzip
import itertools
import json
import logging

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlax_ft.data.codec import Codec
from rlax_ft.data.judged import judged_answers, read_answers
from rlax_ft.data.records import read_demonstrations, read_judged, read_pairs, read_prompts, read_rankings
from rlax_ft.data.templates import TEMPLATES
from rlax_ft.data.tokenizers import train_tokenizer
from rlax_ft.errors import InputError

TOOLS = [{'type': 'function', 'function': {'name': 'weather', 'parameters': {'type': 'object'}}}]
CALLS = [{'function': {'name': 'weather', 'arguments': {'city': 'Rome'}}}]
# As published templates show tools: schemas first, calls as JSON in the assistant's turn; it marks no generation.
WITH_TOOLS = (
    '{{ bos_token }}{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}'
    '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}'
    '{% for call in m.tool_calls %}<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}'
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
UNMARKED = TEMPLATES['chatml'].replace('{%- generation %}', '').replace('{%- endgeneration %}', '')
NAMES = {'plain': TEMPLATES['plain'], 'chatml': TEMPLATES['chatml'], 'tools': WITH_TOOLS, 'unmarked': UNMARKED}


def sentencepiece():
    """Blanks are part of words, one is put before a text, and what is not known falls back to bytes."""
    pieces = ['<pad>', '<bos>', '<eos>', *(f'<0x{i:02X}>' for i in range(256)), '▁', *'ab:/Hinumsto', '▁a', 'ab', '▁ab']
    merges = [('▁', 'a'), ('a', 'b'), ('▁a', 'b')]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ('<|im_start|>', '<|im_end|>')])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token='<pad>', bos_token='<bos>', eos_token='<eos>')


def make(kind, template):
    special = ('<|im_start|>', '<|im_end|>')
    tokenizer = sentencepiece() if kind == 'pieces' else train_tokenizer(kind, ['ab ab\n\nba'] * 20, special)
    tokenizer.chat_template = template
    return tokenizer


KINDS = [(name, make(kind, NAMES[name])) for kind in ('bytes', 'bpe:300', 'pieces') for name in NAMES]
PLAIN = dict(zip(('bytes', 'bpe:300', 'pieces'), (tokenizer for name, tokenizer in KINDS if name == 'plain')))
TEXT = st.text(st.sampled_from("ab \n<|>/s'é😀\ud83d�"), max_size=6) | st.sampled_from(
    ['</s>', '<bos>', 'a<eos>', '<eos>b', '<|im_end|>', '\n', '', ' ab', '  ab', 'It is']
)
ROLE = st.sampled_from(['user', 'assistant', 'assistant', 'system', 'tool'])
EXTRA = st.sampled_from([{}, {}, {}, {}, {'weight': 0}, {'train': True}, {'tool_calls': CALLS}, {'name': None}])
MESSAGES = st.lists(st.builds(lambda r, c, e: {'role': r, 'content': c, **e}, ROLE, TEXT, EXTRA), max_size=5)
# Most conversations are in order, so that they get as far as their tokens.
ASKED = st.builds(lambda c: [{'role': 'user', 'content': c}], TEXT)
SAID = st.builds(lambda c, e: [{'role': 'assistant', 'content': c, **e}], TEXT, EXTRA)
TALK = st.builds(lambda *parts: [*itertools.chain(*parts)], ASKED, SAID, ASKED, SAID)
SHARE = st.lists(st.builds(lambda r, v: {'from': r, 'value': v}, st.sampled_from(['human', 'gpt', 'system']), TEXT))
ODD = st.sampled_from([None, 5, True, [], {}, float('nan')])
ANY = st.one_of(TEXT, TEXT, MESSAGES, ODD)
FIELDS = {
    'prompt': TEXT | ASKED | TALK | ANY,
    **dict.fromkeys(('completion', 'chosen', 'rejected'), TEXT | SAID | ANY),
    'messages': TALK | MESSAGES | ODD,
    'conversations': SHARE | ODD,
    'completions': st.lists(TEXT | SAID, min_size=2, max_size=2) | st.lists(ANY, max_size=3) | ODD,
    'ranks': st.just([0, 1]) | st.just([1, 0]) | ODD,
    **dict.fromkeys(('label', 'kto_tag'), st.booleans() | ODD),
    'tools': st.just(TOOLS) | ODD,
    'history': st.just([['ab', 'ba']]) | ODD,
}
FORMS = [
    ('prompt', 'completion'),
    ('prompt', 'completion', 'tools'),
    ('prompt', 'completion', 'label'),
    ('messages',),
    ('messages', 'tools'),
    ('messages', 'label'),
    ('chosen', 'rejected'),
    ('prompt', 'chosen', 'rejected'),
    ('prompt', 'chosen', 'rejected', 'tools'),
    ('prompt', 'completions', 'ranks'),
    ('conversations',),
    ('conversations', 'kto_tag'),
    ('conversations', 'chosen', 'rejected'),
    ('instruction', 'input', 'output'),
    ('instruction', 'output', 'history'),
    ('instruction', 'response1', 'response2', 'annotator1'),
    ('question', 'answer'),
    ('text',),
    ('prompt',),
]
READERS = (read_demonstrations, read_judged, read_answers, read_pairs, read_rankings, read_prompts)
STORAGES = ('x.jsonl', 'x.json', 'x.jsonl.gz', 'x.parquet')


@st.composite
def records(draw):
    return {name: draw(FIELDS.get(name, TEXT | TEXT | ANY)) for name in draw(st.sampled_from(FORMS))}


def stored(record, path):
    """Writes the record, in JSON where no Parquet file could hold it; returns the path."""
    text = json.dumps(record)
    if path.name.endswith('parquet'):
        try:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), path)
            return path
        except (pyarrow.ArrowException, UnicodeEncodeError, TypeError):
            path = path.with_name('x.jsonl')
    content = (f'[{text}]' if path.suffix == '.json' else text + '\n').encode()
    path.write_bytes(gzip.compress(content) if path.suffix == '.gz' else content)
    return path


@settings(max_examples=250, deadline=None)
@given(records(), st.sampled_from(KINDS), st.sampled_from(READERS), st.sampled_from(STORAGES))
def test_any_record_becomes_its_templates_text_or_one_line(tmp_path_factory, record, kind, reader, storage):
    name, tokenizer = kind
    logging.disable(logging.WARNING)
    codec = Codec(tokenizer, 4096, 4096, vocab_size=len(tokenizer))
    path = stored(record, tmp_path_factory.getbasetemp() / storage)
    try:
        for read in reader(path):
            if reader is read_prompts:
                check_prompt(tokenizer, codec, read)
                continue
            answers = read.get('completions') or [read[k] for k in ('completion', 'chosen', 'rejected') if k in read]
            for answer, row in zip(answers, codec.encode([read['prompt']] * len(answers), answers), strict=True):
                check_row(name, tokenizer, codec, read, answer, row)
            if reader is read_answers:
                assert all(0 <= judged['label'] <= 1 for judged in judged_answers([read]))
    except InputError as error:
        assert '\n' not in str(error) and str(error)
    finally:
        logging.disable(logging.NOTSET)


def text_of(tokenizer, ids):
    """The characters of tokens, special ones among them."""
    pieces = tokenizer.convert_ids_to_tokens(ids)
    if not any(piece.startswith('▁') for piece in tokenizer.get_vocab()):
        return tokenizer.decode(ids)
    data = b''.join(
        bytes([int(piece[3:5], 16)]) if piece.startswith('<0x') else piece.replace('▁', ' ').encode()
        for piece in pieces
    )
    return data.decode('utf-8', 'replace')


def clean(text):
    return text.replace('\ud83d', '�')


def check_prompt(tokenizer, codec, read):
    (ids,) = codec.encode_prompts([read['prompt']])
    assert max(ids) < len(tokenizer)
    if isinstance(read['prompt'], list):
        resumes = read['prompt'][-1]['role'] == 'assistant'
        how = dict(add_generation_prompt=not resumes, continue_final_message=resumes, tools=read.get('tools'))
        assert text_of(tokenizer, ids) == clean(tokenizer.apply_chat_template(read['prompt'], tokenize=False, **how))


def check_row(name, tokenizer, codec, record, answer, row):
    assert max(row.prompt + row.response) < len(tokenizer) and len(row.response) == len(row.learned)
    learned = text_of(tokenizer, [i for i, own in zip(row.response, row.learned) if own])
    (alone,) = codec.encode_prompts([record['prompt']])
    if isinstance(answer, str) and isinstance(record['prompt'], str):
        whole = answer.removesuffix('<eos>').removeprefix('' if record['prompt'] else '<bos>')
        assert row.prompt == alone and learned == clean(whole) + '<eos>'
        return
    prompt = list(record['prompt'])
    messages = [{'role': 'assistant', 'content': answer}] if isinstance(answer, str) else list(answer)
    # What others say before the first answer belongs to the prompt.
    while messages[0]['role'] != 'assistant':
        prompt.append(messages.pop(0))
    begun = prompt[-1].get('content', '') if prompt[-1]['role'] == 'assistant' else None
    whole = [*prompt, *messages]
    if begun is not None:
        first = {**prompt[-1], **messages[0], 'content': begun + messages[0].get('content', '')}
        whole = [*prompt[:-1], first, *messages[1:]]
    rendered = clean(tokenizer.apply_chat_template(whole, tools=record.get('tools'), tokenize=False))
    text = text_of(tokenizer, row.prompt + row.response)
    # Nothing but what follows the last learned answer is cut off, and nothing but a missing end is added.
    assert rendered.startswith(text) or rendered.startswith(text.removesuffix('<eos>'))
    if prompt == list(record['prompt']):
        assert row.prompt == alone
    assert learned == ''.join(written(name, i, m, begun) for i, m in enumerate(messages) if is_own(m))


def is_own(message):
    return message['role'] == 'assistant' and message.get('weight', 1) != 0


def written(name, i, message, begun):
    """What a template writes of an answer behind what stands before the assistant's words, with its end."""
    content = clean(message.get('content', ''))
    if name == 'plain':
        follows = i == 0 and begun is not None
        return ('' if follows or content[:1] == ' ' else ' ') + content + '<eos>'
    calls = message.get('tool_calls', []) if name == 'tools' else []
    shown = ''.join(f'<call>{json.dumps(call["function"])}</call>' for call in calls)
    return content + shown + '<|im_end|>'


@pytest.mark.parametrize('kind', ['bytes', 'bpe:300', 'pieces'])
@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from('ab :é😀\n'), max_size=8))
def test_what_was_sampled_becomes_the_same_tokens_again(kind, text):
    """An answer to messages under `plain` begins with a blank: with it as content there is one, not two."""
    tokenizer = PLAIN[kind]
    codec, prompt = Codec(tokenizer, 99, 99), [{'role': 'user', 'content': 'ab'}]
    first = codec.encode([prompt], [text])[0]
    sampled = text_of(tokenizer, first.response).removesuffix('<eos>')
    assert sampled == (text if text[:1] == ' ' else f' {text}')
    again = codec.encode([prompt], [sampled])[0]
    assert again == first and again.prompt == codec.encode_prompts([prompt])[0]
