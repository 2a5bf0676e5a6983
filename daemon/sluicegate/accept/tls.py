"""TLS towards clients: handshakes, bounded in number and in time, and what Hypercorn needs of a connection after one.

A connection over TLS is an ssl.SSLSocket, whose non-blocking `recv` and `send` are those of a plain socket. So the fast
way in and the pump work on either without a layer between: OpenSSL encrypts and writes in the one call that a plain
socket needs as well, in the thread that made it. What differs is which exceptions mean "not now" (sockets.py).
"""

import contextlib
import socket
import ssl
from collections.abc import Callable

import trio

from ..exchange import Dialect
from ..outcome import Outcome, Refusal
from ..refusals import closing_response
from .handler import Unmatched
from .intake import new_id
from .sockets import TLS_NOT_NOW, end_tls, linger, wait_for

#: Handshakes at one time. One more ends the oldest, so that half-open ones keep nobody out: a client takes a round trip
#: or two for its own, and would have to be overtaken by as many others in that time.
HANDSHAKES_MAX = 512


class Handshakes:
    """The TLS handshakes that are in progress."""

    def __init__(self, unmatched: Unmatched, failed: Callable[[str], None]) -> None:
        """`failed` is told of each that fails, and why: "timeout", "crowded", "closed" (by the peer) or "error"."""
        self._unmatched = unmatched
        self._failed = failed
        self._running: dict[trio.CancelScope, None] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._running)

    def hurry(self, seconds: float) -> None:
        """Those that are in progress have that much time left, at most."""
        for scope in self._running:
            scope.deadline = min(scope.deadline, trio.current_time() + seconds)

    async def shake(self, sock: socket.socket, context: ssl.SSLContext, seconds: float) -> ssl.SSLSocket | None:
        """`sock`, whose owner this becomes, over TLS; None if no handshake was made in time, and it is closed."""
        scope = trio.CancelScope(deadline=trio.current_time() + seconds)
        if len(self._running) >= HANDSHAKES_MAX:
            oldest = next(iter(self._running))
            del self._running[oldest]
            oldest.cancel()
        self._running[scope] = None
        secure: socket.socket = sock
        why = "timeout"
        try:
            with scope:
                try:
                    secure = tls = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                    await _shake(tls)
                    why = ""
                    return tls
                except OSError as error:
                    why = "closed" if _hung_up(error) else "error"
                    await self._part(secure, error)
        finally:
            crowded = self._running.pop(scope, True)
            if why:
                secure.close()
                self._failed("crowded" if crowded else why)
        return None

    async def _part(self, sock: socket.socket, error: OSError) -> None:
        """The peer speaks no TLS that we speak. OpenSSL has told it so; let that arrive."""
        if _hung_up(error):
            return
        if isinstance(error, ssl.SSLError) and error.reason == "HTTP_REQUEST":
            message = "This port speaks TLS: use https:// in the URL."
            refusal = Refusal(Outcome.INVALID, 400, message, code="tls_required")
            self._unmatched(new_id(), refusal)
            with contextlib.suppress(OSError):
                socket.socket.send(sock, closing_response(Dialect.CHAT, refusal))  # below TLS
        await linger(sock)


def _hung_up(error: OSError) -> bool:
    return isinstance(error, ssl.SSLEOFError) or not isinstance(error, ssl.SSLError)


async def _shake(sock: ssl.SSLSocket) -> None:
    while True:
        try:
            sock.do_handshake()
        except TLS_NOT_NOW as error:
            await wait_for(error)(sock)
        else:
            return


class TlsStream:
    """What Hypercorn's server needs of a trio stream, on a connection over TLS, which it closes."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.socket = sock

    async def receive_some(self, max_bytes: int) -> bytes:
        """Bytes as they come; none at the end. trio.BrokenResourceError."""
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self.socket.recv(max_bytes)
            except TLS_NOT_NOW as error:
                await _wait(self.socket, error)
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def send_all(self, data: bytes) -> None:
        """Send it all. trio.BrokenResourceError. After a cancellation nothing more can be sent."""
        await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self.socket.send(rest) :]
            except TLS_NOT_NOW as error:
                await _wait(self.socket, error)
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def send_eof(self) -> None:
        """Nothing more will be sent."""
        await trio.lowlevel.checkpoint()
        end_tls(self.socket)
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        """Close, whatever waits for it."""
        if self.socket.fileno() >= 0:
            end_tls(self.socket)
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()
        await trio.lowlevel.checkpoint()


async def _wait(sock: ssl.SSLSocket, error: OSError) -> None:
    """Until what raised `error` may be tried again. trio's errors if the socket is closed meanwhile."""
    try:
        await wait_for(error)(sock)
    except trio.BusyResourceError:  # another task waits for the same: a peer that takes nothing, and sends handshakes
        raise trio.BrokenResourceError from error
