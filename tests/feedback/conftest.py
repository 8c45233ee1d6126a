"""A labelling page for tests: its application called directly, or served on a port by a thread."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest

from rlax_ft.data.feedback import read_store
from rlax_ft.feedback.items import make_item
from rlax_ft.feedback.protocol import Form
from rlax_ft.feedback.queue import Queue
from rlax_ft.feedback.store import Store


class Page:
    """An application over a store in a folder, and calls of it without a network."""

    def __init__(self, folder, items=(), *, criteria=(), strength='optional', token='', host='127.0.0.1', **queue):
        from rlax_ft.feedback.app import Collection, make_app
        from rlax_ft.feedback.serving import live_statistics

        self.path = folder / 'feedback.sqlite'
        self.store = Store(self.path)
        form = Form(tuple(criteria), strength, 'guideline', 0)
        self.collection = Collection(self.store, Queue(**queue), form, 'Be *fair*.')
        self.collection.add(list(items))
        live = live_statistics(self.collection)
        self.app = make_app(self.collection, host=host, port=8600, token=token, statistics=live)

    def request(self, method, path, headers=(), body=b''):
        """(status, headers, body) of one request; headers are (name, value) of bytes."""
        answer = {'body': b''}

        async def call():
            async def receive():
                return {'type': 'http.request', 'body': body, 'more_body': False}

            async def send(message):
                if message['type'] == 'http.response.start':
                    answer.update(status=message['status'], headers=dict(message['headers']))
                else:
                    answer['body'] += message.get('body', b'')

            raw, _, query = path.partition('?')
            scope = {
                'type': 'http',
                'method': method,
                'path': raw,
                'raw_path': raw.encode(errors='replace'),
                'query_string': query.encode(errors='replace'),
                'headers': list(headers),
                'http_version': '1.1',
                'scheme': 'http',
                'server': ('127.0.0.1', 8600),
                'client': ('127.0.0.1', 1),
                'root_path': '',
            }
            await self.app(scope, receive, send)

        asyncio.run(call())
        return answer['status'], answer['headers'], answer['body']

    def post(self, name, value, person=None, **headers):
        """(status, JSON) of a post as our own page makes it; headers replace its own, None leaves one out."""
        given = {'host': '127.0.0.1:8600', 'origin': 'http://127.0.0.1:8600', 'content-type': 'application/json'}
        if person:
            given |= {'cookie': person['cookie'], 'x-csrf-token': person['csrf']}
        given |= {key.replace('_', '-'): text for key, text in headers.items()}
        pairs = [(key.lower().encode(), text.encode()) for key, text in given.items() if text is not None]
        status, _, body = self.request('POST', f'/api/{name}', pairs, json.dumps(value).encode())
        return status, json.loads(body)

    def login(self, name, token=''):
        """A person: cookie and CSRF token."""
        pairs = [
            (b'host', b'127.0.0.1:8600'),
            (b'origin', b'http://127.0.0.1:8600'),
            (b'content-type', b'application/json'),
        ]
        value = json.dumps({'name': name, 'token': token}).encode()
        status, headers, body = self.request('POST', '/api/login', pairs, value)
        assert status == 200, body
        return {'cookie': headers[b'set-cookie'].decode().split(';')[0], 'csrf': json.loads(body)['csrf']}

    def ask(self, person, **value):
        status, asked = self.post('next', value, person)
        assert status == 200, asked
        return asked

    def judge(self, person, asked, identity, **value):
        """(status, answer) of a judgement; A without further words."""
        sent = {
            'id': identity,
            'ticket': asked['ticket'],
            'choice': 'A',
            'start_ms': 1,
            'end_ms': 5000,
            'active_ms': 4000,
        }
        return self.post('judge', sent | value, person)

    def rows(self):
        return [row for row, _ in read_store(self.path)]

    @contextlib.contextmanager
    def served(self):
        """The address of the page on a port of its own, while the body runs."""
        import uvicorn

        bound = socket.socket()
        bound.bind(('127.0.0.1', 0))
        config = uvicorn.Config(self.app, log_level='error', lifespan='off', ws='none')
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={'sockets': [bound]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f'http://127.0.0.1:{bound.getsockname()[1]}/'
        finally:
            server.should_exit = True
            thread.join(timeout=10)


@pytest.fixture
def pairs():
    """`pairs(count)` items of two responses by two policies."""

    def make(i):
        texts = {'good': f'It is {i}.', 'bad': f'No idea, {i}.'}
        return make_item(f'What is {i}?', [{'text': text, 'policy': policy} for policy, text in texts.items()])

    return lambda count: [make(i) for i in range(count)]


@pytest.fixture
def make_page(tmp_path):
    """`make_page(items, **options) -> Page`; its store is closed after the test."""
    pages = []

    def make(items=(), **options):
        folder = tmp_path / str(len(pages))
        folder.mkdir(exist_ok=True)
        pages.append(Page(folder, items, **options))
        return pages[-1]

    yield make
    for page in pages:
        page.store.close()
