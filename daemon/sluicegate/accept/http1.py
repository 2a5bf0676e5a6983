"""The fast way in: HTTP/1.1 on the hot routes, from the socket to the pipeline without ASGI or a task per request.

One task per connection. It takes over what it knows: a POST to an inference route with a declared length. Anything else
(other routes, HTTP/1.0, HTTP/2, chunked or multipart bodies, Expect, Upgrade) it hands on, with every byte as it came,
to Hypercorn, which keeps the connection from then on. Heads are parsed by llhttp (httptools), which is strict.
"""

import contextlib
import socket
import struct
import time
from collections.abc import AsyncGenerator
from email.utils import formatdate
from http import HTTPStatus

import httptools
import trio

from .. import refusals
from ..config.live import Live
from ..dialects.routes import ENDPOINTS
from ..exchange import ClientGone, ClientStalled, Dialect, Endpoint, Headers
from ..outcome import Outcome, Refusal
from .handler import Handler, Unmatched
from .intake import LINGER_S, declared_length, make_request, new_id, too_slow

#: How long a new connection may take for its first request once we are closing (seconds). One that a client opened to
#: send it at once must not be cut off; one that was opened for later may.
FIRST_REQUEST_S = 1.0

#: Bytes per read; most requests come in one.
READ_SIZE = 65536

#: A client must take each piece of this size within client_stall_s: with the default of 15 s, 4 KiB/s (bytes).
PIECE = 65536

_HOT = {path.encode("ascii"): endpoint for path, endpoint in ENDPOINTS.items() if not endpoint.opaque}
_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode("ascii") for s in HTTPStatus}
_END_OF_HEAD = b"\r\n\r\n"
_END_OF_BODY = b"\r\n0\r\n\r\n"


