"""Chat templates of our own, by name.

Leaves out rendering (rendering.py).
"""

# Both write BOS themselves where the tokenizer has one, and end every answer.
TEMPLATES = {
    # As in hh-rlhf's dialogues; it needs no token of its own, so it suits every tokenizer.
    'plain': """\
{{- bos_token or '' }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '\n\nAssistant:' }}
        {%- generation %}{{- ' ' + message.content + eos_token }}{%- endgeneration %}
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
