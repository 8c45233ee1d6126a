"""Templates of other people: bounded in time, memory and length, one line each, and fast for ordinary data."""

import os
import threading
import time

import pytest

from rlax_ft.data import renderer
from rlax_ft.data.codec import Codec
from rlax_ft.data.known_templates import TEMPLATES
from rlax_ft.data.rendering import render
from rlax_ft.data.tokenizers import train_tokenizer
from rlax_ft.errors import InputError

USER, ANSWER = {'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}
FOREIGN = TEMPLATES['chatml'] + '{# not ours #}'
DOUBLING = '{% set n = namespace(x="x") %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}'
LOOPING = '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}'


@pytest.fixture(scope='module')
def tokenizer():
    return train_tokenizer('bytes', ['a'], ('<|im_start|>', '<|im_end|>'))


@pytest.mark.parametrize(
    'template, reason',
    [
        (LOOPING, 'it takes more than 3 seconds'),
        (DOUBLING, ''),
        ('{{ "x" * 3000000000 }}', ''),
        ('{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', 'recursion'),
        ('{{ "x" * 20000000 }}', 'it writes 20,000,001 characters, more than 16,777,216'),
        ('{{ 1 // 0 }}', 'division'),
        ('{{ messages[9].content }}', ''),
    ],
    ids=['loop', 'doubling', 'gigabytes', 'recursion', 'long', 'zero', 'index'],
)
def test_what_a_template_may_not_do_is_one_line(tokenizer, template, reason):
    tokenizer.chat_template = template + '{{ messages | length }}'
    codec = Codec(tokenizer, 64, 64)
    began = time.monotonic()
    with pytest.raises(InputError, match='the chat template refuses a conversation: .*' + reason) as caught:
        codec.encode([[USER]], [[ANSWER]])
    assert '\n' not in str(caught.value) and 'it begins' in str(caught.value)
    assert codec.eos_ids == (tokenizer.eos_token_id,)  # asked again, it takes no time
    assert time.monotonic() - began < 10


def test_a_process_that_was_ended_is_followed_by_another(tokenizer):
    before = render(tokenizer, FOREIGN, [USER])[0]
    renderer._workers[-1].end()
    assert (
        render(tokenizer, FOREIGN, [USER])[0]
        == before
        == tokenizer.apply_chat_template([USER], chat_template=FOREIGN, tokenize=False)
    )


def test_many_conversations_take_one_process_from_all_threads(tokenizer):
    tokenizer.chat_template = FOREIGN
    texts, conversations = [], [[{**USER, 'content': f'{i} é\ud83d'}] for i in range(200)]

    def work(part):
        texts.extend((i, render(tokenizer, FOREIGN, conversations[i], spans=True)[0]) for i in part)

    render(tokenizer, FOREIGN, [USER])
    worker = renderer._workers[-1]
    threads = [threading.Thread(target=work, args=(range(start, 200, 2),)) for start in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert renderer._workers == [worker] and worker.pid == os.getpid()
    assert all(f'{i} é\ud83d<|im_end|>' in text for i, text in texts) and len(texts) == 200


def test_our_own_templates_need_no_other_process(tokenizer, monkeypatch):
    monkeypatch.setattr(renderer, '_worker', lambda: pytest.fail('a process was started'))
    for template in TEMPLATES.values():
        assert 'hello' in render(tokenizer, template, [USER, ANSWER], spans=True)[0]
