"""The page on a port: uvicorn around the application, and the numbers of the live statistics page.

Leaves out the application (app.py).
"""

import math
import socket
import sys
from collections.abc import Callable

import uvicorn

from rlax_ft.errors import InputError
from rlax_ft.feedback.app import Collection, make_app
from rlax_ft.feedback.statistics import summary


def serve_app(collection: Collection, *, host: str, port: int, token: str, public_hosts=(), statistics=None) -> None:
    """Serves until SIGINT or SIGTERM.

    Raises:
      InputError: the address cannot be bound.
    """
    bound = _bind(host, port)
    port = bound.getsockname()[1]
    app = make_app(collection, host=host, port=port, token=token, public_hosts=public_hosts, statistics=statistics)
    shown = f'[{host}]' if ':' in host else socket.gethostname() if host == '0.0.0.0' else host
    where = f'http://{shown}:{port}/' + (f'#token={token}' if token else '')
    items = len(collection.queue.names)
    print(f'{items} items, judgements go to {collection.store.path}; Ctrl-C ends\nopen {where}', flush=True)
    config = uvicorn.Config(
        app,
        log_level='warning',
        server_header=False,
        timeout_graceful_shutdown=3,
        timeout_keep_alive=30,
        lifespan='off',
        ws='none',
    )
    # Statistics and sampling run in threads beside: who judges does not wait 5 ms for each of them.
    sys.setswitchinterval(0.0005)
    uvicorn.Server(config).run(sockets=[bound])


def _bind(host, port):
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(256)  # Whoever reads the line below may connect at once.
    except OSError as error:
        raise InputError(
            f'--host={host} --port={port}: {error.strerror}; give another port, or 0 for a free one'
        ) from error
    return bound


def live_statistics(collection: Collection) -> Callable[[], dict]:
    """`() -> dict` for the statistics page. It names no policy: those who look may be those who judge."""
    gold: dict[str, list] = {}

    def make():
        rows = collection.store.light_rows()
        with collection.lock:
            special = [name for name, purpose in collection.queue.purposes().items() if purpose == 'gold']
            counts, overlap = collection.queue.counts, collection.queue.overlap
            complete, total = int((counts >= overlap).sum()), len(counts)
        for name in special:
            if name not in gold:
                gold[name] = collection.store.item(name)['answer']
        return _shown(summary(rows, resamples=0, gold=gold), complete, total)

    return make


def _shown(numbers, complete, total):
    number = lambda value: None if isinstance(value, float) and math.isnan(value) else value  # noqa: E731
    columns = (
        ('judgements', ''),
        ('skipped', ''),
        ('median_seconds', 'seconds'),
        ('too_fast', 'share'),
        ('first_side', 'share'),
        ('consistency', 'share'),
        ('gold', 'share'),
        ('agreement', 'share'),
    )
    rows = [
        [[r['name'], '', False]]
        + [[number(r[name]), kind, False] for name, kind in columns]
        + [[', '.join(r['flags']), '', bool(r['flags'])]]
        for r in numbers['by_annotator']
    ]
    heads = [
        'Name',
        'Judged',
        'Skipped',
        'Median',
        'Too fast',
        'First side',
        'Same again',
        'Gold found',
        'Agrees',
        'Look at',
    ]
    return {
        'numbers': [
            ['judgements', numbers['judgements'], ''],
            ['items complete', complete, ''],
            ['items', total, ''],
            ['skipped', numbers['skipped'], ''],
            ['both bad', numbers['both_bad'], ''],
            ['undone', numbers['undone'], ''],
            ['first side won', number(numbers['position'][0]), 'share'],
        ],
        'annotators': {'heads': heads, 'rows': rows},
        'agreement': [[name, number(v[0]), v[3]] for name, v in numbers['agreement'].items()]
        + [[f'{name}: alpha', number(v[0]), v[3]] for name, v in numbers['criteria'].items()],
    }
