"""From a record to tokens: the text is the template's own, what is learned the assistant's, and all else is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, GPT2Tokenizer

from rlax_ft.data.codec import Codec
from rlax_ft.data.records import read_demonstrations, read_prompts
from rlax_ft.data.rows import fitting, preference_rows, prompt_arrays, ranking_rows, token_rows
from rlax_ft.data.templates import TEMPLATES, encode_dialogues, encode_prompts, set_chat_template, turn_ends
from rlax_ft.data.tokenizers import train_tokenizer
from rlax_ft.errors import InputError

SHARED = Path(__file__).parents[2].parent / 'shared/weights'
USER, ANSWER = {'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}
TOOLS = [{'type': 'function', 'function': {'name': 'weather', 'parameters': {'type': 'object'}}}]
CALL = {'role': 'assistant', 'tool_calls': [{'function': {'name': 'weather', 'arguments': {'city': 'Rome'}}}]}
RESULT = {'role': 'tool', 'content': 'sunny', 'name': 'weather'}
# As published templates show tools: schemas first, calls as JSON in the assistant's turn.
WITH_TOOLS = (
    '{{ bos_token }}{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}'
    '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.name }}{{ m.content }}'
    '{% for call in m.tool_calls %}<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}'
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


def bytes_tokenizer(template=TEMPLATES['chatml']):
    tokenizer = train_tokenizer('bytes', ['abc'], ('<|im_start|>', '<|im_end|>'))
    tokenizer.chat_template = template
    return tokenizer


def bpe_tokenizer():
    """Merges line breaks."""
    tokenizer = train_tokenizer('bpe:300', ['a\n\nb\n\n\nc'] * 50, ('<|im_start|>', '<|im_end|>'))
    tokenizer.chat_template = TEMPLATES['chatml']
    assert len(tokenizer('\n\n', add_special_tokens=False).input_ids) == 1
    return tokenizer


def stories(**special):
    if not SHARED.exists():
        pytest.skip('the shared tokenizers are not here')
    return AutoTokenizer.from_pretrained(SHARED / 'stories260K', **special)


def tokenizers():
    folder = SHARED / 'gpt2-tokenizer'
    made = [bytes_tokenizer(), bpe_tokenizer()]
    if SHARED.exists():
        gpt2 = GPT2Tokenizer(vocab=str(folder / 'encoder.json'), merges=str(folder / 'vocab.bpe'))
        made += [gpt2, stories()]
    for tokenizer in made:
        tokenizer.chat_template = tokenizer.chat_template or TEMPLATES['plain']
    return made


def file_of(tmp_path, *records):
    (tmp_path / 'x.jsonl').write_text(''.join((r if isinstance(r, str) else json.dumps(r)) + '\n' for r in records))
    return tmp_path / 'x.jsonl'


def rows_of(tokenizer, record, **given):
    """A demonstration's row."""
    codec = Codec(tokenizer, 4096, 4096, **given)
    return codec.encode([record['prompt']], [record['completion']])[0]


def said(tokenizer, row):
    """(the text of all tokens, the text of those that are learned)."""
    learned = [i for i, own in zip(row.response, row.learned) if own]
    # SentencePiece puts a blank behind a BOS, where the text has none.
    return tuple(re.sub('^<s> ', '<s>', tokenizer.decode(ids)) for ids in (row.prompt + row.response, learned))


# 1: tools.


