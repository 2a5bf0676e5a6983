"""The connection registry: every client connection, how many there may be, and how they end."""

import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ASGIFramework, ConnectionState

from .. import refusals
from ..config.live import Live
from ..exchange import Dialect
from ..outcome import Outcome, Refusal
from ..shortage import descriptors, exhausted, reserved, shortage
from . import cors
from .accepting import accept_forever
from .certificate import Certificate
from .handler import Handler, Unmatched
from .hangups import Hangups
from .http1.connection import FIRST_REQUEST_S, HandOver, Http1Connection
from .hypercorn import GateServer, hypercorn_config
from .intake import new_id
from .proxied import SIGNATURE, NotAnnounced, announced, announced_before_tls, is_trusted, peer_address
from .sockets import LINGER_READ, close, is_local, linger
from .tls import Handshakes, TlsStream

#: Connections above connections_max that may take LINGER_S for their refusal at one time. Most take a millisecond.
LINGERING_MAX = 512


class Listening:
    """The client side of the gateway: its listening sockets and the connections that came through them."""

    def __init__(
        self,
        app: ASGIFramework,
        pipeline: Handler,
        config: Live,
        unmatched: Unmatched,
        connection_refused: Callable[[], None],
        handshake_failed: Callable[[str], None],
    ) -> None:
        """`connection_refused` is called for each connection above connections_max; `handshake_failed`: see tls.py.

        `certificate` (an attribute): what new connections from other hosts are served with; None: they are plain.
        """
        self.certificate: Certificate | None = None
        self._handshakes = Handshakes(unmatched, handshake_failed)
        self._app: AppWrapper = ASGIWrapper(app)
        self._pipeline = pipeline
        self._config = config
        self._unmatched = unmatched
        self._connection_refused = connection_refused
        self._context = WorkerContext(None)
        self._hypercorn = hypercorn_config(config.current)
        self._hangups = Hangups()
        self._fast: set[Http1Connection] = set()
        self._left = trio.lowlevel.ParkingLot()  # tasks that wait for connections to close
        self._descriptors = descriptors()
        self._closing = False
        self._lingering = 0  # refused connections whose answer is on its way
        self.connections = 0
        self.ordinary = 0  # of these, those that Hypercorn serves

    async def serve(self, listeners: list[trio.SocketListener], handlers: trio.Nursery) -> None:
        """Accept connections until cancelled, each handled in `handlers`, which the caller ends when it sees fit."""
        handlers.start_soon(self._hangups.watch)
        async with trio.open_nursery() as accepting:
            for listener in listeners:
                handle = self._handle if is_local(listener) else self._handle_from_outside
                accepting.start_soon(accept_forever, listener, handle, handlers)

    def reconfigure(self) -> None:
        """The configuration was replaced: rebuild Hypercorn's configuration for new connections."""
        self._hypercorn = hypercorn_config(self._config.current)

    @property
    def _for_clients(self) -> int:
        """Descriptors below this number may be clients'. The kernel gives out the lowest that is free."""
        return self._descriptors - reserved(self._descriptors, self._config.current.admission.max_active)

    def close_after_answers(self) -> None:
        """From now on the next answer on a connection is its last one.

        Idle connections stay: a request that is on its way gets an answer instead of a reset.
        """
        self._closing = True
        for connection in self._fast:
            connection.closing = True

    async def close_idle(self) -> None:
        """Close idle connections now, and every other one after the answer that it waits for.

        Returns when new ones have had their moment for a first request, and its answer if there was one.
        """
        self._closing = True
        await trio.lowlevel.checkpoint()  # what was accepted in this very step begins
        for connection in self._fast:
            connection.close_soon()
        await self._context.terminated.set()
        self._handshakes.hurry(FIRST_REQUEST_S)
        with trio.move_on_after(2 * FIRST_REQUEST_S):
            while self._handshakes:
                await self._left.park()
            fresh = {connection for connection in self._fast if connection.fresh}
            while not fresh.isdisjoint(self._fast):
                await self._left.park()

    def close(self) -> None:
        """Free what was held for all connections; when none is left."""
        self._hangups.close()

    async def _handle_from_outside(self, sock: socket.socket) -> None:
        """Over TLS if there is a certificate. A connection counts as one after its handshake."""
        if self.certificate is None:
            await self._handle(sock)
            return
        if sock.fileno() >= self._for_clients:
            self._unmatched(new_id(), exhausted("file descriptors"))
            sock.close()
            return
        config, address = self._config.current, peer_address(sock)
        seconds = config.timeouts.head_read_s
        trusted = config.proxies.trusted
        if trusted and is_trusted(address, trusted):
            try:
                address = await announced_before_tls(sock, address, seconds)
            except NotAnnounced:
                sock.close()
                return
        secure = await self._handshakes.shake(sock, self.certificate.context, seconds)
        self._left.unpark_all()
        if secure is not None:
            await self._handle(secure, address)

    async def _handle(self, sock: socket.socket, address: str | None = None) -> None:
        """`address`: the client's, if it is known already."""
        limit = self._config.current.limits.connections_max
        if sock.fileno() >= self._for_clients:
            self._exhausted(sock, "file descriptors")
            return
        if self.connections >= limit:
            self._connection_refused()
            message = f"Too many connections (limit {limit}). Retry later."
            await self._refuse(sock, Refusal(Outcome.SHED_BUSY, 503, message, retry_after_s=1))
            return
        self.connections += 1
        data, fresh = b"", address is None
        if address is None:
            address = peer_address(sock)
        try:
            while True:
                try:
                    await self._serve_fast(sock, data, address)
                    break
                except HandOver as not_ours:
                    data = not_ours.data
                if fresh and data[:1] == SIGNATURE[:1] and (told := await self._announced(sock, data, address)):
                    (address, data), fresh = told, False
                    continue
                fresh = False
                data = await self._serve_by_hypercorn(sock, data, address)
                if not data:
                    break
        except NotAnnounced:
            pass
        except OSError as error:
            if not (short_of := shortage(error)):
                raise
            self._exhausted(sock, short_of)
        finally:
            self.connections -= 1
            close(sock)

    async def _announced(self, sock: socket.socket, data: bytes, address: str) -> tuple[str, bytes] | None:
        """What a trusted proxy says in front of a connection, and what it sent behind that; None if it says nothing."""
        config = self._config.current
        if not is_trusted(address, config.proxies.trusted):
            return None
        return await announced(sock, data, address, config.timeouts.head_read_s)

    async def _serve_by_hypercorn(self, sock: socket.socket, first_bytes: bytes, address: str) -> bytes:
        """Returns what has been read of a request for the fast way; nothing if the connection is closed."""
        stream: Any = (
            TlsStream(sock)
            if isinstance(sock, ssl.SSLSocket)
            else trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        )
        state: Any = {}
        args = (self._app, self._hypercorn, self._context, ConnectionState(state), stream)
        unmatched = self._unmatched
        server = GateServer(*args, live=self._config, first_bytes=first_bytes, unmatched=unmatched, address=address)
        with self._hangups.watching(stream.socket, server.peer.hung_up, self._for_clients):
            self.ordinary += 1
            try:
                await server
            finally:
                self.ordinary -= 1
        return server.given_back

    async def _serve_fast(self, sock: socket.socket, data: bytes, address: str) -> None:
        connection = Http1Connection(sock, self._pipeline, self._config, self._unmatched, data, address)
        connection.closing = self._closing
        self._fast.add(connection)
        self._hangups.register(sock, connection.hung_up)
        try:
            await connection.serve()
        finally:
            self._hangups.unregister(sock)
            self._fast.discard(connection)
            self._left.unpark_all()

    def _exhausted(self, sock: socket.socket, short_of: str) -> None:
        """Answer and close a connection for which something is missing, without holding it a moment longer."""
        refusal = exhausted(short_of)
        self._unmatched(new_id(), refusal)
        with sock, contextlib.suppress(OSError):
            sock.send(self._closing_response(refusal))
            sock.recv(LINGER_READ)

    def _closing_response(self, refusal: Refusal) -> bytes:
        return refusals.closing_response(Dialect.CHAT, refusal, cors.unread(self._config.current.cors.origins))

    async def _refuse(self, sock: socket.socket, refusal: Refusal) -> None:
        """Answer a connection above the limit, and close it. Its dialect is not known: its request is not looked at.

        Of the first LINGERING_MAX at one time, what has come is read; a close with bytes unread would reset the
        connection under the answer. The others are closed at once, and may see a reset.
        """
        with sock, contextlib.suppress(OSError):
            sock.send(self._closing_response(refusal))  # a new connection's buffer has room for it
            if self._lingering < LINGERING_MAX:
                self._lingering += 1
                try:
                    await linger(sock)
                finally:
                    self._lingering -= 1
            else:
                sock.recv(LINGER_READ)
