"""Who may speak to the labelling page: Host and Origin, signed sessions, and the headers of every answer.

A page of another origin can neither post (Origin, Sec-Fetch-Site, a token that only our own page can read) nor reach
the server under a name of its own (DNS rebinding: the Host must be an address, this machine, or a name that was
given). Leaves out what is said (protocol.py).
"""

import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import socket
from urllib.parse import urlsplit

from rlax_ft.feedback.queue import Task

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b'content-security-policy', POLICY.encode()),
    (b'x-content-type-options', b'nosniff'),
    (b'x-frame-options', b'DENY'),
    (b'referrer-policy', b'no-referrer'),
    (b'cross-origin-opener-policy', b'same-origin'),
    (b'cross-origin-resource-policy', b'same-origin'),
    (b'permissions-policy', b'camera=(), microphone=(), geolocation=()'),
    (b'cache-control', b'no-store'),
)
_COOKIE = re.compile(r'([0-9a-f]{32})\.([0-9a-f]{2,512})\.([0-9a-f]{64})')


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that is bound to `host`."""
    try:
        return host == 'localhost' or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Gate:
    """Around an ASGI application: refuses other origins and hosts, and puts the headers on every answer."""

    def __init__(self, app, host: str, names: tuple[str, ...] = ()):
        """Takes the application, the address it is bound to, and further names under which it is reached."""
        self.app, self._local = app, is_loopback(host)
        own = set() if self._local else {host, socket.gethostname(), *names}
        self._names = {'localhost', *(name.lower() for name in own)}

    async def __call__(self, scope, receive, send):
        """Serves one request."""
        if scope['type'] == 'lifespan':
            return await self.app(scope, receive, send)
        if scope['type'] != 'http':
            return None  # No web sockets.
        fault = _doubled(scope['headers']) or self.fault(scope['method'], dict(scope['headers']))
        if fault:
            return await _refuse(send, *fault)

        async def with_headers(message):
            if message['type'] == 'http.response.start':
                message = {**message, 'headers': [*message['headers'], *HEADERS]}
            await send(message)

        return await self.app(scope, receive, with_headers)

    def fault(self, method: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """(status, line) of what is wrong with a request; None where nothing is."""
        host = headers.get(b'host', b'').decode('latin-1').lower()
        if not self._known(host):
            return 421, 'this host name is not served here; see --public_host'
        if method in ('GET', 'HEAD'):
            return None
        if method != 'POST':
            return 405, 'GET, HEAD or POST'
        origin = headers.get(b'origin', b'').decode('latin-1').lower()
        if origin.partition('://')[2] != host or not origin.startswith(('http://', 'https://')):
            return 403, 'requests from another origin are refused'
        if headers.get(b'sec-fetch-site', b'same-origin') not in (b'same-origin', b'none'):
            return 403, 'requests from another site are refused'
        if headers.get(b'content-type', b'').split(b';')[0].strip().lower() != b'application/json':
            return 415, 'application/json was expected'
        return None

    def _known(self, host):
        try:
            name = urlsplit(f'//{host}').hostname or ''
            _ = urlsplit(f'//{host}').port
        except ValueError:
            return False
        if not host or re.search(r'[^a-z0-9.:\[\]_-]', host):
            return False
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self._local


def _doubled(headers):
    """A fault where a header that is looked at stands there twice: others might read the other one."""
    names = [name for name, _ in headers if name in (b'host', b'origin', b'content-type', b'cookie', b'x-csrf-token')]
    return (400, 'a header stands there twice') if len(set(names)) < len(names) else None


async def _refuse(send, status, line):
    body = json.dumps({'error': line}).encode()
    headers = [(b'content-type', b'application/json'), (b'content-length', str(len(body)).encode()), *HEADERS]
    await send({'type': 'http.response.start', 'status': status, 'headers': headers})
    await send({'type': 'http.response.body', 'body': body})


class Keys:
    """Signs sessions and tickets; made from the store's secret and the token, so that a restart changes nothing."""

    def __init__(self, secret: str, token: str = ''):
        """Takes the store's secret, and the token of the server; another token ends all sessions."""
        self._token = token
        self._key = hmac.digest(secret.encode(), token.encode(), hashlib.sha256)

    def right_token(self, token) -> bool:
        """Whether somebody may come in."""
        return not self._token or (
            isinstance(token, str) and hmac.compare_digest(token.encode(errors='replace'), self._token.encode())
        )

    def new_session(self, annotator: str) -> str:
        """The cookie of a new session."""
        body = f'{secrets.token_hex(16)}.{annotator.encode().hex()}'
        return f'{body}.{self._sign("session", body)}'

    def session(self, cookie: str | None) -> tuple[str, str] | None:
        """(annotator, session) of a cookie; None where it is not ours."""
        match = _COOKIE.fullmatch(cookie or '')
        if match is None or not hmac.compare_digest(match[3], self._sign('session', f'{match[1]}.{match[2]}')):
            return None
        try:
            return bytes.fromhex(match[2]).decode(), match[1]
        except ValueError:
            return None

    def csrf(self, session: str) -> str:
        """What every post of a session must carry."""
        return self._sign('csrf', session)

    def right_csrf(self, session: str, value: str | None) -> bool:
        """Whether it does."""
        return hmac.compare_digest((value or '').encode(errors='replace'), self.csrf(session).encode())

    def ticket(self, annotator: str, task: Task) -> str:
        """What says that an annotator was asked this, also to a server that has been started again."""
        body = json.dumps([task.item, task.purpose, task.repeat])
        return f'{self._sign("ticket" + annotator, body)}{body}'

    def task(self, annotator: str, ticket) -> Task | None:
        """What a ticket stands for; None where it is not his or not ours."""
        if not isinstance(ticket, str) or len(ticket) > 2000:
            return None
        sign, body = ticket[:64], ticket[64:]
        if not hmac.compare_digest(sign.encode(errors='replace'), self._sign('ticket' + annotator, body).encode()):
            return None
        return Task(*json.loads(body))

    def _sign(self, kind, text):
        return hmac.new(self._key, f'{kind}\x1f{text}'.encode(errors='replace'), hashlib.sha256).hexdigest()
