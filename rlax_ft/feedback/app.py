"""The labelling page's server: a Starlette application over a store and a queue, and uvicorn around it.

Judgements of people who press a key at the same moment are written in one transaction; each is answered after its
commit. Leaves out the page itself (static/), what may be posted (protocol.py) and who may post (security.py).
"""

import asyncio
import hashlib
import json
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from importlib import resources

from rlax_ft.errors import InputError
from rlax_ft.feedback.protocol import (
    Form,
    Refused,
    checked_id,
    checked_judgement,
    checked_name,
    item_for_page,
    parsed,
    undo_row,
)
from rlax_ft.feedback.queue import Queue, Task, priority
from rlax_ft.feedback.security import Gate, Keys
from rlax_ft.feedback.store import Store

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise InputError('the labelling page needs starlette and uvicorn; pip install "rlax_ft[feedback]"') from error

MOST_BODY = 4_000_000
MOST_ANNOTATORS = 500
_STATISTICS_SECONDS = 3.0
_NO_STATISTICS = {'numbers': [], 'annotators': {'heads': [], 'rows': []}, 'agreement': []}
_TYPES = {'html': 'text/html', 'css': 'text/css', 'js': 'text/javascript', 'svg': 'image/svg+xml'}
_PAGES = {'/': 'index.html', '/stats': 'stats.html'}


class Collection:
    """A store with its queue: what the application and whoever adds items share."""

    def __init__(self, store: Store, queue: Queue, form: Form, guidelines: str, strategy: str = 'random'):
        """Fills the queue from the store."""
        self.store, self.queue, self.form, self.strategy = store, queue, form, strategy
        self.guidelines, self.lock = guidelines, threading.Lock()
        store.add_guideline(form.guideline, guidelines)
        queue.add([(name, purpose, float('nan')) for name, purpose in store.item_list()])
        said = {}
        for name, item, annotator, purpose, repeat, choice, supersedes in store.marks():
            queue.record(name, Task(item, purpose, repeat), annotator, choice, supersedes)
            said[name] = item
        self.annotators = set(queue.standing)

    def add(self, items: Iterable[dict]) -> int:
        """Adds items, all or none, also while people work; gives how many are new. Known ones are ranked anew."""
        ranked = []

        def noted():
            for item in items:
                ranked.append((item['id'], item['purpose'], priority(item['content'].get('scores'), self.strategy)))
                yield item

        new = self.store.add_items(noted())
        with self.lock:
            self.queue.add(ranked)
        return new

    def rank(self, priorities: dict[str, float]) -> None:
        """Gives items that are there a new place in the order."""
        with self.lock:
            self.queue.add([(name, 'item', value) for name, value in priorities.items()])


