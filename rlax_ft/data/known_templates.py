"""Chat templates of our own, by name.

Leaves out rendering (rendering.py).
"""

# Both write BOS themselves where the tokenizer has one, and end every answer. `plain` puts a blank before an answer
# that has none: one that was sampled has its own, and becomes the same tokens again.
TEMPLATES = {
    # As in hh-rlhf's dialogues; it needs no token of its own, so it suits every tokenizer.
    'plain': """\
{{- bos_token or '' }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '\n\nAssistant:' }}
        {%- set said = message.content %}
        {%- generation %}{{- ('' if said[:1] == ' ' else ' ') + said + eos_token }}{%- endgeneration %}
    {%- else %}
        {{- '\n\n' + {'system': 'System', 'tool': 'Tool'}.get(message.role, 'Human') + ': ' + message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '\n\nAssistant:' }}{%- endif %}""",
    'chatml': """\
{{- bos_token or '' if bos_token != eos_token else '' }}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}""",
}
