"""Listening sockets: bound by us or handed over; and how a client's socket is closed."""

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterable

import trio

from ..config.schema import Address, TcpAddress, UnixAddress

#: How long an answer to a request that was not read to its end may take to arrive (seconds).
LINGER_S = 2.0

#: Bytes that are read at once, to be dropped, while it arrives.
LINGER_READ = 65536

#: Connections that the kernel completes for us before we accept them.
BACKLOG = 1024


def bind_all(addresses: Iterable[Address]) -> list[trio.SocketListener]:
    """Listen on each of them, or on none: OSError then, whose `filename` is the address that cannot be bound."""
    listeners: list[trio.SocketListener] = []
    for address in addresses:
        try:
            listeners.append(bind(address))
        except OSError as error:
            error.filename = str(address)
            for listener in listeners:
                listener.socket.close()
            raise
    return listeners


def bind(address: Address) -> trio.SocketListener:
    """Listen on `address`. OSError if it is taken or not allowed.

    A Unix socket that a dead process left behind is removed first; one with a listener is left alone.
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


def reset_on_close(sock: socket.socket) -> None:
    """Have the coming close reset the connection, so that the kernel does not keep what the client never took."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def has_unread(sock: socket.socket) -> bool:
    """Whether the peer has sent something that was not read: a close would reset the connection."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


async def linger(sock: socket.socket) -> None:
    """End what is sent on `sock`, and let it arrive although the peer still sends: for LINGER_S at most.

    A close with bytes unread would reset the connection, and the peer might never see the answer.
    """
    with trio.move_on_after(LINGER_S), contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while True:
            try:
                if not sock.recv(LINGER_READ):
                    return
            except BlockingIOError:
                await trio.lowlevel.wait_readable(sock)
            else:
                await trio.lowlevel.checkpoint()


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return  # another file: bind reports that the path is taken
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
            raise OSError(errno.EADDRINUSE, "another program listens there already", path)