def guideline_hash(text: str) -> str:
    """By which rows name the guidelines that their annotator saw."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Server:
    """The application's handlers and what they share."""

    def __init__(self, collection: Collection, keys: Keys, cookie: str, statistics: Callable[[], dict] | None = None):
        """Takes what is collected, the keys of sessions, the name of their cookie, and the statistics."""
        self.collection, self.keys, self.cookie, self._make_statistics = collection, keys, cookie, statistics
        self._files = _static_files()
        self._waiting: list[tuple[dict, asyncio.Future]] = []
        self._writing: asyncio.Task | None = None
        self._under_way: dict[str, asyncio.Future] = {}
        self._statistics: tuple[float, dict] = (-math.inf, _NO_STATISTICS)
        self._wrong_tokens, self._guessing = 0, asyncio.Lock()

    def routes(self) -> list:
        """What is served; nothing else is."""
        return [
            *(Route(path, self.page, methods=['GET']) for path in _PAGES),
            Route('/static/{name}', self.static, methods=['GET']),
            Route('/api/session', self.session, methods=['GET']),
            Route('/api/stats', self.stats, methods=['GET']),
            *(
                Route(f'/api/{name}', getattr(self, name), methods=['POST'])
                for name in ('login', 'next', 'judge', 'undo', 'logout')
            ),
        ]

    async def page(self, request):
        """The two pages."""
        return self._file(_PAGES[request.url.path])

    async def static(self, request):
        """Styles and scripts, by a name that was read when the server started: no path leads elsewhere."""
        return self._file(request.path_params['name'])

    def _file(self, name):
        if name not in self._files:
            raise Refused('no such page', 404)
        return Response(self._files[name], media_type=_TYPES[name.rpartition('.')[2]])

    async def session(self, request):
        """Who is at work, and what the page needs to know before the first item."""
        return JSONResponse(self._session(self._who(request, needed=False)))

    def _session(self, who):
        form = self.collection.form
        known = {
            'token_needed': not self.keys.right_token(''),
            'criteria': list(form.criteria),
            'strength': form.strength,
        }
        if who is None:
            return known | {'name': None}
        inside = {'name': who[0], 'csrf': self.keys.csrf(who[1]), 'guidelines': self.collection.guidelines}
        with self.collection.lock:
            return known | inside | {'progress': self.collection.queue.progress(who[0])}

    async def login(self, request):
        """Begins a session under a name."""
        posted = await self._posted(request)
        if not self.keys.right_token(posted.get('token', '')):
            async with self._guessing:  # Guessing is slow, however many guess at a time.
                self._wrong_tokens += 1
                await asyncio.sleep(min(0.25 * self._wrong_tokens, 2.0))
            raise Refused('the token is wrong', 403)
        name = checked_name(posted.get('name'))
        known = self.collection.annotators
        if name not in known and len(known) >= MOST_ANNOTATORS:
            raise Refused('there are too many annotators', 403)
        known.add(name)
        cookie = self.keys.new_session(name)
        answer = JSONResponse(self._session(self.keys.session(cookie)))
        answer.set_cookie(self.cookie, cookie, max_age=90 * 86400, httponly=True, samesite='strict')
        return answer

    async def logout(self, request):
        """Ends a session."""
        self._checked(request)
        answer = JSONResponse({'name': None})
        answer.delete_cookie(self.cookie, httponly=True, samesite='strict')
        return answer

    async def next(self, request):
        """What is to be judged now; with the ticket of what he had before the server was restarted, that."""
        name, _ = self._checked(request)
        posted = await self._posted(request)
        held = self.keys.task(name, posted.get('ticket')) if posted.get('ticket') else None
        return JSONResponse(self._next(name, held))

    def _next(self, name, held=None):
        queue = self.collection.queue
        with self.collection.lock:
            if held is not None:
                queue.resume(name, held)
            task = queue.next(name)
            waiting = task is None and queue.waiting(name)
        return self._asked(name, task) if task else self._progress(name) | {'waiting': waiting}

    def _asked(self, name, task):
        item = self.collection.store.item(task.item)
        asked = item_for_page(self.collection.form, name, task, item)
        return asked | {'ticket': self.keys.ticket(name, task)} | self._progress(name)

    def _progress(self, name):
        with self.collection.lock:
            queue = self.collection.queue
            return {'progress': queue.progress(name), 'can_undo': queue.last(name) is not None}

    async def judge(self, request):
        """Takes one judgement; answers when it is on the disk. The same id again is the same judgement."""
        name, session = self._checked(request)
        posted = await self._posted(request)
        identity = checked_id(posted.get('id'))
        task = self.keys.task(name, posted.get('ticket'))
        if task is None:
            raise Refused('this was not asked of you; load the page again', 409)
        if identity in self._under_way:
            await asyncio.shield(self._under_way[identity])
        before = self.collection.store.row(identity)
        if before is not None and before['annotator'] != name:
            raise Refused('this id is taken', 409)
        item = self.collection.store.item(task.item)
        if item is None:
            raise Refused('this item is not here any more; load the page again', 409)
        if before is None:
            row = checked_judgement(self.collection.form, posted, name, session, task, item)
            with self.collection.lock:
                if not self.collection.queue.may_judge(name, task):
                    raise Refused('you have judged this already, perhaps in another window', 409)
                self.collection.queue.record(identity, task, name, row['choice'], None)
            try:
                await self._save(row)
            except Refused:
                with self.collection.lock:
                    self.collection.queue.record('', task, name, 'undo', identity)
                    self.collection.queue.reopen(name, task)
                raise
            before = row
        # What is asked next comes along; after training the annotator reads first.
        lesson = self._lesson(task, item, before)
        rest = lesson | self._progress(name) if lesson else {'next': self._next(name)}
        return JSONResponse({'saved': before['id']} | rest)

    def _lesson(self, task, item, row):
        """After a training item: what the gold answer is, in the order shown, and whether it was found."""
        if task.purpose != 'training':
            return {}
        # Sent twice, it comes from the store, whose columns are JSON.
        ranks, shown = (json.loads(v) if isinstance(v, str) else v for v in (row['ranks'], row['shown']))
        right = ranks is not None and [r == 0 for r in ranks] == [r == 0 for r in item['answer']]
        answer = [item['answer'][index] for index in shown]
        return {'lesson': {'right': right, 'answer': answer, 'why': item.get('why') or ''}}

    async def undo(self, request):
        """Takes back the last judgement of this annotator, and asks it again."""
        name, session = self._checked(request)
        posted = await self._posted(request)
        identity = checked_id(posted.get('id'))
        done = self.collection.store.row(identity)
        with self.collection.lock:
            if done is not None:  # Sent twice: it has been undone.
                return JSONResponse(self._again(name, done))
            last = self.collection.queue.last(name)
            if last is None:
                raise Refused('there is nothing to undo', 409)
            task, judged = last
            before = self.collection.store.row(judged)
            if before is None:
                raise Refused('still being saved; try again', 409)
            self.collection.queue.record(identity, task, name, 'undo', judged)
            self.collection.queue.reopen(name, task)
        try:
            await self._save(undo_row(before, identity, session, self.collection.form))
        except Refused:
            with self.collection.lock:
                self.collection.queue.record(judged, task, name, before['choice'], None)
            raise
        return JSONResponse(self._asked(name, task) | {'undone': judged})

    def _again(self, name, row):
        if row['annotator'] != name or row['choice'] != 'undo':
            raise Refused('this id is taken', 409)
        return {'undone': row['supersedes'], 'reload': True}

    async def stats(self, request):
        """What the statistics page shows, made anew every few seconds at most, and by one thread at a time."""
        self._who(request)
        due, value = self._statistics
        if self._make_statistics and time.monotonic() >= due:
            began = time.monotonic()
            self._statistics = (math.inf, value)  # Who asks meanwhile gets those of before.
            try:
                value = await asyncio.to_thread(self._make_statistics)
            finally:
                # Of many judgements they take a while: those who judge have most of the time.
                took = time.monotonic() - began
                self._statistics = (began + took + max(_STATISTICS_SECONDS, 5 * took), value)
        return JSONResponse(value)

    async def _save(self, row):
        """Waits until a row is on the disk, together with those that come meanwhile."""
        future = asyncio.get_running_loop().create_future()
        self._under_way[row['id']] = future
        self._waiting.append((row, future))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        try:
            fault = await asyncio.shield(future)
        finally:
            self._under_way.pop(row['id'], None)
        if fault:
            raise Refused(f'not saved ({fault}); it will be tried again', 503)

    async def _write(self):
        while self._waiting:
            batch, self._waiting = self._waiting, []
            fault = ''
            try:
                await asyncio.to_thread(self.collection.store.append, [row for row, _ in batch])
            except sqlite3.Error as error:
                fault = str(error)
                logging.warning('%s: %d judgements not saved (%s)', self.collection.store.path, len(batch), error)
            for _, future in batch:
                if not future.done():
                    future.set_result(fault)

    def _who(self, request, *, needed=True):
        who = self.keys.session(request.cookies.get(self.cookie))
        if who is None and needed:
            raise Refused('say who you are first', 401)
        return who

    def _checked(self, request):
        who = self._who(request)
        if not self.keys.right_csrf(who[1], request.headers.get('x-csrf-token')):
            raise Refused('the page is out of date; load it again', 403)
        return who

    async def _posted(self, request):
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BODY:
                    raise Refused(f'more than {MOST_BODY} bytes', 413)
        except ClientDisconnect as error:
            raise Refused('the connection ended') from error
        return parsed(bytes(body))


def make_app(
    collection: Collection,
    *,
    host: str = '127.0.0.1',
    port: int = 0,
    token: str = '',
    public_hosts: tuple[str, ...] = (),
    statistics: Callable[[], dict] | None = None,
):
    """The ASGI application.

    Args:
      collection: what is judged.
      host: the address to which it will be bound.
      port: as well; two servers of one machine have cookies of their own.
      token: which annotators must know; empty on loopback.
      public_hosts: further names under which it is reached.
      statistics: `() -> dict` that the statistics page shows.
    """
    keys = Keys(collection.store.meta('secret'), token)
    server = Server(collection, keys, f'rlax_feedback_{port}', statistics)

    async def refused(request, error):
        return JSONResponse({'error': str(error)}, status_code=error.status)

    async def not_there(request, error):
        return JSONResponse({'error': error.detail}, status_code=error.status_code)

    handlers = {Refused: refused, HTTPException: not_there}
    return Gate(Starlette(routes=server.routes(), exception_handlers=handlers), host, public_hosts)


def _static_files() -> dict[str, bytes]:
    folder = resources.files('rlax_ft.feedback') / 'static'
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition('.')[2] in _TYPES}