class HandOver(Exception):
    """Not for us: Hypercorn takes the connection on, beginning with these bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data


class Http1Connection:
    """One client connection on the fast way. Does not own the socket: whoever made it closes it."""

    def __init__(self, sock: socket.socket, handler: Handler, config: Live, unmatched: Unmatched) -> None:
        self.sock = sock
        self.closing = False
        self.fresh = True  # no request has come yet
        self._handler = handler
        self._config = config
        self._unmatched = unmatched
        self._buffer = b""
        self._unsent = b""
        self._idle: trio.CancelScope | None = None
        self._scope = trio.CancelScope()

    async def serve(self) -> None:
        """Serve requests until the connection is to be closed. HandOver if it is for Hypercorn."""
        # One scope for all of the connection's requests: whatever is going on when the peer leaves, it is the last.
        with self._scope:
            while self.fresh or not self.closing:
                head = await self._next_head()
                self.fresh = False
                if head is None or not await self._serve_one(head):
                    return

    def hung_up(self) -> None:
        """The peer closed, half-closed or reset the connection: whoever works for it may stop."""
        self._scope.cancel()

    def close_soon(self) -> None:
        """Close now if idle, else after the present answer. One on which nothing came yet is given a moment."""
        self.closing = True
        if self._idle is not None:
            self._idle.deadline = min(self._idle.deadline, trio.current_time() + FIRST_REQUEST_S * self.fresh)

    async def _serve_one(self, head: "_Head") -> bool:
        """Serve one request; whether the connection can take another."""
        body = Http1Body(self, head)
        request = make_request(head.hot, head.headers, body)
        client = Http1Client(self, request.id, body, keep_alive=head.keep_alive)
        try:
            await self._handler.handle(request, client)
        finally:
            if client.started and not client.complete:
                reset_on_close(self.sock)
        if client.complete and not body.consumed:
            await self._linger()
        return client.complete and client.keep_alive

    # -- reading --------------------------------------------------------------------------------------------------

    async def _next_head(self) -> "_Head | None":
        """The next request's head; None when the connection is over."""
        config = self._config.current
        timeouts, limits = config.timeouts, config.limits
        buffer = self._buffer
        patience = timeouts.head_read_s if buffer else FIRST_REQUEST_S if self.closing else timeouts.keep_alive_s
        deadline = trio.current_time() + patience
        searched = 0
        while (end := buffer.find(_END_OF_HEAD, searched)) < 0 and len(buffer) <= limits.header_max_bytes:
            if buffer and not _plausible(buffer):
                raise HandOver(buffer)
            searched = max(0, len(buffer) - 3)
            data = await self._receive(deadline, idle=not buffer)
            if data is None and buffer:
                await self._reject(408, f"The request's head did not arrive within {timeouts.head_read_s:g} s.")
            if not data:
                return None
            if not buffer:
                deadline = trio.current_time() + timeouts.head_read_s
            buffer += data
        if not 0 <= end <= limits.header_max_bytes:
            await self._reject(431, f"The request's head is larger than {limits.header_max_bytes} bytes.")
            return None
        try:
            head = _Head.parse(buffer[: end + 4])
        except httptools.HttpParserError as error:
            await self._reject(400, f"The request is not valid HTTP/1.1: {error}.")
            return None
        if head is None:
            raise HandOver(buffer)
        self._buffer = buffer[end + 4 :]
        return head

    async def _receive(self, deadline: float, *, idle: bool = False) -> bytes | None:
        """Bytes as they come; b"" at the end of the connection; None at `deadline`, or if `idle` and we are closing."""
        sock = self.sock
        while True:
            try:
                return sock.recv(READ_SIZE)
            except BlockingIOError:
                pass
            except OSError:
                return b""
            with trio.CancelScope(deadline=deadline) as scope:
                self._idle = scope if idle else None
                await trio.lowlevel.wait_readable(sock)
            self._idle = None
            if scope.cancelled_caught:
                return None

    async def _linger(self) -> None:
        """Let the answer arrive although the peer still sends: a close with bytes unread would reset the connection."""
        with trio.move_on_after(LINGER_S) as scope, contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
            while await self._receive(scope.deadline):
                pass

    # -- writing --------------------------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Send it all; ClientStalled if the peer does not take a piece in time, ClientGone if it is gone.

        What is left of it when this is cancelled goes out before whatever is sent next, or that would be in the midst.
        """
        if self._unsent:
            data, self._unsent = self._unsent + data, b""
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            raise ClientGone from None
        if sent < len(data):
            await self._send_rest(memoryview(data)[sent:])

    async def _send_rest(self, rest: memoryview) -> None:
        stall_s = self._config.current.timeouts.client_stall_s
        while rest:
            piece = rest[:PIECE]
            try:
                with trio.move_on_after(stall_s):
                    while piece:
                        await trio.lowlevel.wait_writable(self.sock)
                        try:
                            piece = piece[self.sock.send(piece) :]
                        except BlockingIOError:
                            continue
                        except OSError:
                            raise ClientGone from None
            except trio.Cancelled:
                self._unsent = bytes(piece) + bytes(rest[PIECE:])
                raise
            if piece:
                raise ClientStalled
            rest = rest[PIECE:]

    async def _reject(self, status: int, message: str) -> None:
        """Answer what is no request, and close."""
        request_id = new_id()
        self._unmatched(request_id, status)
        client = Http1Client(self, request_id, None, keep_alive=False)
        made = refusals.answer(Dialect.CHAT, Refusal(Outcome.INVALID, status, message))
        with contextlib.suppress(ClientGone, ClientStalled):
            await client.respond(made.status, made.headers, made.body)
            await self._linger()


class _Head:
    """A request's head on a hot route."""

    __slots__ = ("complete", "headers", "hot", "keep_alive", "strange", "target")

    def __init__(self) -> None:
        self.headers: Headers = []
        self.target = b""
        self.complete = False
        self.strange = False
        self.keep_alive = True
        self.hot: Endpoint

    @classmethod
    def parse(cls, data: bytes) -> "_Head | None":
        """The head in `data`, which ends with its blank line; None if it is not for the fast way.

        httptools.HttpParserError if it is not HTTP, or says two things about its length.
        """
        head = cls()
        parser = httptools.HttpRequestParser(head)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return None
        hot = _HOT.get(head.target)
        if hot is None or head.strange or not head.complete:
            return None
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
            return None
        head.hot = hot
        head.keep_alive = bool(parser.should_keep_alive())
        return head

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _STRANGE:
            self.strange = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True

    def on_body(self, _: bytes) -> None:
        self.strange = True  # llhttp saw the end of the head before we did: not both can be right


