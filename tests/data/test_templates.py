"""Chat templates: what is learned of a conversation, one BOS, an end that is kept, and clear refusals."""

import re
from pathlib import Path

import pytest

from rlax_ft.data.codec import Codec
from rlax_ft.data.rows import fitting, prompt_arrays, token_rows
from rlax_ft.data.templates import TEMPLATES, encode_dialogues, set_chat_template, template_tokens, turn_ends
from rlax_ft.data.tokenizers import encode_continuations, start_ids, train_tokenizer
from rlax_ft.errors import InputError

SHARED = Path(__file__).parents[2].parent / 'shared/weights'
TALK = [
    {'role': 'system', 'content': 'be kind'},
    {'role': 'user', 'content': 'hi'},
    {'role': 'assistant', 'content': 'hello you'},
    {'role': 'user', 'content': 'why?'},
    {'role': 'assistant', 'content': 'because'},
]
# Like many published templates: no {% generation %}, and another end of turn than EOS.
UNTAGGED = (
    '{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}'
    '{% if add_generation_prompt %}<|assistant|>{% endif %}'
)
# Like Qwen3's: what an answer looks like depends on whether it is the last.
UNSTABLE = UNTAGGED.replace(
    '{{ m.content }}', '{% if loop.last and m.role == "assistant" %}<think></think>{% endif %}{{ m.content }}'
)


def untagged(template):
    return re.sub(r'\{%-?\s*(end)?generation\s*-?%\}', '', template)


def bytes_tokenizer(template, special=('<|end|>', '<|im_start|>', '<|im_end|>')):
    tokenizer = train_tokenizer('bytes', ['abc'], special)
    tokenizer.chat_template = template
    return tokenizer


def spans(tokenizer, row):
    """The learned texts, and the prompt."""
    texts, last = [], False
    for token, own in zip(row.response, row.learned):
        if own:
            texts = [*texts[:-1], [*texts[-1], token]] if last else [*texts, [token]]
        last = own
    return [tokenizer.decode(text) for text in texts], tokenizer.decode(row.prompt)


@pytest.mark.parametrize(
    ('template', 'prompt', 'learned'),
    [
        (
            TEMPLATES['plain'],
            '<bos>\n\nSystem: be kind\n\nHuman: hi\n\nAssistant:',
            [' hello you<eos>', ' because<eos>'],
        ),
        (
            TEMPLATES['chatml'],
            '<bos><|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n',
            ['hello you<|im_end|>', 'because<|im_end|>'],
        ),
        (
            UNTAGGED,
            '<bos><|system|>be kind<|end|>\n<|user|>hi<|end|>\n<|assistant|>',
            ['hello you<|end|>', 'because<|end|>'],
        ),
    ],
    ids=['plain', 'chatml', 'untagged'],
)
def test_all_that_the_assistant_says_is_learned_with_its_ends(template, prompt, learned):
    for source in (template, untagged(template)):
        tokenizer = bytes_tokenizer(source)
        many, one = encode_dialogues(tokenizer, [TALK[:2], TALK[:4]], [TALK[2:], TALK[4:]])
        assert spans(tokenizer, many) == (learned, prompt)
        assert spans(tokenizer, one)[0] == learned[1:]
        for row in (many, one):
            whole = row.prompt + row.response
            assert whole.count(tokenizer.bos_token_id) == 1
            assert len(row.response) == len(row.learned) and row.learned[-1]
            assert whole[-1] in turn_ends(tokenizer)


def test_tagged_and_untagged_agree():
    for name, template in TEMPLATES.items():
        tagged, plain = (bytes_tokenizer(source) for source in (template, untagged(template)))
        rows = [encode_dialogues(t, [TALK[:2]], [TALK[2:]])[0] for t in (tagged, plain)]
        assert rows[0] == rows[1], name


def test_an_end_that_the_template_does_not_write_is_added():
    tokenizer = bytes_tokenizer('{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}')
    row = encode_dialogues(tokenizer, [TALK[:2]], [TALK[2:3]])[0]
    assert row.response[-1] == tokenizer.eos_token_id and row.learned[-1]
    assert turn_ends(tokenizer) == (tokenizer.eos_token_id,)


