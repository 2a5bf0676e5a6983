"""Accepting connections: plain sockets out of a listening one, many at a turn.

trio.serve_listeners takes a turn of the scheduler and two cancel scopes for each connection, a fifth of what a short
stream on a connection of its own costs here.
"""

import contextlib
import errno
import logging
import socket
from collections.abc import Awaitable, Callable

import trio

#: Connections accepted before others have their turn.
BURST = 64

#: No descriptors or no memory left: the next connection is tried that much later (seconds). One may close meanwhile,
#: and those that wait are the kernel's.
REST_S = 0.1

#: accept(2): what belongs to a connection that broke before it was accepted, or to the network beneath it.
_NOT_OURS = {
    errno.ECONNABORTED,
    errno.EPERM,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
    errno.EINTR,
}
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

#: Bytes that the kernel takes of an answer beyond what is on its way. More of them would be out of reach of every
#: deadline, and a client that reads nothing would be noticed that much later. trio's own streams have the same.
NOTSENT_MAX = 16384

_logger = logging.getLogger(__name__)


async def accept_forever(
    listener: trio.SocketListener, handle: Callable[[socket.socket], Awaitable[None]], handlers: trio.Nursery
) -> None:
    """Start `handle` in `handlers` for each connection, until cancelled; the listener is closed then.

    The socket is non-blocking and belongs to `handle`. OSError if the listener itself is broken.
    """
    async with listener:
        inner = listener.socket
        # A plain socket object that shares the listener's descriptor and does not own it.
        sock = socket.socket(inner.family, inner.type, inner.proto, fileno=inner.fileno())
        # Not on the listener, to be inherited: connections may have been waiting there since before it was ours.
        tcp = sock.family != socket.AF_UNIX
        try:
            while True:
                await trio.lowlevel.wait_readable(sock)
                try:
                    for _ in range(BURST):
                        client = sock.accept()[0]
                        client.setblocking(False)
                        if tcp:
                            _tune(client)
                        handlers.start_soon(handle, client)
                except BlockingIOError:
                    pass
                except OSError as error:
                    await _bear(error)
        finally:
            sock.detach()


def _tune(client: socket.socket) -> None:
    with contextlib.suppress(OSError):  # one that is over already; whoever reads from it will be told
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_MAX)


async def _bear(error: OSError) -> None:
    """Go on after an error that says nothing about the listener; raise it if it does."""
    if error.errno in _EXHAUSTED:
        _logger.error("no connection can be accepted (%s); next try in %g s", error.strerror, REST_S)
        await trio.sleep(REST_S)
    elif error.errno not in _NOT_OURS:
        raise error