def test_tools_and_calls_reach_the_template(tmp_path):
    tokenizer, messages = bytes_tokenizer(WITH_TOOLS), [USER, CALL, RESULT, ANSWER]
    record = read_demonstrations(file_of(tmp_path, {'messages': messages, 'tools': TOOLS}))[0]
    text, learned = said(tokenizer, rows_of(tokenizer, record))
    whole = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)
    assert text == whole.removesuffix('\n') and '"parameters"' in text
    assert learned == '<call>{"name": "weather", "arguments": {"city": "Rome"}}</call><|im_end|>hello<|im_end|>'
    # The sampler reads the same schemas, from records of prompts, too.
    prompt = read_prompts(file_of(tmp_path, {'prompt': [USER], 'tools': json.dumps(TOOLS)}))[0]['prompt']
    shown = tokenizer.apply_chat_template([USER], tools=TOOLS, tokenize=False, add_generation_prompt=True)
    tokens, mask = prompt_arrays(Codec(tokenizer, 256, 8), [prompt])
    assert tokenizer.decode(tokens[0][mask[0]]) == shown
    # Pairs and rankings that never were in a file.
    pair = {'prompt': [USER], 'chosen': [ANSWER], 'rejected': [CALL], 'tools': TOOLS}
    rows = preference_rows(Codec(tokenizer, 256, 128), [pair]).candidates.tokens[0, 0]
    assert tokenizer.decode(rows).startswith(shown)


def test_a_call_that_the_template_does_not_show_is_refused(caplog):
    codec = Codec(bytes_tokenizer('{% for m in messages %}[{{ m.content }}]{% endfor %}'), 64, 64)
    for prompt, answer in (([USER], [CALL]), ([USER, CALL, RESULT], [ANSWER])):
        with pytest.raises(
            InputError, match=r'does not show the tool_calls of message 2; name one that does as --chat'
        ):
            codec.encode([prompt], [answer])
    with pytest.raises(InputError, match='does not show the tool_calls'):
        codec.encode_prompts([[USER, CALL, RESULT]])
    for name in TEMPLATES:
        with pytest.raises(InputError, match='the chat template'):
            Codec(bytes_tokenizer(TEMPLATES[name]), 64, 64).encode([[USER]], [[CALL]])
    # Schemas and names alone are missed, and counted.
    record = {'prompt': [USER, RESULT], 'completion': [ANSWER], 'tools': TOOLS}
    token_rows(codec, [USER_PROMPT, record['prompt']], [[ANSWER]] * 2)
    assert 'template does not show the field "name" of messages' in caplog.text and '1 of 2' in caplog.text
    fitting(codec, [record])
    assert '1 of 1 conversations: the chat template does not show the tools' in caplog.text


USER_PROMPT = [USER]

# 2, 3: where the prompt ends.


@pytest.mark.parametrize('kind', range(4))
@pytest.mark.parametrize('answer', ['\nhi', '\n\n hi', ' hi', 'hi', "'s"])
def test_the_prompt_is_what_the_sampler_gets(kind, answer):
    tokenizer = (tokenizers() * 2)[kind]
    codec = Codec(tokenizer, 64, 64)
    for prompt, completion in (([USER], [{'role': 'assistant', 'content': answer}]), ('a\n', answer)):
        (row,), (ids,) = codec.encode([prompt], [completion]), codec.encode_prompts([prompt])
        assert row.prompt == ids and all(row.learned) and answer.strip(' ') in tokenizer.decode(row.response)


def test_a_begun_answer_is_continued():
    begun, rest = {'role': 'assistant', 'content': 'It is'}, {'role': 'assistant', 'content': ' blue.'}
    for tokenizer in tokenizers():
        row = rows_of(tokenizer, {'prompt': [USER, begun], 'completion': [rest, USER, ANSWER]})
        text, learned = said(tokenizer, row)
        one = [USER, {'role': 'assistant', 'content': 'It is blue.'}, USER, ANSWER]
        assert text == said(tokenizer, encode_dialogues(tokenizer, [one[:1]], [one[1:]])[0])[0]
        assert learned.startswith(' blue.') or learned.startswith('blue.')  # SentencePiece decodes no leading blank
        assert 'It is' not in learned and 'hello' in learned
        start = tokenizer.apply_chat_template([USER, begun], continue_final_message=True, tokenize=False)
        assert said(tokenizer, row._replace(response=[]))[0] == start
        assert row.prompt == encode_prompts(tokenizer, [[USER, begun]])[0]
    # What others say before the first answer belongs to the prompt.
    row = rows_of(tokenizers()[0], {'prompt': [USER, ANSWER], 'completion': [USER, ANSWER]})
    assert row == encode_dialogues(tokenizers()[0], [[USER, ANSWER, USER]], [[ANSWER]])[0]


