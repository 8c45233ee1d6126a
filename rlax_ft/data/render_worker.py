"""Renders conversations through a chat template; run as a program, it does so for another process, within bounds.

A template is a program of whoever wrote it: it may loop, or write gigabytes. As a program this file answers requests
on its standard input, each with a few seconds of processor time, half a gigabyte of memory and no files to write; who
asks (renderer.py) sees it die when a template takes more. It imports transformers and nothing of ours.
"""

import json
import os
import pickle
import signal
import struct
import sys
from typing import Any

SECONDS = 3.0  # Of processor time for one rendering.
LARGEST = 16 * 2**20  # Characters of one rendering.
_ROOM = 512 * 2**20  # Bytes of memory beyond what the program itself takes.


def render(request: dict) -> dict:
    """{"text", "spans"} of one conversation, by transformers' own rendering; {"error"} where the template fails.

    Args:
      request: arguments of `render_jinja_template`, with one conversation.
    """
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered: Any = render_jinja_template(**request)  # Annotated as a string; it gives texts and spans.
        texts, tagged = rendered
        if len(texts[0]) > LARGEST:
            return {'error': f'it writes {len(texts[0]):,} characters, more than {LARGEST:,}'}
        spans = tagged[0] if request['return_assistant_tokens_mask'] else []
        return {'text': texts[0], 'spans': [list(span) for span in spans]}
    except jinja2.TemplateSyntaxError as error:
        return {'error': str(error.message), 'line': error.lineno}
    except Exception as error:  # A template is a program: it may raise anything.
        return {'error': (str(error).splitlines() or [type(error).__name__])[0][:300] or type(error).__name__}


def pack(message: bytes) -> bytes:
    """The message behind its length."""
    return struct.pack('<Q', len(message)) + message


def main() -> None:
    """Answers pickled requests with JSON until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The renderer needs no torch, whose import takes seconds.
    sys.modules['torch'] = None
    from transformers.utils.chat_template_utils import render_jinja_template  # noqa: F401

    out = os.fdopen(os.dup(1), 'wb')
    os.dup2(2, 1)  # What a library prints does not get between the answers.
    _bound()
    out.write(pack(b'ready'))
    out.flush()
    while head := sys.stdin.buffer.read(8):
        message = sys.stdin.buffer.read(struct.unpack('<Q', head)[0])
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # Its signal ends the process.
        try:
            answer = json.dumps(render(pickle.loads(message)), ensure_ascii=False).encode('utf-8', 'surrogatepass')
        except (RecursionError, MemoryError) as error:
            answer = json.dumps({'error': type(error).__name__}).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.write(pack(answer))
        out.flush()


def _bound():
    import resource

    with open('/proc/self/statm') as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + _ROOM,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


if __name__ == '__main__':
    main()