#: Fields that make a request one for Hypercorn.
_STRANGE = frozenset({b"expect", b"transfer-encoding", b"upgrade", b"http2-settings"})


class Http1Body:
    """A request's body of declared length."""

    def __init__(self, connection: Http1Connection, head: _Head) -> None:
        self._connection = connection
        self._head = head
        self.consumed = False

    async def whole(self) -> bytes:
        connection = self._connection
        length = declared_length(self._head.headers, connection._config.current.limits) or 0
        buffer = connection._buffer
        if len(buffer) < length:
            buffer = await self._rest(length)
        self.consumed = True
        if len(buffer) == length:
            connection._buffer = b""
            return buffer
        connection._buffer = buffer[length:]
        return buffer[:length]

    async def _rest(self, length: int) -> bytes:
        connection = self._connection
        seconds = connection._config.current.timeouts.body_read_s
        deadline = trio.current_time() + seconds
        buffer = bytearray(connection._buffer)
        while len(buffer) < length:
            data = await connection._receive(deadline)
            if data is None:
                raise too_slow(seconds)
            if not data:
                raise ClientGone
            buffer += data
        return bytes(buffer)

    async def parts(self) -> AsyncGenerator[bytes, None]:
        yield await self.whole()


class Http1Client:
    """The client's end of an exchange, on the socket itself. A small answer, head and body, is one send."""

    def __init__(
        self, connection: Http1Connection, request_id: str, body: Http1Body | None, *, keep_alive: bool
    ) -> None:
        self._connection = connection
        self._request_id = request_id
        self._body = body
        self._owed = b""
        self._ending = False
        self.keep_alive = keep_alive
        self.started = False
        self.complete = False

    @property
    def splice(self) -> "Http1Client":
        return self

    @property
    def sock(self) -> socket.socket:
        return self._connection.sock

    def owe(self, data: bytes) -> None:
        self._owed = data

    def ended(self) -> None:
        self.complete = True

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        self.started = self._ending = True
        head = self._make_head(status, headers, b"content-length: %d\r\n\r\n" % len(body))
        await self._connection.send(head + body)
        self.complete = True
        if status >= 400:
            # A refusal may have taken no await at all: let others run before this client's next request.
            await trio.lowlevel.checkpoint()

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        self._owed = self._make_head(status, headers, b"transfer-encoding: chunked\r\n\r\n")

    async def send(self, data: bytes) -> None:
        if self._ending or self._owed.endswith(_END_OF_BODY):
            raise ClientGone  # broken off: what came now would pass for a part of this answer, or of the next one
        owed, self._owed = self._owed, b""
        await self._connection.send(b"%s%x\r\n%s\r\n" % (owed, len(data), data))

    async def finish(self) -> None:
        self._ending = True
        owed, self._owed = self._owed, b""
        await self._connection.send(owed + b"0\r\n\r\n")
        self.complete = True

    def _make_head(self, status: int, headers: Headers, last: bytes) -> bytes:
        if self._connection.closing or (self._body is not None and not self._body.consumed):
            self.keep_alive = False
        fields = b"".join([b"%s: %s\r\n" % field for field in headers])
        return b"".join(
            (
                _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status,
                fields,
                b"x-request-id: %s\r\n" % self._request_id.encode("ascii"),
                b"" if self.keep_alive else b"connection: close\r\n",
                _date(),
                last,
            )
        )


def reset_on_close(sock: socket.socket) -> None:
    """Have the coming close reset the connection, so that the kernel does not keep what the client never took."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _plausible(buffer: bytes) -> bool:
    """Whether `buffer` may still become a head for the fast way: it begins like a POST in HTTP/1.1."""
    return b"POST /".startswith(buffer[:6])


_date_cache = (0, b"")


def _date() -> bytes:
    """The date field, made once a second."""
    global _date_cache
    now = int(time.time())
    if _date_cache[0] != now:
        _date_cache = (now, b"date: " + formatdate(now, usegmt=True).encode("ascii") + b"\r\n")
    return _date_cache[1]