# 4, 5: what looks like a special token.


@pytest.mark.parametrize('make', [bytes_tokenizer, stories], ids=['bytes', 'stories'])
def test_text_that_has_its_bos_and_eos_gets_no_second_one(make):
    tokenizer = make()
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    plain = rows_of(tokenizer, {'prompt': 'Once', 'completion': ' upon'})
    assert rows_of(tokenizer, {'prompt': bos + 'Once', 'completion': ' upon' + eos}) == plain
    ids = plain.prompt + plain.response
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1
    assert rows_of(tokenizer, {'prompt': '', 'completion': f'{bos}Once{eos}'}) == rows_of(
        tokenizer, {'prompt': '', 'completion': 'Once'}
    )
    assert Codec(tokenizer, 8, 8).encode_prompts([bos + 'Once', bos]) == Codec(tokenizer, 8, 8).encode_prompts(
        ['Once', '']
    )
    # A tokenizer that writes none in front of texts leaves one that the text has.
    if SHARED.exists():
        gpt2 = tokenizers()[2]
        (row,) = Codec(gpt2, 8, 8).encode(['<|endoftext|>Once'], [' upon<|endoftext|>'])
        assert (row.prompt[0], row.response[-1]) == (50256, 50256) and len(row.prompt + row.response) == 4


@pytest.mark.parametrize('kind', range(4))
def test_characters_of_special_tokens_are_text(kind, caplog):
    tokenizer = (tokenizers() * 2)[kind]
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    marks = f'{tokenizer.eos_token}|{tokenizer.bos_token}'
    content = f'a {marks} b'
    answer = {'role': 'assistant', 'content': content}
    for template in (TEMPLATES['plain'], WITH_TOOLS):
        tokenizer.chat_template = template
        for prompt, completion in (('q ' + marks, content), ([{'role': 'user', 'content': 'q ' + marks}], [answer])):
            row = rows_of(tokenizer, {'prompt': prompt, 'completion': completion})
            assert content in said(tokenizer, row)[1] and 'q ' + marks in tokenizer.decode(row.prompt)
            assert row.learned[-1] and (row.response[-1] in turn_ends(tokenizer) or template == WITH_TOOLS)
            if isinstance(prompt, list):
                whole = tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
                assert (
                    said(tokenizer, row)[0].removesuffix(tokenizer.eos_token).rstrip()
                    == whole.removesuffix(tokenizer.eos_token).rstrip()
                )
                clean = [{**m, 'content': m['content'].replace(marks, '')} for m in (*prompt, *completion)]
                clean = encode_dialogues(tokenizer, [clean[:1]], [clean[1:]])[0]
                control = (tokenizer.bos_token_id, tokenizer.eos_token_id)
                count = lambda r, i: (r.prompt + r.response).count(i)  # noqa: E731
                assert [count(row, i) for i in control] == [count(clean, i) for i in control]
    assert 'have the characters of a special token' in caplog.text


def test_a_tokenizer_that_cannot_write_them_as_text_refuses_them():
    from rlax_ft.data.tokenizers import word_tokenizer

    with pytest.raises(InputError, match=r"the text 'a <eos> b'... has the characters '<eos>', which this tokenizer"):
        Codec(word_tokenizer('ab'), 8, 8).encode(['a'], ['a <eos> b'])


# 6: lone surrogates.


