"""Listening sockets: bound by us or handed over; and how a client's socket is closed."""

import errno
import os
import socket
import stat
import struct

import trio

from ..config.schema import Address, TcpAddress, UnixAddress

#: Connections that the kernel completes for us before we accept them.
BACKLOG = 1024


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
