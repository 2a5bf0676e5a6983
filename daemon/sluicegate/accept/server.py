"""Hypercorn's TCP server, bounded: in how long a client may refuse bytes, and in how many connections there are."""

import contextlib
import errno
import logging
import os
import socket
import stat
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol import h2 as h2_protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ASGIFramework, ConnectionState
from hypercorn.utils import parse_socket_addr

from .. import refusals
from ..config.live import Live
from ..config.schema import Address, Config, TcpAddress, UnixAddress
from ..exchange import ClientGone, ClientStalled, Dialect
from ..outcome import Outcome, Refusal
from .accepting import accept_forever
from .handler import Handler, Peer, Unmatched, present_peer
from .hangups import Hangups
from .http1 import FIRST_REQUEST_S, PIECE, HandOver, Http1Connection, reset_on_close

#: Connections that the kernel completes for us before we accept them.
BACKLOG = 1024

#: How much later than the application, which has the same deadline for each piece, the socket gives up a client that
#: takes nothing. On HTTP/2 they are two tasks: were the socket the first, the request would count as left, not stalled.
SOCKET_PATIENCE = 1.25


class _BoundedBuffer(h2_protocol.StreamBuffer):
    """What waits for an HTTP/2 stream's window. Hypercorn's lets the sender go on whenever it could send nothing."""

    async def pop(self, max_length: int) -> bytes:
        length = min(len(self.buffer), max_length)
        data = bytes(self.buffer[:length])
        del self.buffer[:length]
        if len(self.buffer) < h2_protocol.BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


h2_protocol.StreamBuffer = _BoundedBuffer  # type: ignore[misc]


class GateServer(TCPServer):
    """One client connection.

    Unlike its base it shields no send: a client that does not take a piece within client_stall_s is cut off, and a send
    that is cancelled takes the connection with it, for the rest of that answer could not be sent any more.
    """

    def __init__(self, *args: Any, stall_s: float, first_bytes: bytes) -> None:
        super().__init__(*args)
        self._stall_s = stall_s
        self._first_bytes = first_bytes
        self._read_out = False
        self.peer = Peer(self._abort)

    async def run(self) -> None:
        """Serve the connection, of which `first_bytes` have been read already."""
        sock = self.stream.socket
        present_peer.set(self.peer)
        try:
            client = parse_socket_addr(sock.family, sock.getpeername())
            server = parse_socket_addr(sock.family, sock.getsockname())
            async with TaskGroup() as task_group:
                self._task_group = task_group
                self.protocol = ProtocolWrapper(
                    self.app,
                    self.config,
                    self.context,
                    task_group,
                    ConnectionState(self.state),
                    False,
                    client,
                    server,
                    self.protocol_send,
                    "http/1.1",
                )
                await self.protocol.initiate()
                await self.idle_task.restart(self._task_group, self._idle_timeout)
                await self.protocol.handle(RawData(self._first_bytes))
                await self._read_data()
                # Hypercorn would hold the closed connection for the rest of its idle time, and begin that anew with
                # the end of an answer that is under way.
                self._read_out = True
                await self.idle_task.stop()
        except* (OSError, ClientGone, ClientStalled):
            pass
        except* Exception as error:
            # Hypercorn met something on the wire that it did not expect (a path on HTTP/2 that is not ASCII, CONNECT,
            # data for a stream that it forgot): that connection is over, and nobody else's.
            logging.getLogger("hypercorn.error").warning("a connection was closed", exc_info=error)
        finally:
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            async with self.send_lock:
                await self._send_bounded(event.data)
        elif not (self._read_out and isinstance(event, Updated)):
            await super().protocol_send(event)

    async def _send_bounded(self, data: bytes) -> None:
        try:
            for at in range(0, len(data), PIECE):
                with trio.move_on_after(self._stall_s * SOCKET_PATIENCE) as patience:
                    await self.stream.send_all(data[at : at + PIECE])
                if patience.cancelled_caught:
                    self._abort()
                    raise ClientStalled
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ClientGone from None
        except trio.Cancelled:
            self._abort()
            raise

    def _abort(self) -> None:
        """Reset the connection; once is enough."""
        if self.stream.socket.fileno() < 0:
            return
        with socket.socket(fileno=os.dup(self.stream.socket.fileno())) as sock:
            reset_on_close(sock)
        self.stream.socket.close()