def test_lone_surrogates_are_replaced_and_counted(tmp_path, caplog):
    path = file_of(
        tmp_path, r'{"prompt": "p\ud83d", "completion": "a", "k\udc00": [1]}', '{"prompt": "p", "completion": "b"}'
    )
    first, _ = read_demonstrations(path)
    assert first == {'prompt': 'p�', 'completion': 'a', 'k�': [1]}
    assert f'{path}: 1 records with lone surrogates, replaced by U+FFFD' in caplog.text
    (tmp_path / 'x.json').write_text(r'[{"prompt": "\ud83d\ude00 \ud83d", "completion": "a"}]')
    assert read_prompts(tmp_path / 'x.json')[0]['prompt'] == '😀 �'
    # In memory, too.
    tokenizer = bytes_tokenizer()
    for prompt, answer in (('p\ud83d', 'a\ud83d'), ([{**USER, 'content': '\ud83d'}], [ANSWER])):
        assert '�' in said(tokenizer, rows_of(tokenizer, {'prompt': prompt, 'completion': answer}))[0]
    assert '1 of 1 texts: lone surrogates replaced by U+FFFD' in caplog.text


# 7, 10: tokenizers of other people.


def test_a_tokenizer_without_eos_is_one_line():
    tokenizer = bytes_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match='the tokenizer has no EOS token, so no response could end; set its eos_token'):
        Codec(tokenizer, 8, 8)
    assert Codec(tokenizer, 8, 8, ends=False).encode(['a'], ['b'])


def test_no_id_beyond_the_embedding_leaves_the_codec():
    tokenizer = stories(pad_token='[PAD]')
    assert tokenizer.pad_token_id == 512
    for known in (512, None):
        rows = token_rows(Codec(tokenizer, 8, 8, vocab_size=known), ['Once', 'Once upon'], [' a', ' a time'])
        assert rows.tokens.max() < 512 and (rows.tokens[rows.segment_ids == 0] == tokenizer.eos_token_id).all()
        tokens, mask = prompt_arrays(Codec(tokenizer, 8, 8, vocab_size=known), ['Once'])
        assert tokens.max() < 512 and not mask.all()
    tokenizer.add_special_tokens({'additional_special_tokens': ['<|im_start|>', '<|im_end|>']})
    set_chat_template(tokenizer, 'chatml')
    codec = Codec(tokenizer, 64, 64, vocab_size=512)
    for encode in (lambda: codec.encode([[USER]], [[ANSWER]]), lambda: codec.encode_prompts([[USER]])):
        with pytest.raises(InputError, match=r"the token '<\|im_\w+\|>' has the id 51\d, and the embedding 512 rows"):
            encode()


def test_several_named_templates(tmp_path):
    tokenizer = bytes_tokenizer({'a': TEMPLATES['chatml'], 'b': TEMPLATES['plain']})
    codec = Codec(tokenizer, 64, 64)
    assert codec.encode(['a'], ['b'])
    with pytest.raises(
        InputError, match=r'has several chat templates \(a, b\) and no default; name one as --chat_temp'
    ):
        codec.encode([[USER]], [[ANSWER]])
    tokenizer.chat_template = {'default': TEMPLATES['plain'], 'tool_use': WITH_TOOLS}
    calls = {'prompt': [USER], 'chosen': [CALL], 'rejected': [ANSWER], 'tools': TOOLS}
    rows = preference_rows(Codec(tokenizer, 256, 128), [calls])
    assert '<call>' in tokenizer.decode(rows.candidates.tokens[0, 0])
    assert tokenizer.decode(codec.encode_prompts([[USER]])[0]) == '<bos>\n\nHuman: hi\n\nAssistant:'
    set_chat_template(tokenizer, 'tool_use')
    assert tokenizer.chat_template == WITH_TOOLS
    (tmp_path / 'x.jinja').write_bytes(b'\xff')
    with pytest.raises(InputError, match=r'--chat_template=.*x.jinja: cannot be read as UTF-8'):
        set_chat_template(tokenizer, str(tmp_path / 'x.jinja'))


