"""Hypercorn's TCP server, bounded in how long a client may refuse bytes, and strict about HTTP/1.1."""

import contextlib
import logging
import os
import socket
import ssl
from typing import Any

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol import h2 as h2_protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from ..config.live import Live
from ..config.schema import Config
from ..exchange import ClientGone, ClientStalled
from .handler import Peer, Unmatched, present_peer
from .http1.strict import StrictH11
from .intake import PIECE
from .sockets import LINGER_S, reset_on_close

#: The socket's deadline for each piece, as a multiple of the application's (client_stall_s). On HTTP/2 they are two
#: tasks: if the socket timed out first, the request would count as disconnected instead of stalled.
SOCKET_STALL_FACTOR = 1.25


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

    Unlike its base it shields no send. A client that does not take a piece within client_stall_s is disconnected. A
    cancelled send aborts the connection: the rest of that answer cannot be sent any more.
    """

    def __init__(self, *args: Any, live: Live, first_bytes: bytes, unmatched: Unmatched, address: str) -> None:
        super().__init__(*args)
        self._live = live
        self._unmatched = unmatched
        self._stall_s = live.current.timeouts.client_stall_s
        self._first_bytes = first_bytes
        self._read_out = False
        self.given_back = b""
        self.peer = Peer(self._abort, address)

    async def run(self) -> None:
        """Serve the connection, of which `first_bytes` have been read already.

        Until it is closed; or until a request begins that may be one for the fast way, and `given_back` is what has
        been read of it.
        """
        sock = self.stream.socket
        present_peer.set(self.peer)
        try:
            client = parse_socket_addr(sock.family, sock.getpeername())
            server = parse_socket_addr(sock.family, sock.getsockname())
            async with TaskGroup() as task_group:
                self._task_group = task_group
                state = ConnectionState(self.state)
                secure = isinstance(sock, ssl.SSLSocket)
                args = (self.app, self.config, self.context, task_group, state, secure, client, server)
                self.protocol = ProtocolWrapper(*args, self.protocol_send, "http/1.1")
                self.protocol.protocol = StrictH11(
                    *args,
                    self.protocol_send,
                    peer=self.peer,
                    live=self._live,
                    unmatched=self._unmatched,
                    linger=self._linger,
                )
                await self.protocol.initiate()
                await self.idle_task.restart(self._task_group, self._idle_timeout)
                await self.protocol.handle(RawData(self._first_bytes))
                data = await self._read()
                # Hypercorn would hold the closed connection for the rest of its idle time, and restart that time at
                # the end of an answer that is being sent.
                self._read_out = True
                await self.idle_task.stop()
            if self.stream.socket.fileno() >= 0:  # it is closed if its idle time was over in that very moment
                self.given_back = data
        except* (OSError, ClientGone, ClientStalled):
            pass
        except* Exception as error:
            # Hypercorn met something on the wire that it did not expect (a path on HTTP/2 that is not ASCII, CONNECT,
            # data for a stream that it forgot): that connection is over, and nobody else's.
            logging.getLogger("hypercorn.error").warning("a connection was closed", exc_info=error)
        finally:
            if not self.given_back:
                await self._close()

    async def _read(self) -> bytes:
        """Take in what comes until the connection ends, or until what came is to be given back."""
        data = b"-"
        while data:
            try:
                data = bytes(await self.stream.receive_some(MAX_RECV))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                break
            protocol = self.protocol.protocol
            if isinstance(protocol, StrictH11) and await protocol.gives_back(data):
                return data
            await self.protocol.handle(RawData(data))
        await self.protocol.handle(Closed())
        return b""

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            async with self.send_lock:
                await self._send_bounded(event.data)
        elif not (self._read_out and isinstance(event, Updated)):
            await super().protocol_send(event)

    async def _send_bounded(self, data: bytes) -> None:
        try:
            for at in range(0, len(data), PIECE):
                with trio.move_on_after(self._stall_s * SOCKET_STALL_FACTOR) as stall:
                    await self.stream.send_all(data[at : at + PIECE])
                if stall.cancelled_caught:
                    self._abort()
                    raise ClientStalled
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ClientGone from None
        except trio.Cancelled:
            self._abort()
            raise

    async def _linger(self) -> None:
        """Let the answer arrive although the peer still sends: a close with bytes unread would reset the connection.

        For the task that reads from the connection.
        """
        gone = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
        with trio.move_on_after(LINGER_S), contextlib.suppress(*gone):
            await self.stream.send_eof()
            while await self.stream.receive_some(MAX_RECV):
                pass

    def _abort(self) -> None:
        """Reset the connection; once is enough."""
        if self.stream.socket.fileno() < 0:
            return
        with socket.socket(fileno=os.dup(self.stream.socket.fileno())) as sock:
            reset_on_close(sock)
        trio.lowlevel.notify_closing(self.stream.socket)  # an SSLSocket does not tell its waiters itself
        self.stream.socket.close()


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