class Listening:
    """The client side of the gateway: its listening sockets and the connections that came through them."""

    def __init__(self, app: ASGIFramework, pipeline: Handler, config: Live, unmatched: Unmatched) -> None:
        self._app: AppWrapper = ASGIWrapper(app)
        self._pipeline = pipeline
        self._config = config
        self._unmatched = unmatched
        self._context = WorkerContext(None)
        self._hypercorn = hypercorn_config(config.current)
        self._hangups = Hangups()
        self._fast: set[Http1Connection] = set()
        self._left = trio.lowlevel.ParkingLot()  # who waits for connections to leave
        self._closing = False
        self.connections = 0

    async def serve(self, listeners: list[trio.SocketListener], handlers: trio.Nursery) -> None:
        """Accept connections until cancelled, each handled in `handlers`, which the caller ends when it sees fit."""
        handlers.start_soon(self._hangups.watch)
        async with trio.open_nursery() as accepting:
            for listener in listeners:
                accepting.start_soon(accept_forever, listener, self._handle, handlers)

    def reconfigure(self) -> None:
        """The configuration was replaced: what of it Hypercorn has a copy of is made anew, for new connections."""
        self._hypercorn = hypercorn_config(self._config.current)

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
        fresh = {connection for connection in self._fast if connection.fresh}
        with trio.move_on_after(2 * FIRST_REQUEST_S):
            while not fresh.isdisjoint(self._fast):
                await self._left.park()

    def close(self) -> None:
        """Free what was held for all connections; when none is left."""
        self._hangups.close()

    async def _handle(self, sock: socket.socket) -> None:
        if self.connections >= self._config.current.limits.connections_max:
            _refuse(sock, self._config.current.limits.connections_max)
            return
        self.connections += 1
        rest = b""
        try:
            try:
                await self._serve_fast(sock)
            except HandOver as not_ours:
                rest = not_ours.data
            if rest:
                await self._serve_by_hypercorn(sock, rest)
        finally:
            self.connections -= 1
            sock.close()

    async def _serve_by_hypercorn(self, sock: socket.socket, first_bytes: bytes) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        state: Any = {}
        args = (self._app, self._hypercorn, self._context, ConnectionState(state), stream)
        server = GateServer(*args, stall_s=self._config.current.timeouts.client_stall_s, first_bytes=first_bytes)
        with self._hangups.watching(stream.socket, server.peer.hung_up):
            await server

    async def _serve_fast(self, sock: socket.socket) -> None:
        connection = Http1Connection(sock, self._pipeline, self._config, self._unmatched)
        connection.closing = self._closing
        self._fast.add(connection)
        self._hangups.register(sock, connection.hung_up)
        try:
            await connection.serve()
        finally:
            self._hangups.unregister(sock)
            self._fast.discard(connection)
            self._left.unpark_all()


def _refuse(sock: socket.socket, limit: int) -> None:
    """Answer a connection above the limit, and close it. Its dialect is not known: nothing of it is read."""
    message = f"Too many connections (limit {limit}). Retry later."
    refusal = Refusal(Outcome.SHED_BUSY, 503, message, retry_after_s=1)
    with sock, contextlib.suppress(OSError):
        sock.send(refusals.closing_response(Dialect.CHAT, refusal))  # a new connection's buffer has room for it


def hypercorn_config(config: Config) -> HypercornConfig:
    """Hypercorn's own settings, from ours."""
    hypercorn = HypercornConfig()
    hypercorn.accesslog = None
    hypercorn.errorlog = logging.getLogger("hypercorn.error")
    hypercorn.include_server_header = False
    hypercorn.h11_max_incomplete_size = config.limits.header_max_bytes
    hypercorn.h2_max_header_list_size = config.limits.header_max_bytes
    hypercorn.keep_alive_timeout = config.timeouts.keep_alive_s
    # A client may use one connection for as long as it likes: closing it now and then would only cost a handshake.
    hypercorn.keep_alive_max_requests = 1 << 62
    return hypercorn


def bind(address: Address) -> trio.SocketListener:
    """Listen on `address`. OSError if it is taken or not allowed.

    A Unix socket that a dead process left behind is removed first; one that somebody listens on is left alone.
    """
    if isinstance(address, UnixAddress):
        _remove_stale(address.path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address.path if isinstance(address, UnixAddress) else (address.host, address.port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def adopt(sock: socket.socket) -> trio.SocketListener:
    """Listen on a socket that listens already, which is the listener's own from now on."""
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def bound_address(listener: trio.SocketListener) -> Address:
    """Where `listener` listens; a name in the abstract namespace begins with @."""
    name = listener.socket.getsockname()
    if isinstance(name, tuple):
        return TcpAddress(name[0], name[1])
    return UnixAddress("@" + name[1:].decode(errors="replace") if isinstance(name, bytes) else name)


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return  # somebody's file: bind will say that the path is taken
    except OSError:
        return  # not there, or not to be seen: bind will say so
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            return  # one that is too busy to answer is taken, too
        else:
            raise OSError(errno.EADDRINUSE, "somebody listens there already", path)
