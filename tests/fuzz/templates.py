"""Mutated chat templates, and those that loop, recurse, fail or never end: a conversation's tokens, or one line."""

import values

from rlax_ft.data.codec import Codec
from rlax_ft.data.known_templates import TEMPLATES
from rlax_ft.data.templates import set_chat_template
from rlax_ft.data.tokenizers import train_tokenizer

MESSAGES = [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello', 'name': 'x'}]
MALICE = (
    '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}',
    '{% for i in range(99999) %}{% for j in range(9999) %}xxxxxxxxxx{% endfor %}{% endfor %}',
    '{{ "x" * 3000000000 }}',
    '{{ "x" * (10 ** 30) }}',
    '{{ "%2000000000d" % 5 }}',
    '{{ "x".ljust(3000000000) }}',
    '{{ 9 ** 9 ** 9 }}',
    '{{ (9 ** 99999) | string }}',
    '{% set ns = namespace(x="x") %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}',
    '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
    '{% macro f(n) %}{{ f(n + 1) ~ f(n + 1) }}{% endmacro %}{{ f(0) }}',
    '{{ 1 // 0 }}',
    '{{ messages[99].content }}',
    '{{ messages[0].content.x.y }}',
    '{{ [][5] }}',
    '{{ raise_exception("a\nb") }}',
    '{{ undefined_function() }}',
    '{{ messages.__class__.__mro__ }}',
    '{% include "/etc/hostname" %}',
    '{% import "os" as os %}',
    '{{ lipsum(n=100000) }}',
    '{{ range(10000000) | list }}',
    '{{ messages | tojson(indent=200000000) }}',
    '{{ strftime_now("%Y") }}',
    '{{ messages.append(messages[0]) }}',
    '{{ "a" | center(3000000000) }}',
    '{% generation %}',
    '{% generation %}{{ bos_token }}{% endgeneration %}',
    '{{ "(" * 500 }}' + '(' * 500 + ')' * 500,
    '{{ ' + '(' * 3000 + '1' + ')' * 3000 + ' }}',
    '{% if true %}' * 300,
)
TOKENIZERS = []


def mutation(rng, workdir):
    """Mutates a template of ours, or puts something into it, and renders a conversation for training and sampling."""
    text = rng.choice(list(TEMPLATES.values()))
    if rng.random() < 0.5:
        at = rng.choice([0, len(text), *(i for i in range(len(text)) if text.startswith('{%', i))])
        text = text[:at] + rng.choice(MALICE) + text[at:]
    else:
        text = values.mutated_bytes(rng, text.encode()).decode('utf-8', 'replace')
    if not TOKENIZERS:
        TOKENIZERS.append(train_tokenizer('bytes', ['a'], ('<|im_start|>', '<|im_end|>')))
    tokenizer = TOKENIZERS[0]
    tokenizer.chat_template = None
    if rng.random() < 0.5:
        tokenizer.chat_template = text
    else:
        (workdir / 'x.jinja').write_text(text)
        set_chat_template(tokenizer, str(workdir / 'x.jinja'))
    codec = Codec(tokenizer, 10**6, 10**6, vocab_size=len(tokenizer))
    codec.encode([MESSAGES[:1]], [MESSAGES[1:]])
    codec.encode_prompts([MESSAGES[:1]])
    return None if codec.eos_ids else 'wrong: nothing ends a text'