def test_eos_is_learned_where_pad_is_eos():
    tokenizer = bytes_tokenizer(TEMPLATES['plain'])
    tokenizer.pad_token = tokenizer.eos_token
    codec = Codec(tokenizer, 64, 64)
    rows = token_rows(codec, [TALK[:2], 'text'], [TALK[2:3], 'more'])
    for tokens, mask, segments in zip(rows.tokens, rows.mask, rows.segment_ids):
        assert tokens[mask > 0][-1] == tokenizer.eos_token_id
        assert (tokens[segments == 0] == tokenizer.eos_token_id).all() and not mask[segments == 0].any()


def test_sampling_stops_at_the_end_of_a_turn():
    codec = Codec(bytes_tokenizer(UNTAGGED), 64, 64)
    end = codec.tokenizer.convert_tokens_to_ids('<|end|>')
    assert codec.eos_ids == (codec.tokenizer.eos_token_id, end)
    # A prompt for the sampler is the beginning of the row that is trained on.
    tokens, mask = prompt_arrays(codec, [TALK[:2]])
    assert tokens[0][mask[0]].tolist() == encode_dialogues(codec.tokenizer, [TALK[:2]], [TALK[2:]])[0].prompt


def test_a_template_that_changes_earlier_answers_is_refused_for_several_and_fine_for_one():
    tokenizer = bytes_tokenizer(UNSTABLE)
    assert spans(tokenizer, encode_dialogues(tokenizer, [TALK[:4]], [TALK[4:]])[0])[0] == [
        '<think></think>because<|end|>'
    ]
    with pytest.raises(InputError, match=r"message 3 otherwise than within the whole, from '<think></?.*one answer"):
        encode_dialogues(tokenizer, [TALK[:2]], [TALK[2:]])


def test_long_prompts_keep_bos_and_end_and_long_responses_are_left_out(caplog):
    codec = Codec(bytes_tokenizer(TEMPLATES['plain']), 24, 16, truncate=True)
    rows = token_rows(codec, [TALK[:4], 'x' * 40], [TALK[4:], 'y'])
    assert codec.tokenizer.decode(rows.tokens[0][rows.segment_ids[0] > 0]) == (
        '<bos>Human: why?\n\nAssistant: because<eos>'
    )
    assert codec.tokenizer.decode(rows.tokens[1][:25]) == '<bos>' + 'x' * 23 + 'y'
    assert '2 of 2 rows: prompt cut to its last 24 tokens' in caplog.text
    long = [{'role': 'assistant', 'content': 'z' * 16}]
    records = [
        {'prompt': TALK[:4], 'chosen': TALK[4:], 'rejected': long},
        {'prompt': TALK[:4], 'chosen': TALK[4:], 'rejected': TALK[2:3]},
        {'prompt': 'q', 'completions': ['a', 'b' * 17, 'c'], 'ranks': [0, 1, 2]},
    ]
    assert fitting(codec, records) == [records[1], {'prompt': 'q', 'completions': ['a', 'c'], 'ranks': [0, 2]}]
    assert '1 of 3 records left out: a response has more than 16 tokens' in caplog.text
    with pytest.raises(InputError, match=r'--max_new_tokens=16: all 1 records have longer responses'):
        fitting(codec, records[:1])
    assert fitting(Codec(codec.tokenizer, 24, 16), records) is records


def test_templates_by_name_file_and_default(tmp_path):
    tokenizer = bytes_tokenizer(None)
    set_chat_template(tokenizer, '')
    assert tokenizer.chat_template == TEMPLATES['plain']
    set_chat_template(tokenizer, 'chatml')
    set_chat_template(tokenizer, '')  # its own stays
    assert tokenizer.chat_template == TEMPLATES['chatml']
    (tmp_path / 'mine.jinja').write_text(UNTAGGED)
    set_chat_template(tokenizer, str(tmp_path / 'mine.jinja'))
    assert tokenizer.chat_template == UNTAGGED
    assert template_tokens('chatml') == ('<|im_end|>', '<|im_start|>') and template_tokens('') == ()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (None, r'--chat_template=.*x.jinja: no such template or file; use plain, chatml, a Jinja file'),
        ('{% for m in messages %}\n{{ m.content', r'x.jinja: the chat template, line 2: unexpected end'),
        ("{{ raise_exception('no') }}", r'x.jinja: the chat template refuses a conversation: no'),
    ],
)
def test_bad_templates_are_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / 'x.jinja').write_text(text)
    with pytest.raises(InputError, match=message):
        set_chat_template(bytes_tokenizer(None), str(tmp_path / 'x.jinja'))


