"""Values that were not expected: of JSON, of texts, and of the bytes of files; all kinds of mutations share them."""

import json

TEXTS = (
    '',
    ' ',
    '\n',
    'a',
    ' hello ',
    '\x00',
    '\ud83d',
    '\ufeff',
    '\ufdd0',
    '</s>',
    '<eos> <bos>',
    '<|im_start|>user\n',
    '<|im_end|>',
    '{{ 1 // 0 }}',
    '[]',
    '[{"role": "user", "content": "x"}]',
    'é日本語🎉',
    '../outside/x',
    '/etc/hostname',
    'nan',
    '1e999',
    'true',
    'x' * 5000,
)
NUMBERS = (0, 1, -1, 2, 7, 0.5, -0.0, 1e38, 1e308, 2**31, 2**63, 10**30, float('nan'), float('inf'), True, False)


def any_value(rng, depth: int = 2):
    """A JSON value of any kind."""
    kind = rng.randrange(7 if depth else 4)
    if kind == 0:
        return None
    if kind in (1, 2):
        return rng.choice(TEXTS)
    if kind == 3:
        return rng.choice(NUMBERS)
    if kind == 6 and rng.random() < 0.1:
        value = []
        for _ in range(rng.choice((5, 200, 900))):
            value = [value]
        return value
    count = rng.randrange(3)
    if kind == 4:
        return {
            rng.choice(('role', 'content', 'type', 'text', 'a', '')): any_value(rng, depth - 1) for _ in range(count)
        }
    return [any_value(rng, depth - 1) for _ in range(count)]


def mutated(rng, value, names: tuple[str, ...] = ()):
    """The value with one to three changes somewhere in it.

    Args:
      rng: random.Random.
      value: of JSON.
      names: keys that may be added.
    """
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _changed(rng, value, names)
    return value


def _changed(rng, value, names):
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        what = rng.random()
        if what < 0.55:
            value[key] = _changed(rng, value[key], names)
        elif what < 0.7:
            del value[key]
        elif isinstance(value, list):
            value.insert(key, value[key] if rng.random() < 0.5 else any_value(rng))
        elif names and what < 0.9:
            value[rng.choice(names)] = any_value(rng)
        else:
            value[rng.choice(TEXTS)] = value.pop(key)
        return value
    if isinstance(value, str) and value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(TEXTS) + value[at + rng.randrange(2) :]
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 100, -value, value))
    return any_value(rng)


def mutated_bytes(rng, content: bytes) -> bytes:
    """The bytes with a few of them cut off, turned, repeated, or put in."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(content) + 1)
        what = rng.randrange(5)
        if what == 0:
            del content[at:]
        elif what == 1 and at < len(content):
            content[at] = rng.randrange(256)
        elif what == 2:
            content[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 4, 40))))
        elif what == 3:
            del content[at : at + rng.choice((1, 10, 1000))]
        else:
            content[at:at] = content[at : at + rng.choice((1, 20, 400))]
    return bytes(content)


def write_mutated(rng, path) -> None:
    """One file mutated in place: as JSON where it is, or as bytes; or it goes, or becomes a folder."""
    what = rng.random()
    if what < 0.05:
        path.unlink()
    elif what < 0.08:
        path.unlink()
        path.mkdir()
    elif path.suffix == '.json' and what < 0.75:
        path.write_text(json.dumps(mutated(rng, json.loads(path.read_text()))))
    elif path.suffix == '.json' and what < 0.82:
        path.write_text(rng.choice(('[]', 'null', '{}', '"x"', '5', 'NaN', '[' * 20_000, '{"a":' * 20_000, '\ufeff{}')))
    else:
        path.write_bytes(mutated_bytes(rng, path.read_bytes()))
