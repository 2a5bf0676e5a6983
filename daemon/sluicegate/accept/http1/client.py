"""The client of a request on the fast way: the body that it sends, and the answer that it gets."""

import socket
import time
from collections.abc import AsyncGenerator, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

import trio

from ...config.live import Live
from ...exchange import ClientGone, Headers, Room
from ..intake import Held, declared_length

#: Bodies up to this size (bytes) are not counted: a connection has one at a time, and connections_max bounds those.
COUNTED_ABOVE = 65536

_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode("ascii") for s in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_END_OF_BODY = b"\r\n0\r\n\r\n"


class Connection(Protocol):
    """What body and client need of their connection."""

    sock: socket.socket
    closing: bool
    config: Live

    async def take(self, length: int, body: "Http1Body") -> bytes:
        """The next `length` bytes. `body` is asked before more is read than is there already, and told what comes.

        Refusal if they do not arrive in time; ClientGone if they never will.
        """
        ...

    async def send(self, data: bytes) -> None:
        """Send it all. ClientStalled or ClientGone."""
        ...


class Http1Body(Held):
    """A request's body of declared length. `expects`: its client waits for a 100 before it sends it."""

    _counted = False

    def __init__(self, connection: Connection, headers: Headers, *, expects: bool = False) -> None:
        self._connection = connection
        self._headers = headers
        self._expects = expects
        self.consumed = False

    async def whole(self, room: Room) -> bytes:
        length = declared_length(self._headers, self._connection.config.current.limits) or 0
        self._room = room
        data = await self._connection.take(length, self)
        self.consumed = True
        return data

    async def parts(self, room: Room) -> AsyncGenerator[bytes, None]:
        yield await self.whole(room)

    async def begin(self, length: int) -> None:
        """`length` bytes are to be read, of which not all are there: Refusal if they are not to be."""
        self._room.begin(length)
        self._counted = length > COUNTED_ABOVE
        if self._expects:
            await self._connection.send(_CONTINUE)

    def come(self, length: int) -> None:
        """So many bytes of it have come."""
        if self._counted:
            self.hold(self._room, length)


class Http1Client:
    """The client's end of an exchange, on the socket itself. A small answer, head and body, is one send.

    `cors`: the lines of cors.py that its head carries.
    """

    def __init__(self, connection: Connection, request_id: str, body: Http1Body | None, *, keep_alive: bool) -> None:
        self._connection = connection
        self._request_id = request_id
        self._body = body
        self._owed = b""
        self._ending = False
        self.keep_alive = keep_alive
        self.cors = b""
        self.timing: Callable[[], bytes] | None = None
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
            # A refusal may have taken no await at all: let others run before this client's next request. It may close
            # meanwhile, having all of its answer: that is no abort.
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        self._owed = self._make_head(status, headers, b"transfer-encoding: chunked\r\n\r\n")

    async def send(self, data: bytes) -> None:
        if self._ending or self._owed.endswith(_END_OF_BODY):
            raise ClientGone  # the body has ended: more data would be read as a part of it, or of the next answer
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
                b"server-timing: %s\r\n" % self.timing() if self.timing else b"",
                self.cors,
                b"" if self.keep_alive else b"connection: close\r\n",
                _date(),
                last,
            )
        )


_date_cache = (0, b"")


def _date() -> bytes:
    """The date field, made once a second."""
    global _date_cache
    now = int(time.time())
    if _date_cache[0] != now:
        _date_cache = (now, b"date: " + formatdate(now, usegmt=True).encode("ascii") + b"\r\n")
    return _date_cache[1]