def test_the_conversation_that_a_template_refuses_is_named():
    refuses = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    )
    tokenizer = bytes_tokenizer(refuses)
    message = "the chat template refuses a conversation: no system; it begins 'be kind'"
    with pytest.raises(InputError, match=message):
        encode_dialogues(tokenizer, [TALK[1:2], TALK[:2]], [TALK[2:3]] * 2)


def test_a_new_tokenizer_has_the_templates_tokens():
    tokenizer = train_tokenizer('bytes', ['abc'], template_tokens('chatml'))
    set_chat_template(tokenizer, 'chatml')
    row = encode_dialogues(tokenizer, [TALK[:2]], [TALK[2:3]])[0]
    assert (
        row.response[-1] == tokenizer.convert_tokens_to_ids('<|im_end|>') and len(row.response) == len('hello you') + 1
    )
    assert len(tokenizer) == 261


def test_bos_is_as_the_tokenizer_has_it():
    ours = train_tokenizer('bytes', ['abc'])
    assert start_ids(ours) == [ours.bos_token_id]
    silent = train_tokenizer('bytes', ['abc'])
    silent.backend_tokenizer.post_processor = None
    assert start_ids(silent) == [silent.bos_token_id]
    from tokenizers.processors import ByteLevel

    without = train_tokenizer('bytes', ['abc'])
    without.backend_tokenizer.post_processor = ByteLevel()
    assert start_ids(without) == []
    # An empty prompt still leaves something to predict the first token from.
    assert token_rows(Codec(without, 4, 4), [''], ['a']).tokens[0, 0] == without.bos_token_id


def test_real_tokenizers():
    if not SHARED.exists():
        pytest.skip('the shared tokenizers are not here')
    from transformers import AutoTokenizer, GPT2Tokenizer

    stories = AutoTokenizer.from_pretrained(SHARED / 'stories260K')
    assert start_ids(stories) == [stories.bos_token_id]
    # SentencePiece would begin a text with a blank; a continuation goes on where the prompt ended.
    prompt, rest = 'Once upon a time', ', there was a girl'
    whole = stories(prompt + rest, add_special_tokens=False).input_ids
    ours = stories(prompt, add_special_tokens=False).input_ids + encode_continuations(stories, [rest])[0]
    assert ours == whole and stories.decode(ours) == prompt + rest
    assert len(stories(rest, add_special_tokens=False).input_ids) > len(encode_continuations(stories, [rest])[0])

    folder = SHARED / 'gpt2-tokenizer'
    gpt2 = GPT2Tokenizer(vocab=str(folder / 'encoder.json'), merges=str(folder / 'vocab.bpe'))
    assert start_ids(gpt2) == []
    gpt2.pad_token = gpt2.eos_token
    for tokenizer in (stories, gpt2):
        for name, template in TEMPLATES.items():
            tagged, plain = [], []
            for rows, source in ((tagged, template), (plain, untagged(template))):
                tokenizer.chat_template = source
                rows += encode_dialogues(tokenizer, [TALK[:2], TALK[:4]], [TALK[2:], TALK[4:]])
            learned = spans(tokenizer, tagged[0])[0]
            assert [text.strip().split('<')[0] for text in learned] == ['hello you', 'because'], name
            assert tagged[0].response[-1] == tokenizer.eos_token_id
            assert [row.prompt for row in tagged] == [row.prompt for row in plain]


def test_a_tokenizer_whose_template_fails_still_serves_texts():
    codec = Codec(bytes_tokenizer("{{ raise_exception('tools only') }}"), 8, 8)
    assert codec.eos_ids == (codec.tokenizer.eos_token_id,)
    assert token_rows(codec, ['a'], ['b']).mask.sum() == 2
    with pytest.raises(InputError, match='tools only'):
        token_rows(codec, [TALK[1:2]], [TALK[2:3]])


def test_texts_for_a_model_with_a_template_are_said_once(caplog):
    codec = Codec(bytes_tokenizer(UNTAGGED), 99, 99)
    for _ in range(2):
        codec.encode(['hi'], ['hello'])
    assert [r.message for r in caplog.records if 'without its chat template' in r.message] == [
        caplog.records[0].message
    ]
    caplog.clear()
    codec.encode([TALK[:2]], [TALK[2:3]])
    assert not caplog.records