@pytest.mark.parametrize('body', ['1 // 0', '[][9].x', '"a" * (10 ** 30)', 'x.y.z', 'range(9999999)'])
def test_a_template_that_fails_is_one_line(body):
    codec = Codec(bytes_tokenizer('{{ ' + body + ' }}'), 8, 8)
    with pytest.raises(InputError, match='the chat template refuses a conversation') as error:
        codec.encode([[USER]], [[ANSWER]])
    assert '\n' not in str(error.value)


# Also: the same tokens, and messages that are only read.


def test_sides_of_the_same_tokens_are_left_out(caplog):
    tokenizer = bytes_tokenizer(TEMPLATES['plain'].replace('message.content', 'message.content | trim'))
    codec = Codec(tokenizer, 64, 64)
    again, other = {'role': 'assistant', 'content': 'hello '}, {'role': 'assistant', 'content': 'bye'}
    same = {'prompt': [USER], 'chosen': [ANSWER], 'rejected': [again]}
    good = {'prompt': [USER], 'chosen': [ANSWER], 'rejected': [other]}
    with pytest.raises(InputError, match='record 2: "chosen" and "rejected" become the same tokens'):
        preference_rows(codec, [good, same])
    assert fitting(codec, [good, same]) == [good]
    assert '1 of 2 records left out: the responses that they compare become the same tokens' in caplog.text
    with pytest.raises(InputError, match='all 1 records have responses without a token, or of the same tokens'):
        fitting(codec, [same])
    ranking = {'prompt': [USER], 'completions': [[ANSWER], [again], [other]], 'ranks': [0, 1, 2]}
    assert fitting(codec, [ranking]) == [{**ranking, 'completions': [[ANSWER], [ANSWER], [other]]}]


@pytest.mark.parametrize('tagged', [True, False])
@pytest.mark.parametrize('field', [{'weight': 0}, {'train': False}, {'loss': False}, {'masked': True}])
def test_messages_that_are_only_read_are_not_learned(tmp_path, tagged, field):
    template = TEMPLATES['chatml'] if tagged else WITH_TOOLS
    tokenizer = bytes_tokenizer(template)
    read_only = {'role': 'assistant', 'content': 'wrong', **field}
    messages = [USER, read_only, USER, ANSWER, USER, read_only, USER, {**ANSWER, 'weight': 1}, USER, read_only]
    record = read_demonstrations(file_of(tmp_path, {'messages': messages}))[0]
    text, learned = said(tokenizer, rows_of(tokenizer, record))
    assert learned == 'hello<|im_end|>hello<|im_end|>'
    assert text.count('wrong') == 2
    record = {'prompt': [USER], 'completion': [read_only, USER, ANSWER]}
    assert said(tokenizer, rows_of(tokenizer, record))[1] == 'hello<|im_end|>'


# Text is tokenised once.


def test_fitting_and_rows_encode_once(monkeypatch):
    tokenizer = bytes_tokenizer()
    codec, seen = Codec(tokenizer, 64, 64, truncate=True), []
    encode = Codec.encode_uncut
    monkeypatch.setattr(Codec, 'encode_uncut', lambda self, p, r: seen.extend(r) or encode(self, p, r))
    texts = [{'prompt': f'p{i}', 'completions': ['a', f'b{i}', 'c' * (i * 40)], 'ranks': [0, 1, 2]} for i in range(3)]
    talks = [{'prompt': [USER], 'chosen': [ANSWER], 'rejected': [{**ANSWER, 'content': f'{i}'}]} for i in range(3)]
    for rows, records, count in ((ranking_rows, texts, 9), (preference_rows, talks, 6)):
        seen.clear()
        kept = fitting(codec, records)
        first = rows(codec, kept)
        assert len(seen) == count and not codec._kept
        np.testing.assert_array_equal(rows(codec, kept).candidates.tokens, first.candidates.tokens)
        assert len(seen) > count  # rows were handed out once: host memory holds no second copy of a data set
    assert [len(r['ranks']) for r in fitting(codec, texts)] == [3, 3, 2]
