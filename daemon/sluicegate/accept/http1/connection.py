"""One client connection on the fast way: its heads read, each request handled, its bytes written within deadlines."""

import contextlib
import socket

import trio

from ... import refusals
from ...config.live import Live
from ...exchange import ClientGone, ClientStalled
from ...outcome import Outcome, Refusal
from ...timing import server_timing
from .. import cors
from ..codings import decoded
from ..handler import Handler, Unmatched
from ..intake import PIECE, dialect_of, make_request, new_id, too_slow
from ..proxied import client_of
from ..sockets import NOT_NOW, TLS_NOT_NOW, Wait, has_unread, linger, reset_on_close, wait_for
from .client import Http1Body, Http1Client
from .grammar import method_of, target_of
from .head import Head, may_be_hot

#: How long a new connection may take for its first request while the gateway closes (seconds). A client that connects
#: to send a request at once gets its answer; one that connects in advance does not keep the gateway from stopping.
FIRST_REQUEST_S = 1.0

#: Bytes per read; most requests come in one.
READ_SIZE = 65536

_END_OF_HEAD = b"\r\n\r\n"


class HandOver(Exception):
    """Not for the fast way: Hypercorn serves what comes now, beginning with `data`."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data


class Http1Connection:
    """One client connection on the fast way. The caller owns the socket and closes it."""

    def __init__(
        self,
        sock: socket.socket,
        handler: Handler,
        config: Live,
        unmatched: Unmatched,
        data: bytes = b"",
        address: str = "",
    ) -> None:
        """`data`: what has been read of it already. `address`: the peer's, or that of the client that it proxies."""
        self.sock = sock
        self._address = address
        self.closing = False
        self.fresh = True  # no request has come yet
        self._handler = handler
        self.config = config
        self._unmatched = unmatched
        self._buffer = data
        self._unsent = b""
        self._idle: trio.CancelScope | None = None
        self._scope = trio.CancelScope()

    async def serve(self) -> None:
        """Serve requests until the connection is to be closed. HandOver if it is for Hypercorn."""
        # One scope for all of the connection's requests: the one that runs when the peer disconnects is the last.
        with self._scope:
            while self.fresh or not self.closing:
                head = await self._next_head()
                self.fresh = False
                if head is None or not await self._serve_one(head):
                    return

    def hung_up(self) -> None:
        """The peer closed, half-closed or reset the connection: cancel its request."""
        self._scope.cancel()

    def close_soon(self) -> None:
        """Close now if idle, else after the present answer. A new connection gets FIRST_REQUEST_S for a request."""
        self.closing = True
        if self._idle is not None:
            self._idle.deadline = min(self._idle.deadline, trio.current_time() + FIRST_REQUEST_S * self.fresh)

    async def _serve_one(self, head: Head) -> bool:
        """Serve one request; whether the connection can take another."""
        body = Http1Body(self, head.headers, expects=head.expects)
        address, trusted = self._address, self.config.current.proxies.trusted
        if trusted:
            address = client_of(address, head.headers, trusted)
        if head.coded:
            plain, headers = decoded(body, head.headers, self.config.current.limits)
            request = make_request(head.endpoint, headers, plain, head.query, address)
        else:
            request = make_request(head.endpoint, head.headers, body, head.query, address)
        client = Http1Client(self, request.id, body, keep_alive=head.keep_alive)
        if origins := self.config.current.cors.origins:
            client.cors = cors.lines(origins, head.origin)
        try:
            await self._handler.handle(request, client)
        finally:
            if client.started and not client.complete:
                reset_on_close(self.sock)
        if client.complete and not client.keep_alive and (not body.consumed or has_unread(self.sock)):
            await linger(self.sock)
        return client.complete and client.keep_alive

    # -- reading --------------------------------------------------------------------------------------------------

    async def _next_head(self) -> Head | None:
        """The next request's head; None when the connection is over."""
        config = self.config.current
        timeouts, limits = config.timeouts, config.limits
        buffer = self._buffer
        seconds = timeouts.head_read_s if buffer else FIRST_REQUEST_S if self.closing else timeouts.keep_alive_s
        deadline = trio.current_time() + seconds
        searched = 0
        while (end := buffer.find(_END_OF_HEAD, searched)) < 0 and len(buffer) <= limits.header_max_bytes:
            if buffer and not may_be_hot(buffer):
                raise HandOver(buffer)
            searched = max(0, len(buffer) - 3)
            data = await self._receive(deadline, idle=not buffer)
            if data is None and buffer:
                message = f"The request's head did not arrive within {timeouts.head_read_s:g} s."
                await self._reject(buffer, deadline - timeouts.head_read_s, 408, message)
            if not data:
                return None
            if not buffer:
                deadline = trio.current_time() + timeouts.head_read_s
            buffer += data
        if not 0 <= end <= limits.header_max_bytes:
            message = f"The request's head is larger than {limits.header_max_bytes} bytes."
            await self._reject(buffer, deadline - timeouts.head_read_s, 431, message)
            return None
        head = Head.parse(buffer[: end + 4])
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
                wait: Wait = trio.lowlevel.wait_readable
            except TLS_NOT_NOW as error:
                wait = wait_for(error)
            except OSError:
                return b""
            with trio.CancelScope(deadline=deadline) as scope:
                self._idle = scope if idle else None
                await wait(sock)
            self._idle = None
            if scope.cancelled_caught:
                return None

    async def take(self, length: int, body: Http1Body) -> bytes:
        """The next `length` bytes, of `body`. Refusal if they do not arrive within body_read_s; ClientGone if never."""
        data = self._buffer
        if len(data) < length:
            await body.begin(length)
            data = await self._rest(length, body)
        if len(data) == length:
            self._buffer = b""
            return data
        self._buffer = data[length:]
        return data[:length]

    async def _rest(self, length: int, body: Http1Body) -> bytes:
        seconds = self.config.current.timeouts.body_read_s
        deadline = trio.current_time() + seconds
        buffer = bytearray(self._buffer)
        body.come(len(buffer))
        while len(buffer) < length:
            data = await self._receive(deadline)
            if data is None:
                raise too_slow(seconds)
            if not data:
                raise ClientGone
            body.come(len(data))
            buffer += data
        return bytes(buffer)

    # -- writing --------------------------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Send it all. ClientStalled if the peer does not take a piece in time, ClientGone if it disconnected.

        If this is cancelled, the rest is kept and goes out before the next data: an answer has no gap.
        """
        if self._unsent:
            data, self._unsent = self._unsent + data, b""
        try:
            sent = self.sock.send(data)
        except NOT_NOW:
            sent = 0
        except OSError:
            raise ClientGone from None
        if sent < len(data):
            await self._send_rest(memoryview(data)[sent:])

    async def _send_rest(self, rest: memoryview) -> None:
        stall_s = self.config.current.timeouts.client_stall_s
        wait: Wait = trio.lowlevel.wait_writable
        while rest:
            piece = rest[:PIECE]
            try:
                with trio.move_on_after(stall_s):
                    while piece:
                        await wait(self.sock)
                        try:
                            piece = piece[self.sock.send(piece) :]
                        except BlockingIOError:
                            continue
                        except TLS_NOT_NOW as error:
                            wait = wait_for(error)
                        except OSError:
                            raise ClientGone from None
            except trio.Cancelled:
                self._unsent = bytes(piece) + bytes(rest[PIECE:])
                raise
            if piece:
                raise ClientStalled
            rest = rest[PIECE:]

    async def _reject(self, head: bytes, began_at: float, status: int, message: str) -> None:
        """Answer a head that is not whole or too large, and close."""
        request_id = new_id()
        target = target_of(head)
        refusal = Refusal(Outcome.INVALID, status, message)
        self._unmatched(request_id, refusal, method_of(head), target)
        client = Http1Client(self, request_id, None, keep_alive=False)
        client.cors = cors.lines(self.config.current.cors.origins, cors.origin_in(head))
        client.timing = lambda: server_timing(began_at)
        made = refusals.answer(dialect_of(target), refusal)
        with contextlib.suppress(ClientGone, ClientStalled):
            await client.respond(made.status, made.headers, made.body)
            await linger(self.sock)
